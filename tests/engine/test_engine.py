"""Any schedule gives what each request gives alone, and no page is lost."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fake_device import VOCAB, FakeDetokenizer, FakeExecutable, hash_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import Batch, Limits
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
) -> Engine:
    limits = Limits(tokens, rows, pages, context)
    return Engine(FakeExecutable(limits), limits, sequences, prefix_caching)


def request(prompt: list[int], params: SamplingParams, limits: Bounds | None = None) -> Request:
    return (limits or bounds()).request(str(next(_numbers)), prompt, params, FakeDetokenizer)


def listed_logprobs(row: NDArray[np.float32], token: int, n: int) -> tuple[TokenLogprob, ...]:
    (scored,) = NumpySampler().score(row[None], [Score(0, token, n)])
    return logprobs(scored, token)


def alone(
    prompt: list[int], params: SamplingParams, choice: int, seed: int, limit: int
) -> Sequence:
    """The same completion by a loop without pages, batches or chunks."""
    end_ids = params.stop_ids | (frozenset() if params.ignore_eos else EOS)
    text = TextStream(FakeDetokenizer(), params.stop_strings, params.include_stop_str_in_output)
    sequence = Sequence(params, prompt.copy(), len(prompt), limit, end_ids, seed, choice, text)
    while sequence.finish_reason is None:
        row = hash_logits(sequence.tokens)
        token = sample(row, params, sequence.tokens, len(prompt), sequence.end_ids, seed, choice)
        listed = None if params.logprobs is None else listed_logprobs(row, token, params.logprobs)
        sequence.append(token, listed)
    return sequence


def check_pool(e: Engine) -> None:
    """The sequences in flight hold what is held; what they share is no longer written, or copied before."""
    scheduler = e.scheduler
    pool = scheduler.pool
    running = [sequence for group in scheduler.running for sequence in group.members]
    held = Counter(page for sequence in running for page in sequence.pages)
    assert all(pool.holders(page) == held[page] for page in range(pool.n_pages))
    assert pool.n_free == pool.n_pages - len(held)
    for group in scheduler.running:
        shared = Counter(page for sequence in group.members for page in sequence.pages)
        for sequence in group.members:
            assert len(set(sequence.pages)) == len(sequence.pages)
            assert sequence.known * 16 <= sequence.computed
            for page in sequence.pages[sequence.known :]:
                assert held[page] == shared[page], "a page that may be written is another group's"
            for page in sequence.pages[-(-sequence.computed // 16) :]:
                assert held[page] == 1, "a page that will be written is shared"
    idle = [s for g in (*scheduler.preempted, *scheduler.waiting) for s in g.members]
    idle += [s for g in (*scheduler.running, *scheduler.preempted) for s in g.unborn]
    assert all(not sequence.pages and sequence.computed == 0 for sequence in idle)
    n = sum(group.size for group in scheduler.running)
    assert n <= scheduler.max_sequences or len(scheduler.running) == 1


def run(e: Engine, most: int = 20_000) -> None:
    for _ in range(most):
        if not e.has_work:
            return
        assert e.step(), "a step without work"
        check_pool(e)
    raise AssertionError("no end")


def check(made: Request) -> None:
    """The request's completions are those of running alone, but for those that were cut off."""
    for sequence in made.sequences:
        if sequence.finish_reason == "abort":
            continue
        params = sequence.params
        want = alone(sequence.prompt, params, sequence.choice, sequence.seed, sequence.limit)
        got = (
            sequence.tokens,
            sequence.logprobs,
            sequence.stream.text,
            sequence.finish_reason,
            sequence.stop_reason,
        )
        assert got == (
            want.tokens,
            want.logprobs,
            want.stream.text,
            want.finish_reason,
            want.stop_reason,
        )
    first = made.sequences[0]
    n = first.params.prompt_logprobs
    if n is None:
        assert first.prompt_logprobs is None
    elif first.finish_reason != "abort":
        assert first.prompt_logprobs == [None] + [
            listed_logprobs(hash_logits(first.prompt[:i]), first.prompt[i], n)
            for i in range(1, first.n_prompt)
        ]


def choose_params(n: int, temperature: float, **options: object) -> SamplingParams:
    n = n if temperature else 1
    return SamplingParams(n=n, temperature=temperature, **options)  # type: ignore[arg-type]


