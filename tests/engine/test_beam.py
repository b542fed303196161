"""Beam search equals its definition, written out without pages, batches or lists of the likeliest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_cases import (
    EOS,
    bounds,
    check,
    check_empty,
    check_pool,
    engine,
    most_held,
    request,
    run,
)
from fake_device import VOCAB, FakeDetokenizer, FakeExecutable, hash_logits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpuinfer import LLM
from cpuinfer.config import BeamSearchParams, SamplingParams
from cpuinfer.devices.sampling import Score
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.sampler import NumpySampler, likeliest
from cpuinfer.engine.sequence import Bounds, Request

Line = tuple[float, list[int]]  # a log-probability, and the tokens that have it


def beam_request(
    prompt: list[int], params: BeamSearchParams, limits: Bounds | None = None
) -> Request:
    return (limits or bounds()).request("beams", prompt, params, FakeDetokenizer)


def text_of(tokens: list[int]) -> str:
    return "".join(FakeDetokenizer.TEXT[token] for token in tokens)


def every_logprob(tokens: list[int], vocab: int) -> dict[int, float]:
    row = hash_logits(tokens, vocab)
    (scored,) = NumpySampler().score(row[None], [Score(0, 0, vocab)])
    return {entry.token: entry.logprob for entry in likeliest(scored)}


def naive(
    prompt: list[int], params: BeamSearchParams, most: int, vocab: int = VOCAB
) -> list[tuple[float, list[int]]]:
    """(score, generated tokens) of the hypotheses, best first: transformers' search, from all continuations."""
    width, power = params.beam_width, params.length_penalty
    ends = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else EOS)
    stops = tuple(params.stop or ())
    running: list[Line] = [(0.0, [])]
    finished: list[Line] = []
    n = 0
    while True:
        n += 1
        # sorted() is stable: equals stay in the order of their beams, and of their tokens.
        everything: list[Line] = []
        for total, tokens in running:
            after = every_logprob(prompt + tokens, vocab)
            everything += [(total + after[token], [*tokens, token]) for token in range(vocab)]
        everything = sorted(everything, key=lambda line: -line[0])
        top = everything[: max(2, 1 + len(ends)) * width]
        ended = [
            tokens[-1] in ends or n == most or any(stop in text_of(tokens) for stop in stops)
            for _, tokens in top
        ]
        running = [line for line, end in zip(top, ended, strict=True) if not end][:width]
        finished += [
            (total / n**power, tokens)
            for (total, tokens), end in zip(top[:width], ended, strict=False)
            if end
        ]
        finished = sorted(finished, key=lambda line: -line[0])[:width]
        if not running:
            return finished
        if len(finished) == width:
            if params.early_stopping is True:
                return finished
            best = most if params.early_stopping == "never" and power > 0 else n
            if running[0][0] / best**power <= finished[-1][0]:
                return finished


def check_beams(made: Request, params: BeamSearchParams) -> None:
    first = made.sequences[0]
    want = naive(first.prompt, params, first.limit - first.n_prompt)
    search = first.search
    assert search is not None and made.done
    assert [(h.score, h.sequence.generated) for h in search.hypotheses] == want
    assert [s.generated for s in made.completions] == [tokens for _, tokens in want]
    for sequence in made.completions:
        own = [entries[0] for entries in sequence.logprobs]
        assert [entry.token for entry in own] == sequence.generated
        tokens = first.prompt.copy()
        for entry in own:
            assert entry.logprob == every_logprob(tokens, VOCAB)[entry.token]
            tokens.append(entry.token)
        whole, stops = text_of(sequence.generated), params.stop or ()
        if sequence.finish_reason == "length":
            assert sequence.stream.text == whole and len(sequence.tokens) == sequence.limit
        elif isinstance(sequence.stop_reason, str):
            assert sequence.stop_reason in stops and sequence.stop_reason in whole
            assert not any(stop in sequence.stream.text for stop in stops)
        else:
            assert sequence.stream.text == text_of(sequence.generated[:-1])


beams = st.builds(
    BeamSearchParams,
    beam_width=st.integers(1, 5),
    max_tokens=st.integers(1, 14),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    ignore_eos=st.booleans(),
    stop=st.sampled_from([None, "ab", ["ca", "bc", "\u4e05"]]),
    stop_token_ids=st.sampled_from([None, range(20, 30), range(4, 62)]),
)
prompts = st.lists(st.integers(0, 5), min_size=1, max_size=45)


