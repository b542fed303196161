"""This engine as its users run it: scheduling, sampling (greedy) and detokenising included, unlike in `ours`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from cpuinfer.cli.bench_spec import Case
from cpuinfer.cli.load import load_program
from cpuinfer.cli.output import version
from cpuinfer.cli.peers import Start, Unsupported
from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS, page_bytes
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds, Request
from cpuinfer.graph.dtypes import KVType
from cpuinfer.llm import LLM


class Whole:
    """An LLM's executable under an Engine of its own, driven step by step so that decoding can be timed alone."""

    def __init__(self, start: Start) -> None:
        self._llm = _open(start)
        limits = self._llm.limits
        self._bounds = Bounds(
            self._llm.program.vocab_size,
            limits.max_context,
            start.n_seqs * limits.max_context,
            frozenset(),
            1,
        )
        # Every prompt is to be computed, whatever came before.
        self._engine = Engine(self._llm.executable, limits, start.n_seqs, prefix_caching=False)
        self._random = np.random.default_rng(0)
        self.version = version()
        self.flags = {
            "isa": getattr(self._llm.device, "level", None),
            "kv_type": start.kv_type,
            "sampling": "greedy",
        }
        self.settings = ("engine",)

    def seconds(self, point: Case) -> dict[str, float]:
        """A prompt's time until every sequence has its first token, or that of n_gen steps from there on."""
        if point.n_prompt and point.n_depth:
            raise Unsupported("a prompt after a depth is one prompt to the engine")
        if not point.n_prompt and not point.n_depth:
            raise Unsupported("the engine generates only after a prompt: give a depth")
        self._time(Case(point.n_prompt, min(point.n_gen, 1), min(point.n_depth, 16), point.n_seqs))
        return {"engine": self._time(point)}

    def _time(self, point: Case) -> float:
        length = point.n_prompt or point.n_depth
        requests = [self._request(str(i), length) for i in range(point.n_seqs)]
        sequences = [request.sequences[0] for request in requests]
        begin = perf_counter()
        for request in requests:
            self._engine.add(request)
        while any(len(sequence.tokens) == length for sequence in sequences):
            self._engine.step()
        if not point.n_prompt:
            begin = perf_counter()
        for _ in range(point.n_gen):
            if len(self._engine.step()) != point.n_seqs:
                raise RuntimeError("a step left out a sequence: the KV pages are too few")
        end = perf_counter()
        self._engine.abort_all()
        return end - begin

    def _request(self, name: str, length: int) -> Request:
        tokens = self._random.integers(0, self._llm.program.vocab_size, length).tolist()
        room = self._llm.limits.max_context - length
        params = SamplingParams(temperature=0, max_tokens=room, ignore_eos=True)
        return self._bounds.request(name, tokens, params)


def _open(start: Start) -> LLM:
    # Sequences whose prompt comes first generate while the others' prompts run: a token for each step of a prompt.
    prompts = -(-start.n_seqs * start.context // start.ubatch)
    # A page more for each: the scheduler admits a sequence only while every running one could take one more.
    context = start.context + prompts + 2 + PAGE_TOKENS
    options: dict[str, Any] = {
        "threads": start.threads,
        "isa": start.isa,
        "kv_type": start.kv_type,
        "max_context": context,
        "token_budget": max(start.ubatch, start.n_seqs),
        "max_sequences": start.n_seqs,
    }
    _, program = load_program(Path(start.model), 1)
    pages = start.n_seqs * -(-context // PAGE_TOKENS)
    memory = pages * page_bytes(program.kv, KVType(start.kv_type))
    return LLM(start.model, kv_memory_bytes=memory, **options)


def open_adapter(start: Start) -> Whole:
    """See peers.Adapter."""
    return Whole(start)