sampling = st.builds(
    choose_params,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    max_tokens=st.one_of(st.none(), st.integers(1, 40)),
    temperature=st.sampled_from([0.0, 1.0]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 9),
    stop=st.sampled_from([None, "ab", ["ca", "bc"]]),
    stop_token_ids=st.sampled_from([None, [20, 21]]),
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 0, 3]),
    prompt_logprobs=st.sampled_from([None, None, 2]),
)
# Many begin alike, for as long as a page or three, and go on as they like.
prompts = st.builds(
    lambda head, n, tail: [*[head] * n, *tail],
    st.integers(0, 2),
    st.integers(0, 48),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
) | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    work=st.lists(st.tuples(prompts, sampling, st.integers(0, 15)), min_size=1, max_size=7),
    tokens=st.integers(1, 70),
    rows=st.integers(1, 8),
    pages=st.integers(12, 30),
    sequences=st.integers(1, 8),
    prefix_caching=st.booleans(),
)
def test_any_schedule_gives_what_each_request_gives_alone(
    work: list[tuple[list[int], SamplingParams, int]],
    tokens: int,
    rows: int,
    pages: int,
    sequences: int,
    prefix_caching: bool,
) -> None:
    e = engine(tokens, rows, pages, 100, sequences, prefix_caching)
    limits = bounds(context=100, pages=pages)
    made = []
    for prompt, params, steps in work:
        made.append(request(prompt, params, limits))
        e.add(made[-1])
        for _ in range(steps):
            if e.has_work:
                e.step()
                check_pool(e)
    run(e)
    for one in made:
        assert one.done
        check(one)
    assert e.scheduler.pool.n_free == pages


@settings(max_examples=80, deadline=None)
@given(
    work=st.lists(st.tuples(prompts, sampling, st.integers(0, 25)), min_size=2, max_size=6),
    victims=st.sets(st.integers(0, 5), min_size=1),
    pages=st.integers(12, 16),
)
def test_an_abort_frees_pages_and_changes_nobody_else(
    work: list[tuple[list[int], SamplingParams, int]], victims: set[int], pages: int
) -> None:
    e = engine(tokens=16, rows=4, pages=pages, context=100)
    limits = bounds(context=100, pages=pages)
    made = [request(prompt, params, limits) for prompt, params, _ in work]
    for one in made:
        e.add(one)
    for i, (_, _, steps) in enumerate(work):
        for _ in range(steps):
            if e.has_work:
                e.step()
        if i in victims:
            e.abort(made[i])
            check_pool(e)
    run(e)
    for one in made:
        check(one)
    assert e.scheduler.pool.n_free == pages


def test_completions_of_one_prompt_differ_and_repeat() -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=10, ignore_eos=True)
    e, one = engine(), request([1, 2, 3], params)
    e.add(one)
    run(e)
    check(one)
    assert len({tuple(s.tokens) for s in one.sequences}) == 3
    assert [s.choice for s in one.sequences] == [0, 1, 2]


def test_a_prompt_that_begins_as_an_earlier_one_starts_behind_it() -> None:
    params = SamplingParams(max_tokens=5, seed=1, ignore_eos=True)
    head = list(range(50))
    for prefix_caching in (True, False):
        e = engine(tokens=100, prefix_caching=prefix_caching)
        made = [request([*head, *tail], params) for tail in ([1] * 20, [2] * 20, [1] * 20)]
        for one in made:
            e.add(one)
            run(e)
            check(one)
        cached = [one.sequences[0].cached for one in made]
        assert cached == ([0, 48, 64] if prefix_caching else [0, 0, 0])
        assert isinstance(e.executable, FakeExecutable)
        assert e.executable.tokens == 3 * (70 + 4) - sum(cached)


def test_of_a_whole_known_prompt_the_last_token_is_computed() -> None:
    e = engine()
    prompt = list(range(48))
    for want in (0, 32):
        one = request(prompt, SamplingParams(max_tokens=3, seed=1))
        e.add(one)
        run(e)
        check(one)
        assert one.sequences[0].cached == want


