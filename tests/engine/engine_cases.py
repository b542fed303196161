"""Requests for an engine on the fake device, what each gives alone, and what must hold after every step."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fake_device import VOCAB, FakeDetokenizer, FakeExecutable, hash_logits
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import Limits
from cpuinfer.devices.sampling import Score
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.outputs import TextStream
from cpuinfer.engine.sampler import NumpySampler, TokenLogprob, logprobs, sample
from cpuinfer.engine.sequence import Bounds, Request, Sequence

EOS = frozenset({13, 14})
_numbers = itertools.count()


def bounds(context: int = 200, pages: int = 100) -> Bounds:
    return Bounds(VOCAB, context, pages * 16, EOS, default_max_tokens=40)


def engine(
    tokens: int = 64,
    rows: int = 8,
    pages: int = 100,
    context: int = 200,
    sequences: int = 8,
    prefix_caching: bool = True,
    *,
    preemption: str = "recompute",
    swap_pages: int = 100,
    swap_path: Path | None = None,
    max_waiting: int | None = None,
) -> Engine:
    limits = Limits(tokens, rows, pages, context)
    executable = FakeExecutable(limits)
    return Engine(
        executable,
        limits,
        sequences,
        prefix_caching,
        max_waiting=max_waiting,
        preemption=preemption,
        swap_bytes=swap_pages * executable.kv.image_bytes,
        swap_path=swap_path,
    )


def request(
    prompt: list[int], params: SamplingParams, limits: Bounds | None = None, **options: Any
) -> Request:
    """A request of its own name; options: those of Bounds.request."""
    return (limits or bounds()).request(
        str(next(_numbers)), prompt, params, FakeDetokenizer, **options
    )


def listed_logprobs(row: NDArray[np.float32], token: int, n: int) -> tuple[TokenLogprob, ...]:
    (scored,) = NumpySampler().score(row[None], [Score(0, token, n)])
    return logprobs(scored, token)


def alone(like: Sequence, begin: list[int] | None = None) -> Sequence:
    """The same completion by a loop without pages, batches or chunks; begin: what its text is forced to begin with."""
    params, prompt = like.params, like.prompt
    end_ids = params.stop_ids | (frozenset() if params.ignore_eos else EOS)
    text = TextStream(FakeDetokenizer(), params.stop_strings, params.include_stop_str_in_output)
    place = like.seed, like.choice
    sequence = Sequence(params, prompt, len(prompt), like.limit, end_ids, *place, text)
    for token in (begin or prompt)[len(prompt) :]:
        sequence.append(token, _listed(sequence, token))
    while sequence.finish_reason is None:
        row, tokens = hash_logits(sequence.tokens), sequence.tokens
        token = sample(row, params, tokens, len(prompt), end_ids, *place)
        sequence.append(token, _listed(sequence, token))
    return sequence


def _listed(sequence: Sequence, token: int) -> tuple[TokenLogprob, ...] | None:
    n = sequence.params.logprobs
    return None if n is None else listed_logprobs(hash_logits(sequence.tokens), token, n)


def check_pool(e: Engine) -> None:
    """The sequences in flight hold what is held; what they share is no longer written, or copied before."""
    scheduler = e.scheduler
    pool = scheduler.pool
    assert isinstance(e.executable, FakeExecutable)
    running = [sequence for group in scheduler.running for sequence in group.members]
    held = Counter(page for sequence in running for page in sequence.pages)
    assert all(pool.holders(page) == held[page] for page in range(pool.n_pages))
    assert pool.n_free == pool.n_pages - len(held)
    content = {known.page: tokens for _, tokens, known in pool.known()}
    for group in scheduler.running:
        shared = Counter(page for sequence in group.members for page in sequence.pages)
        for sequence in group.members:
            assert len(set(sequence.pages)) == len(sequence.pages)
            assert sequence.known * 16 <= sequence.computed
            kept = e.executable.tokens_of[np.array(sequence.pages, int)].reshape(-1)
            assert kept[: sequence.computed].tolist() == sequence.tokens[: sequence.computed]
            for i in range(sequence.computed // 16, len(sequence.pages)):
                page = sequence.pages[i]
                # Another group's page holds this sequence's own tokens to its end, and is copied before it is written.
                if held[page] != shared[page]:
                    assert content.get(page) == tuple(sequence.tokens[16 * i : 16 * i + 16])
            for page in sequence.pages[-(-sequence.computed // 16) :]:
                assert held[page] == 1, "a page that will be written is shared"
    check_known(e)
    idle = [s for g in (*scheduler.preempted, *scheduler.waiting) for s in g.members]
    idle += [s for g in (*scheduler.running, *scheduler.preempted) for s in g.unborn]
    assert all(not sequence.pages and sequence.computed == 0 for sequence in idle)
    groups = [*scheduler.running, *scheduler.preempted, *scheduler.waiting]
    assert Counter(s for g in groups for s in g.sequences) == Counter(scheduler.sequences)
    assert not any(g.parked for g in (*scheduler.running, *scheduler.waiting))
    area = scheduler.area
    if area is not None:
        slots = [{s for kept, _ in g.parked.values() for s in kept} for g in scheduler.preempted]
        assert area.n_slots - area.n_free == sum(map(len, slots)) == len(set().union(*slots))
    n = sum(group.size for group in scheduler.running)
    assert n <= scheduler.max_sequences or len(scheduler.running) == 1


def check_known(e: Engine) -> None:
    """The pages that others may find hold what they are known for."""
    assert isinstance(e.executable, FakeExecutable)
    for _, tokens, known in e.scheduler.pool.known():
        assert e.executable.tokens_of[known.page].tolist() == list(tokens)


def check_empty(e: Engine) -> None:
    """Nothing is left of any request."""
    scheduler = e.scheduler
    assert not e.has_work and not scheduler.sequences
    assert scheduler.pool.n_free == scheduler.pool.n_pages and scheduler.wasted_slots == 0
    assert scheduler.area is None or scheduler.area.n_free == scheduler.area.n_slots


def run(e: Engine, most: int = 20_000) -> None:
    for _ in range(most):
        if not e.has_work:
            return
        assert e.step(), "a step without work"
        check_pool(e)
    raise AssertionError("no end")


def most_held(e: Engine) -> int:
    """Run to the end; the most pages that were held after a step."""
    pool, most = e.scheduler.pool, 0
    while e.has_work:
        e.step()
        check_pool(e)
        most = max(most, pool.n_pages - pool.n_free)
    return most


CUT_OFF = ("abort", "timeout")


def check(made: Request) -> None:
    """The request's completions are those of running alone; those that were cut off, their beginnings."""
    for sequence in made.sequences:
        check_sequence(sequence)
    first = made.sequences[0]
    n = first.params.prompt_logprobs
    if n is None:
        assert first.prompt_logprobs is None
        return
    assert first.prompt_logprobs is not None
    if first.finish_reason not in CUT_OFF:
        assert len(first.prompt_logprobs) == first.n_prompt
    assert first.prompt_logprobs == [None] + [
        listed_logprobs(hash_logits(first.prompt[:i]), first.prompt[i], n)
        for i in range(1, len(first.prompt_logprobs))
    ]