@settings(max_examples=120, deadline=None)
@given(
    work=st.lists(st.tuples(prompts, beams, st.integers(0, 6)), min_size=1, max_size=3),
    others=st.lists(st.tuples(prompts, st.integers(0, 6)), max_size=3),
    tokens=st.integers(1, 60),
    rows=st.integers(1, 8),
    pages=st.integers(15, 30),
    sequences=st.integers(1, 12),
    prefix_caching=st.booleans(),
    preemption=st.sampled_from(["recompute", "swap"]),
    swap_pages=st.integers(1, 60),
)
@example(  # a sibling begins with all but the last token of a page that another group has filled before
    work=[([0], BeamSearchParams(beam_width=1, max_tokens=1), 0)],
    others=[([0] * 16, 0), ([0] * 16, 0)],
    tokens=4,
    rows=3,
    pages=15,
    sequences=4,
    prefix_caching=True,
    preemption="recompute",
    swap_pages=1,
)
def test_any_schedule_gives_what_the_definition_gives(
    work: list[tuple[list[int], BeamSearchParams, int]],
    others: list[tuple[list[int], int]],
    tokens: int,
    rows: int,
    pages: int,
    sequences: int,
    prefix_caching: bool,
    preemption: str,
    swap_pages: int,
) -> None:
    e = engine(
        tokens,
        min(rows, tokens),
        pages,
        100,
        sequences,
        prefix_caching,
        preemption=preemption,
        swap_pages=swap_pages,
    )
    limits = bounds(context=100, pages=pages)
    plain = SamplingParams(seed=3, max_tokens=40, n=2, ignore_eos=True)
    made: list[tuple[Request, BeamSearchParams | None, int]] = []
    made += [(request(prompt, plain, limits), None, steps) for prompt, steps in others]
    made += [
        (beam_request(prompt, params, limits), params, steps) for prompt, params, steps in work
    ]
    for one, _, steps in made:
        e.add(one)
        for _ in range(steps):
            if e.has_work:
                e.step()
                check_pool(e)
    run(e)
    for one, params, _ in made:
        if params is None:
            check(one)
        else:
            check_beams(one, params)
    check_empty(e)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_preemption_happens_and_changes_nothing(preemption: str) -> None:
    limits = bounds(context=100, pages=14)
    e = engine(tokens=32, pages=14, context=100, preemption=preemption)
    params = BeamSearchParams(beam_width=3, max_tokens=40, ignore_eos=True)
    plain = SamplingParams(seed=1, max_tokens=70, ignore_eos=True)
    company = request([7] * 10, plain, limits)
    made = [beam_request([i] * 20, params, limits) for i in range(3)]
    for one in (company, *made):
        e.add(one)
    run(e)
    counters = e.scheduler.counters
    assert (counters.swapped if preemption == "swap" else counters.recomputed) > 0
    check(company)
    for one in made:
        check_beams(one, params)


def test_one_beam_is_greedy() -> None:
    params = BeamSearchParams(beam_width=1, max_tokens=20, ignore_eos=True)
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    e, search, plain = engine(), beam_request([1, 2], params), request([1, 2], greedy)
    e.add(search)
    e.add(plain)
    run(e)
    assert search.completions[0].tokens == plain.sequences[0].tokens


def test_ties_are_broken_by_beam_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(self: FakeExecutable, batch: Any) -> Any:
        rows = original(self, batch)
        rows[:] = 0
        return rows

    original = FakeExecutable.run
    monkeypatch.setattr(FakeExecutable, "run", flat)
    e = engine()
    one = beam_request([1], BeamSearchParams(beam_width=3, max_tokens=3, ignore_eos=True))
    e.add(one)
    run(e)
    assert [s.generated for s in one.completions] == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_beams_hold_the_pages_of_one_prompt() -> None:
    prompt, width, most = [i % VOCAB for i in range(512)], 4, 64
    params = BeamSearchParams(beam_width=width, max_tokens=most, ignore_eos=True)
    for prefix_caching in (True, False):
        e = engine(600, pages=200, context=600, prefix_caching=prefix_caching)
        one = beam_request(prompt, params, bounds(context=600, pages=200))
        e.add(one)
        held = most_held(e)
        check_beams(one, params)
        unshared = width * -(-(512 + most) // 16)
        assert held <= 32 + width * 5
        assert held <= 0.6 * unshared


def test_a_dead_beams_pages_are_free_within_the_step() -> None:
    """What is held is the pages of the beams that go on: check_pool counts them, and here nothing else runs."""
    e = engine(pages=60)
    one = beam_request([1] * 20, BeamSearchParams(beam_width=4, max_tokens=40, ignore_eos=True))
    e.add(one)
    search = one.sequences[0].search
    assert search is not None
    died = 0
    while e.has_work:
        before = list(search.beams)
        e.step()
        held = {page for beam in search.beams for page in beam.pages}
        assert e.scheduler.pool.n_pages - e.scheduler.pool.n_free == len(held)
        gone = [beam for beam in before if beam not in search.beams]
        assert all(not beam.pages and beam.finish_reason == "pruned" for beam in gone)
        died += len(gone)
    assert died > 4


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_abort_ends_a_search_and_frees_its_pages(steps: int) -> None:
    e = engine()
    params = BeamSearchParams(beam_width=3, max_tokens=30, ignore_eos=True)
    one, other = beam_request([1] * 20, params), beam_request([2] * 20, params)
    e.add(one)
    e.add(other)
    for _ in range(steps):
        e.step()
    assert not one.done
    e.abort(one)
    check_pool(e)
    assert one.done and {s.finish_reason for s in one.completions} == {"abort"}
    run(e)
    check_beams(other, params)
    assert e.scheduler.pool.n_free == e.scheduler.pool.n_pages


@pytest.mark.parametrize(
    "field",
    [
        {"beam_width": 0},
        {"max_tokens": 0},
        {"length_penalty": float("nan")},
        {"length_penalty": 11},
        {"early_stopping": "always"},
        {"early_stopping": 1},
        {"ignore_eos": 2},
        {"stop": [""]},
        {"stop_token_ids": [-1]},
    ],
)
def test_values_out_of_range_are_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 5, **field})


