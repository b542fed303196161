"""What the loop of an engine does with requests, one by one; test_schedules.py has any of them at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_cases import (
    bounds,
    check,
    check_empty,
    check_pool,
    check_sequence,
    engine,
    most_held,
    request,
    run,
)
from fake_device import VOCAB, FakeDetokenizer, FakeExecutable, hash_logits
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import Batch
from cpuinfer.engine.scheduler import QueueFull


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
    params = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True)
    e, one = engine(tokens=200), request([3] * 64, params)
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
        most = most_held(e)
        check(one)
        # Unshared they would hold 8 * 36. The page that ends the prompt is full again, and found, or each has its own.
        assert most == (32 + 8 * 4 if prefix_caching else 31 + 8 * 5)
        assert isinstance(e.executable, FakeExecutable)
        assert e.executable.tokens == 512 + 7 + 8 * 63


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
    assert e.scheduler.counters.recomputed > 0
    for one in made:
        check(one)
    ends = [one.sequences[0].finished or 0 for one in made]
    assert ends == sorted(ends), "first come, first served"


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("on_disk", [True, False])
def test_pages_come_back_from_the_swap_area(
    prefix_caching: bool, on_disk: bool, tmp_path: Path
) -> None:
    params = SamplingParams(seed=1, n=2, max_tokens=60, ignore_eos=True)
    path = tmp_path if on_disk else None
    e = engine(32, 8, 16, 100, prefix_caching=prefix_caching, preemption="swap", swap_path=path)
    made = [request([i] * 20, params, bounds(100, 16)) for i in range(3)]
    for one in made:
        e.add(one)
    run(e)
    check_empty(e)
    for one in made:
        check(one)
    counters = e.scheduler.counters
    assert counters.swapped > 0 == counters.recomputed and counters.swapped_pages > 0
    assert isinstance(e.executable, FakeExecutable)
    assert e.executable.tokens == 3 * (20 + 1 + 2 * 59), "nothing is computed twice"
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_a_page_that_comes_back_shared_is_copied_before_it_is_written() -> None:
    e = engine(preemption="swap", prefix_caching=False)
    one = request([1] * 20, SamplingParams(max_tokens=9, ignore_eos=True, seed=0), width=3)
    e.add(one)
    e.step()
    begin = one.sequences[0].tokens.copy()
    children = [e.scheduler.fork(one.sequences[0], choice) for choice in (1, 2)]
    e.scheduler.preempt()
    assert e.scheduler.n_swapped == 3
    assert isinstance(e.executable, FakeExecutable)
    e.executable.tokens_of[:] = -1
    run(e)
    check_empty(e)
    check(one)
    for child in children:
        check_sequence(child, begin)
    assert e.scheduler.counters.copies == 2


def test_where_the_swap_area_is_full_tokens_are_computed_anew() -> None:
    params = SamplingParams(seed=1, max_tokens=60, ignore_eos=True)
    e = engine(32, 8, 8, 100, preemption="swap", swap_pages=1)
    made = [request([i] * 20, params, bounds(100, 8)) for i in range(4)]
    for one in made:
        e.add(one)
    run(e)
    for one in made:
        check(one)
    assert e.scheduler.counters.recomputed > 0 == e.scheduler.counters.swapped


def test_an_abort_while_swapped_frees_the_slots() -> None:
    params = SamplingParams(seed=1, n=2, max_tokens=60, ignore_eos=True)
    e = engine(32, 8, 16, 100, preemption="swap")
    made = [request([i] * 20, params, bounds(100, 16)) for i in range(3)]
    for one in made:
        e.add(one)
    while not e.scheduler.n_swapped:
        e.step()
    (group,) = e.scheduler.preempted
    assert e.scheduler.n_swapped == 2
    e.scheduler.remove(group.members[0])
    check_pool(e)
    assert e.scheduler.n_swapped == 1
    e.abort(group.request)
    check_pool(e)
    assert e.scheduler.n_swapped == 0


def test_while_some_wait_for_their_pages_nothing_new_is_admitted() -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    e = engine(tokens=32, pages=8, context=100)
    made = [request([i] * 20, params, bounds(100, 8)) for i in range(3)]
    for one in made:
        e.add(one)
    while not e.scheduler.preempted:
        e.step()
    e.add(request([9], SamplingParams(max_tokens=1), priority=-1))
    while e.scheduler.preempted:
        assert len(e.scheduler.waiting) == 1
        e.step()
    run(e)


def test_lower_priorities_come_first_and_keep_their_pages() -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    e = engine(tokens=64, pages=8, context=100)
    made = [request([p] * 20, params, bounds(100, 8), priority=p) for p in (5, 0, 3, 0)]
    for one in made:
        e.add(one)
    run(e)
    ends = [one.sequences[0].finished or 0 for one in made]
    assert sorted(range(4), key=lambda i: ends[i]) == [1, 3, 2, 0]
    with pytest.raises(ValueError, match="priority: expected an integer"):
        request([1], params, priority=1.5)


def test_a_full_queue_refuses() -> None:
    e = engine(sequences=1, max_waiting=2)
    made = [request([i], SamplingParams(max_tokens=3)) for i in range(4)]
    e.add(made[0])
    e.add(made[1])
    with pytest.raises(QueueFull, match="2 requests wait, max_waiting is 2"):
        e.add(made[2])
    e.step()
    e.add(made[2])
    e.abort(made[3])
    assert made[3].sequences[0].finish_reason == "abort"
    run(e)
    check_empty(e)


def test_time_ends_requests_that_run_and_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100)
    monkeypatch.setattr("cpuinfer.engine.engine.perf_counter", lambda: next(clock))
    e = engine(sequences=1)
    params = SamplingParams(max_tokens=40, ignore_eos=True, seed=1)
    made = [request([1], params, timeout_s=t) for t in (30, 8, None)]
    made = [replace(one, created=100) for one in made]
    for one in made:
        e.add(one)
    run(e)
    reasons = [one.sequences[0].finish_reason for one in made]
    assert reasons == ["timeout", "timeout", "length"]
    assert 0 < len(made[0].sequences[0].generated) < 30 and not made[1].sequences[0].generated
    for one in made:
        check(one)
    last = replace(request([1], params, timeout_s=0), created=0)
    e.add(last)
    assert e.step() == list(last.sequences), "nothing runs, and that is said"
    check_empty(e)


def test_a_group_must_fit_the_pool_alone() -> None:
    params = SamplingParams(n=4, max_tokens=100, ignore_eos=True, seed=0)
    with pytest.raises(
        ValueError, match="4 completions of a prompt of 40 tokens need 6 KV pages.* there are 5"
    ):
        request([1] * 40, params, bounds(100, 5))
    one = request([1] * 40, params, bounds(100, 6))
    e = engine(pages=6, context=100)
    e.add(one)
    run(e)
    check(one)
    assert [s.finish_reason for s in one.sequences] == ["length"] * 4
    with pytest.raises(ValueError, match="4 sequences of 48 tokens need 6 KV pages"):
        engine(pages=5, context=100).add(request([1] * 40, params, bounds(100, 6)))


def test_forks_are_counted() -> None:
    e = engine()
    one = request([1] * 20, SamplingParams(max_tokens=9, ignore_eos=True, seed=0), width=2)
    e.add(one)
    (first,) = one.sequences
    with pytest.raises(ValueError, match="0 of 20 tokens of the prompt are computed"):
        e.scheduler.fork(first, 1)
    e.step()
    e.scheduler.fork(first, 1)
    with pytest.raises(ValueError, match="2 sequences of request .* are there already"):
        e.scheduler.fork(first, 2)
    assert e.scheduler.wasted_slots == 12
    e.abort(one)
    check_empty(e)


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


def test_a_known_page_stays_what_it_is_when_only_a_sibling_is_left() -> None:
    params = SamplingParams(seed=1, n=2, max_tokens=60, ignore_eos=True, temperature=2)
    e = engine()
    one = request([1] * 20, params)
    e.add(one)
    leader, child = one.sequences
    while len(leader.tokens) < 30:
        e.step()
    assert leader.tokens != child.tokens
    e.scheduler.preempt()
    leader.append(3, None)  # fills its page, where the child's is still to be written
    leader.append(4, None)
    e.step()
    e.scheduler.remove(leader)
    run(e)
    check_sequence(child)
