"""Shared, copied and swapped pages on a device with memory of its own: every KV type, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cpuinfer import LLM, SamplingParams
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sequence import Bounds, Sequence
from cpuinfer.graph.dtypes import KVType

PAGES = 14
PARAMS = SamplingParams(n=3, seed=5, max_tokens=44, logprobs=2, ignore_eos=True)
PROMPTS = [[i % 7 + k for i in range(n)] for k, n in enumerate((21, 37, 18, 33))]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    yield


def answers(llm: LLM, preemption: str, prefix_caching: bool) -> tuple[list[object], Engine]:
    """What all prompts give in one engine of few pages."""
    limits = replace(llm.limits, n_pages=PAGES)
    e = Engine(llm.executable, limits, 8, prefix_caching, preemption=preemption)
    bounds = Bounds(llm.program.vocab_size, 256, PAGES * 16, frozenset(), 40)
    made = [bounds.request(str(i), prompt, PARAMS) for i, prompt in enumerate(PROMPTS)]
    for one in made:
        e.add(one)
    while e.has_work:
        e.step()
    assert e.scheduler.pool.n_free == PAGES
    return [[_answer(sequence) for sequence in one.sequences] for one in made], e


def alone(llm: LLM) -> list[object]:
    """The same, each completion in an engine of its own, without anything to share."""

    def one(i: int, choice: int, limit: int) -> object:
        e = Engine(llm.executable, llm.limits, 1, prefix_caching=False)
        bounds = Bounds(llm.program.vocab_size, 256, llm.limits.n_pages * 16, frozenset(), 40)
        (sequence,) = bounds.request("x", PROMPTS[i], replace(PARAMS, n=1)).sequences
        sequence.choice, sequence.limit = choice, limit
        e.add(replace(bounds.request("x", PROMPTS[i], PARAMS), sequences=(sequence,)))
        while e.has_work:
            e.step()
        return _answer(sequence)

    bounds = Bounds(llm.program.vocab_size, 256, PAGES * 16, frozenset(), 40)
    limits = [bounds.request("x", prompt, PARAMS).sequences[0].limit for prompt in PROMPTS]
    return [[one(i, choice, limits[i]) for choice in range(3)] for i in range(len(PROMPTS))]


def _answer(sequence: Sequence) -> object:
    return sequence.tokens, sequence.logprobs, sequence.finish_reason


@pytest.mark.parametrize("kv_type", list(KVType))
def test_forks_and_preemption_change_no_bit(cache: None, tiny_model: Path, kv_type: KVType) -> None:
    options = {"device": "native", "threads": 1, "kv_type": kv_type, "token_budget": 24}
    with LLM(tiny_model, **options) as llm:
        want = alone(llm)
        for preemption in ("recompute", "swap"):
            for prefix_caching in (True, False):
                got, e = answers(llm, preemption, prefix_caching)
                counters = e.scheduler.counters
                assert got == want
                assert counters.copies
                assert counters.swapped if preemption == "swap" else counters.recomputed