def check_sequence(got: Sequence, begin: list[int] | None = None) -> None:
    want = alone(got, begin)
    if got.finish_reason in CUT_OFF or got.finish_reason is None:
        assert got.tokens == want.tokens[: len(got.tokens)]
        assert got.logprobs == want.logprobs[: len(got.logprobs)]
        return
    assert got.tokens == want.tokens
    assert got.logprobs == want.logprobs
    assert got.stream.text == want.stream.text
    assert (got.finish_reason, got.stop_reason) == (want.finish_reason, want.stop_reason)


def draw_params(draws: Random) -> SamplingParams:
    """Any parameters that change what a schedule does."""
    n, temperature = draws.choice([(1, 0.0), (1, 1.0), (1, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)])
    return SamplingParams(
        n=n,
        temperature=temperature,
        max_tokens=draws.choice([None, 60, 60, 50, 40, 33, 33, 17, 5, 1]),
        top_k=draws.choice([0, 5]),
        repetition_penalty=draws.choice([1.0, 1.0, 1.3]),
        seed=draws.randrange(10),
        stop=draws.choice([None, None, None, None, "ab", ["ca", "bc"]]),
        stop_token_ids=draws.choice([None, None, None, [20, 21]]),
        include_stop_str_in_output=draws.random() < 0.5,
        ignore_eos=draws.random() < 0.9,
        logprobs=draws.choice([None, None, 0, 3]),
        prompt_logprobs=draws.choice([None, None, 2]),
    )


def draw_prompt(draws: Random) -> list[int]:
    """Most begin alike, for as long as a page or three, and go on as they like."""
    head = [draws.randrange(2)] * draws.choice([0, 0, 0, 0, 12, 16, 20, 33, 48])
    return head + [draws.randrange(VOCAB) for _ in range(draws.randrange(1, 13))]