def test_beams_that_cannot_fit_at_once_are_refused() -> None:
    params = BeamSearchParams(beam_width=20, max_tokens=5)
    with pytest.raises(ValueError, match="beam_width: 20 "):
        beam_request([1] * 40, params, bounds(pages=12))


def drawn(e: Engine, params: SamplingParams) -> Request:
    one = request([1, 2, 3], params)
    e.add(one)
    run(e)
    return one


def test_best_of_returns_the_likeliest() -> None:
    options = {"seed": 5, "max_tokens": 12}
    every = drawn(engine(), SamplingParams(n=6, logprobs=0, **options)).sequences
    totals = {s.choice: sum(listed[0].logprob for listed in s.logprobs) for s in every}
    order = sorted(totals, key=lambda choice: -totals[choice])
    assert len(set(totals.values())) == 6
    for n in (1, 3, 6):
        best = drawn(engine(), SamplingParams(n=n, best_of=6, **options))
        assert [s.choice for s in best.completions] == order[:n]
        assert [s.tokens for s in best.completions] == [every[c].tokens for c in order[:n]]
        assert [s.cumulative_logprob for s in best.completions] == [totals[c] for c in order[:n]]


def test_best_of_takes_what_was_cut_off_last() -> None:
    e = engine()
    one = request([1, 2, 3], SamplingParams(best_of=4, seed=5, max_tokens=9))
    e.add(one)
    for _ in range(4):
        e.step()
    cut = [s for s in one.sequences if s.finish_reason is None][-1]
    e.scheduler.remove(cut)
    cut.finish("abort")
    run(e)
    assert one.completions[0] is not cut and cut.cumulative_logprob > -1000
    ranked = SamplingParams(n=4, best_of=4)
    for sequence in one.sequences:
        sequence.params = ranked
    assert one.completions[-1] is cut


@pytest.mark.parametrize(
    "field", [{"best_of": 0}, {"best_of": 1, "n": 2}, {"best_of": 2, "temperature": 0}]
)
def test_best_of_out_of_range_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="best_of"):
        SamplingParams(**field)


def test_an_llm_searches(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path))
    params = BeamSearchParams(beam_width=3, max_tokens=10)
    prompts = ["hello world", "hello", "a longer prompt, of more than a page of tokens " * 2]
    with LLM(tiny_model, token_budget=24, max_sequences=4) as llm:
        together = llm.beam_search(prompts, params)
        for output in together:
            (alone,) = llm.beam_search(output.prompt or "", params)
            assert alone.outputs == output.outputs
            assert [one.index for one in output.outputs] == [0, 1, 2]
            scores = []
            for one in output.outputs:
                assert one.logprobs is not None and one.cumulative_logprob is not None
                logprobs = zip(one.logprobs, one.token_ids, strict=True)
                assert one.cumulative_logprob == sum(e[t].logprob for e, t in logprobs)
                scores.append(one.cumulative_logprob / len(one.token_ids))
                assert one.finish_reason in ("stop", "length")
            assert scores == sorted(scores, reverse=True)
        with pytest.raises(ValueError, match="beam_width: 10000 "):
            llm.beam_search("hello", BeamSearchParams(beam_width=10_000, max_tokens=5))
        sampled = {"seed": 4, "max_tokens": 8, "ignore_eos": True}
        every = llm.generate("hello", SamplingParams(n=5, logprobs=0, **sampled))[0].outputs
        (best,) = llm.generate("hello", SamplingParams(best_of=5, **sampled))[0].outputs
        likeliest_one = max(every, key=lambda one: one.cumulative_logprob or -1e9)
        assert (best.index, best.token_ids) == (0, likeliest_one.token_ids)
        assert best.logprobs is None
        assert best.cumulative_logprob == likeliest_one.cumulative_logprob
        with pytest.raises(ValueError, match="n: "):
            llm.stream("hello", SamplingParams(best_of=2))