def test_completions_of_one_prompt_share_its_pages() -> None:
    e, one = engine(tokens=200), request([3] * 64, SamplingParams(n=3, seed=5, max_tokens=8))
    e.add(one)
    e.step()
    check_pool(e)
    (group,) = e.scheduler.running
    first, *others = (sequence.pages for sequence in group.members)
    assert len(others) == 2 and all(pages == first[:4] for pages in others)
    run(e)
    check(one)
    assert isinstance(e.executable, FakeExecutable)
    assert e.executable.tokens == 64 + 2 + 3 * 7, "each draws from a row of its own"


def test_eight_completions_hold_the_pages_of_one_prompt() -> None:
    prompt = [i % VOCAB for i in range(512)]
    params = SamplingParams(n=8, seed=1, max_tokens=64, ignore_eos=True)
    for prefix_caching in (True, False):
        e = engine(600, pages=300, context=600, prefix_caching=prefix_caching)
        one = request(prompt, params, bounds(context=600, pages=300))
        e.add(one)
        most = 0
        while e.has_work:
            e.step()
            check_pool(e)
            most = max(most, e.scheduler.pool.n_pages - e.scheduler.pool.n_free)
        check(one)
        # Unshared they would hold 8 * 36. The page that ends the prompt is full again, and found, or each has its own.
        assert most == (32 + 8 * 4 if prefix_caching else 31 + 8 * 5)
        assert isinstance(e.executable, FakeExecutable)
        assert e.executable.tokens == 512 + 7 + 8 * 63


@settings(max_examples=60, deadline=None)
@given(data=st.data(), pages=st.integers(14, 20), prefix_caching=st.booleans())
def test_forks_go_on_by_themselves(data: st.DataObject, pages: int, prefix_caching: bool) -> None:
    """A tree of completions, each as if it had started with its parent's text; some are cut off."""
    e = engine(tokens=32, pages=pages, context=100, prefix_caching=prefix_caching)
    params = SamplingParams(seed=data.draw(st.integers(0, 9)), max_tokens=30, ignore_eos=True)
    others = [request([i] * 20, params, bounds(context=100, pages=pages)) for i in range(2)]
    first = request(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40)), params)
    first = replace(first, width=3)
    for one in (first, *others):
        e.add(one)
    tree: list[tuple[Sequence, list[int]]] = [(first.sequences[0], first.sequences[0].prompt)]
    while e.has_work:
        e.step()
        check_pool(e)
        alive = [sequence for sequence in e.scheduler.unfinished(first) if sequence.computed]
        if alive and len(tree) < 9 and data.draw(st.booleans()):
            if len(alive) == 3:
                victim = data.draw(st.sampled_from(alive))
                e.scheduler.remove(victim)
                tree = [(sequence, begin) for sequence, begin in tree if sequence is not victim]
                alive.remove(victim)
            parent = data.draw(st.sampled_from(alive))
            child = e.scheduler.fork(parent, choice=10 + len(tree))
            tree.append((child, parent.tokens.copy()))
            check_pool(e)
    for one in others:
        check(one)
    for sequence, begin in tree:
        tokens = begin.copy()
        while len(tokens) < sequence.limit:
            row, place = hash_logits(tokens), (sequence.seed, sequence.choice)
            tokens.append(sample(row, params, tokens, sequence.n_prompt, frozenset(), *place))
        assert sequence.tokens == tokens
        assert sequence.stream.text == "".join(
            FakeDetokenizer.TEXT[token] for token in tokens[sequence.n_prompt :]
        )
    assert e.scheduler.pool.n_free == pages


def test_pages_of_who_was_sent_back_are_found_again() -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    computed = []
    for prefix_caching in (False, True):
        e = engine(tokens=32, pages=12, context=100, prefix_caching=prefix_caching)
        made = [request([i] * 20, params, bounds(context=100, pages=12)) for i in range(4)]
        for one in made:
            e.add(one)
        run(e)
        for one in made:
            check(one)
        assert isinstance(e.executable, FakeExecutable)
        computed.append(e.executable.tokens)
    assert computed[0] > 4 * 79, "nobody was sent back"
    assert computed[1] < computed[0]


def test_preemption_happens_and_is_exact() -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    e = engine(tokens=32, pages=8, context=100)
    limits = bounds(context=100, pages=8)
    made = [request([i] * 20, params, limits) for i in range(4)]
    for one in made:
        e.add(one)
    while e.has_work:
        e.step()
        check_pool(e)
    assert e.scheduler.counters.preemptions > 0
    for one in made:
        check(one)
    ends = [one.sequences[0].finished or 0 for one in made]
    assert ends == sorted(ends), "first come, first served"


