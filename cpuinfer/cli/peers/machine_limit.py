"""The machine itself: what a point must read is read, what it must multiply is multiplied, and nothing else is done.

It runs in the same rounds as the engines, so that a share of the limit compares what the machine gave at the same time:
ceilings that are measured once on a shared machine belong to another hour.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.limit import decode_bytes
from cpuinfer.cli.load import load_program
from cpuinfer.cli.peers import Start, Unsupported
from cpuinfer.devices.meter import products
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.ops import StepSize, spec_of
from cpuinfer.graph.passes import optimise
from cpuinfer.machine.ceilings import PEAKS, STREAMS, UNIT, Effort, best_rates
from cpuinfer.machine.isa import best, choose, load

EFFORT = Effort(seconds=0.02, times=1)
"""For a peak, in each round: the rounds are the samples."""


class Limit:
    """Reads of a buffer as large as what a decoding step reads, and bare sequences of products."""

    settings = ("machine",)

    def __init__(self, start: Start) -> None:
        self._threads = start.threads
        self._kv_type = KVType(start.kv_type)
        _, program = load_program(Path(start.model), start.context)
        self._program = optimise(program)
        self._reader = load(best().level.name)
        level = choose(start.isa).name
        self._kernels = load(level)
        sizes = [self._step_bytes(point) for point in start.points if point.n_gen]
        self._memory = np.empty(max(sizes, default=0) // 4 + 16, np.float32)
        self._address = self._memory.ctypes.data + -self._memory.ctypes.data % 64
        if sizes:
            self._reader.fill(self._address, max(sizes) // 4, start.threads, 1.0)
        self.version = "1"
        self.flags = {"threads": start.threads, "isa": level}

    def seconds(self, point: Case) -> dict[str, float]:
        """The least that a prompt, or tokens one by one, can take."""
        if point.n_prompt and point.n_gen:
            raise Unsupported("a prompt and tokens in one have two limits")
        if point.n_prompt:
            end = point.n_depth + point.n_prompt
            size = StepSize.of_sequence(point.n_prompt, 1, end, self._kv_type)
            return {"machine": point.n_seqs * self._multiply(size)}
        keys = round(point.n_seqs * (point.n_depth + point.n_gen / 2))
        size = StepSize(point.n_seqs, point.n_seqs, keys, keys, self._kv_type)
        return {"machine": max(self._read(point), point.n_gen * self._multiply(size))}

    def _step_bytes(self, point: Case) -> int:
        context = point.n_depth + point.n_prompt + point.n_gen / 2
        per_step = decode_bytes(self._program, self._kv_type, context, point.n_seqs) * point.n_seqs
        unit = UNIT * self._threads
        return max(1, round(per_step / unit)) * unit

    def _read(self, point: Case) -> float:
        n = self._step_bytes(point) // 4
        found = []
        for streams in STREAMS:
            self._reader.read(self._address, n, self._threads, streams, 1)
            begin = perf_counter()
            self._reader.read(self._address, n, self._threads, streams, point.n_gen)
            found.append(perf_counter() - begin)
        return min(found)

    def _multiply(self, size: StepSize) -> float:
        operations: dict[str, float] = dict.fromkeys(PEAKS, 0.0)
        for op in self._program.ops:
            if not op.kind.startswith(("matmul", "attention")):
                continue
            for name, part in products(op, self._program).items():
                count = spec_of(op).operations(op, self._program, size)
                operations[name] += part * count
        needed = {name: count for name, count in operations.items() if count}
        rates = self._rates(needed)
        return sum(count / rates[name] for name, count in needed.items())

    def _rates(self, names: Iterable[str]) -> dict[str, float]:
        """Operations per second, now, of the fastest sequence of each peak."""

        def compute(kind: str, repetitions: int, team: int) -> float:
            return float(self._kernels.peak(kind, team, repetitions))

        there = {n: [k for k in PEAKS[n] if self._kernels.peak(k, 1, 1) > 0] for n in names}
        works = {n: [partial(compute, kind) for kind in kinds] for n, kinds in there.items()}
        return best_rates(works, self._threads, EFFORT)[0]


def open_adapter(start: Start) -> Limit:
    """See peers.Adapter."""
    return Limit(start)
