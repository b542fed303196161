"""Runs the tests of `bench` on an Executable: random tokens, no engine and no sampling, as llama-bench does."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.limit import decode_roofline, machine
from cpuinfer.cli.load import load_program
from cpuinfer.cli.output import version
from cpuinfer.devices import create_device
from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits
from cpuinfer.devices.meter import Meter, is_measurable
from cpuinfer.graph.dtypes import KVType
from cpuinfer.machine.cpu import cpu_name
from cpuinfer.machine.roofline import Stats


class Runner:
    """A model compiled on a device for the largest of the tests. Sequence s owns its own run of pages.

    Without a number of threads the device takes what it takes by default, which may change from step to step.
    """

    def __init__(
        self,
        path: Path,
        every: list[Case],
        threads: int | None,
        isa: str | None,
        device: str,
        kv_type: KVType,
        ubatch: int,
    ) -> None:
        self._isa, self._name = isa, device
        self._path = path
        self._kv_type = kv_type
        self._ubatch = ubatch
        context = max((case.context for case in every), default=1)
        self._pages = -(-context // PAGE_TOKENS)
        seqs = max((case.n_seqs for case in every), default=1)
        self._packed, self._program = load_program(path, context)
        self._device: Any = create_device(device, threads, isa)
        self.threads: int = getattr(self._device, "threads", 1) if threads is None else threads
        limits = Limits(max(ubatch, seqs), seqs, seqs * self._pages, context, kv_type)
        self._executable = self._device.compile(self._program, self._packed.weights, limits)
        self._tables = np.arange(seqs * self._pages, dtype=np.int32).reshape(seqs, self._pages)
        self._meter: Meter | None = None
        self._random = np.random.default_rng(0)

    def fingerprint(self) -> str:
        """Of the logits, as `verify` prints it for this device, level and KV type."""
        from cpuinfer.cli.verify import fingerprint
        from cpuinfer.llm import LLM

        with LLM(
            self._path,
            threads=self.threads,
            device=self._name,
            isa=self._isa,
            kv_type=self._kv_type.value,
        ) as llm:
            return fingerprint(llm)

    def prefill(self, begin: int, n: int, seqs: int) -> None:
        """Positions begin .. begin+n-1 of each sequence in turn, in steps of at most ubatch tokens."""
        for sequence in range(seqs):
            for at in range(begin, begin + n, self._ubatch):
                count = min(self._ubatch, begin + n - at)
                self._step(np.arange(at, at + count), self._tables[sequence : sequence + 1])

    def decode(self, begin: int, n: int, seqs: int) -> None:
        """n steps of one token of every sequence."""
        for at in range(begin, begin + n):
            self._step(np.full(seqs, at), self._tables[:seqs])

    def run(self, case: Case) -> None:
        """What is timed."""
        self.prefill(case.n_depth, case.n_prompt, case.n_seqs)
        self.decode(case.n_depth + case.n_prompt, case.n_gen, case.n_seqs)

    def warm_up(self, case: Case) -> None:
        """The prompt once, or one step of decoding."""
        self.prefill(case.n_depth, case.n_prompt, case.n_seqs)
        self.decode(case.n_depth + case.n_prompt, min(case.n_gen, 1), case.n_seqs)

    def profile(self, case: Case) -> Stats | None:
        """The case once more with every op timed; None for a device that does not time them."""
        executable = self._executable
        if not is_measurable(executable):
            return None
        self._meter = Meter(executable)
        try:
            self.run(case)
            return self._meter.stats(machine(self._device.level, self.threads))
        finally:
            self._meter = None
            executable.measure_ops(False)

    def _step(self, positions: np.ndarray[Any, Any], tables: np.ndarray[Any, Any]) -> None:
        """One batch: the positions, split evenly over the sequences of the tables; logits of each one's last token."""
        begin = perf_counter()
        seqs = len(tables)
        tokens = len(positions)
        indptr = np.arange(seqs + 1, dtype=np.int32) * (tokens // seqs)
        batch = Batch(
            tokens=self._random.integers(0, self._program.vocab_size, tokens, dtype=np.int32),
            positions=positions.astype(np.int32),
            q_indptr=indptr.astype(np.int32),
            block_tables=tables,
            logit_rows=indptr[1:] - 1,
        )
        if self._meter is None:
            self._executable.run(batch)
        else:
            self._meter.run(batch)
            self._meter.end_step(perf_counter() - begin)

    def describe(self) -> dict[str, Any]:
        """The fields of a Result that do not depend on the test."""
        weights = self._packed.weights.values()
        kinds = Counter({w.type.name: 0 for w in weights})
        for weight in weights:
            kinds[weight.type.name] += prod(weight.shape)
        metadata = self._packed.metadata
        size = metadata.get("general.size_label", "")
        return {
            "build_commit": version(),
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": "",
            "backends": "CPU",
            "model_filename": str(self._path),
            "model_type": " ".join(
                filter(None, (self._program.name, str(size), kinds.most_common(1)[0][0]))
            ),
            "model_size": sum(w.data.nbytes for w in weights),
            "model_n_params": sum(prod(w.shape) for w in weights),
            "n_batch": self._ubatch,
            "n_ubatch": self._ubatch,
            "n_threads": self.threads,
            "type_k": self._kv_type.value,
            "type_v": self._kv_type.value,
            "device": self._device.name,
            "isa": getattr(self._device, "level", None),
        }

    def limit(self, case: Case, tokens_per_s: float) -> dict[str, Any]:
        """Bytes per token, bandwidth and share of a test that only decodes; nothing for others."""
        isa = getattr(self._device, "level", None)
        if case.n_prompt or isa is None:
            return {}
        found = decode_roofline(
            self._program,
            self._kv_type,
            case.n_depth + case.n_gen / 2,
            tokens_per_s,
            isa,
            self.threads,
            case.n_seqs,
        )
        if found is None:
            return {}
        return {
            "bytes_per_token": found.bytes_per_token,
            "read_bandwidth": found.read_bandwidth,
            "roofline_share": found.share,
        }