def test_prompts_are_cut_to_the_token_budget_while_others_decode() -> None:
    e = engine(tokens=8)
    first = request([1], SamplingParams(max_tokens=30, ignore_eos=True))
    e.add(first)
    e.step()
    e.add(request(list(range(40)), SamplingParams(max_tokens=2, ignore_eos=True)))
    sizes = [len(e.step()) for _ in range(6)]
    assert sizes == [2] * 6
    assert len(first.sequences[0].generated) == 7
    assert isinstance(e.executable, FakeExecutable) and e.executable.most_tokens == 8


def test_logits_of_a_prompt_go_through_steps_of_few_rows() -> None:
    e = engine(tokens=64, rows=8)
    tokens = list(range(30))
    one = bounds().scoring_request("x", tokens)
    e.add(one)
    run(e)
    want = np.array([hash_logits(tokens[: i + 1]) for i in range(30)])
    assert (one.sequences[0].logits == want).all()
    assert isinstance(e.executable, FakeExecutable) and e.executable.steps == 4


def test_a_sequence_can_fill_the_context_and_the_pool() -> None:
    limits = bounds(context=64, pages=3)
    one = request([1] * 10, SamplingParams(max_tokens=1000, ignore_eos=True, temperature=0), limits)
    e = engine(context=64, pages=3)
    e.add(one)
    run(e)
    assert len(one.sequences[0].tokens) == 49  # 48 computed, and one that never is
    assert one.sequences[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1, VOCAB], f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([-1], "token id -1"),
        ([1] * 64, "64 tokens do not fit the context of 64"),
        ([1] * 49, "49 tokens do not fit the KV pages for 48 tokens"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bounds(context=64, pages=3).request("x", prompt, SamplingParams(), FakeDetokenizer)


def test_parameters_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="stop_token_ids"):
        bounds().request("x", [1], SamplingParams(stop_token_ids=[VOCAB]), FakeDetokenizer)
    with pytest.raises(ValueError, match="logit_bias"):
        bounds().request("x", [1], SamplingParams(logit_bias={VOCAB: 1.0}), FakeDetokenizer)
    with pytest.raises(ValueError, match="need a tokenizer"):
        bounds().request("x", [1], SamplingParams(stop="x"))


def test_a_failed_step_commits_nothing_and_can_be_repeated() -> None:
    e = engine(tokens=16)
    made = [request([i] * 20, SamplingParams(seed=i, max_tokens=9)) for i in range(3)]
    for one in made:
        e.add(one)
    run_step = e.executable.run

    def fail_sometimes(batch: Batch) -> NDArray[np.float32]:
        logits = run_step(batch)
        if next(turns) % 3 == 0:
            raise OSError("broken")
        return logits

    turns = itertools.count(1)
    e.executable.run = fail_sometimes  # type: ignore[method-assign]
    failed = 0
    while e.has_work:
        try:
            e.step()
        except OSError:
            failed += 1
        check_pool(e)
    assert failed > 2
    for one in made:
        check(one)


def test_nothing_ends_before_min_tokens() -> None:
    free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[])
    e, one = engine(), request([7], free)
    e.add(one)
    run(e)
    (first,) = one.sequences
    letters = FakeDetokenizer.TEXT
    stops = {letters[t] for t in first.generated[:5]} - {""}
    for n in (0, 5):
        params = SamplingParams(
            temperature=0, max_tokens=12, ignore_eos=True, stop=stops, min_tokens=n
        )
        e, one = engine(), request([7], params)
        e.add(one)
        run(e)
        (sequence,) = one.sequences
        if n == 0:
            assert sequence.stream.text == "" and sequence.finish_reason == "stop"
        else:
            assert len(sequence.generated) > 5
            assert sequence.tokens == first.tokens[: len(sequence.tokens)]
    early = SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=first.generated, min_tokens=4
    )
    e, one = engine(), request([7], early)
    e.add(one)
    run(e)
    generated = one.sequences[0].generated
    assert len(generated) >= 4 and not set(generated[:4]) & set(first.generated)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    seeds = {request([1], SamplingParams()).sequences[0].seed for _ in range(4)}
    assert len(seeds) == 4 and all(0 <= seed < 1 << 64 for seed in seeds)
