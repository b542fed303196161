"""A step in which all there is decodes is the last one moved on, and never one too many."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from engine_cases import check, check_empty, check_pool, engine, request, run

from cpuinfer.config import SamplingParams
from cpuinfer.devices.base import Batch
from cpuinfer.engine.engine import Engine


def shown_batch(e: Engine) -> Batch:
    """Run a step; returns the batch that the device was shown."""
    run_it = Mock(side_effect=e.executable.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(e.executable, "run", run_it)
        e.step()
    check_pool(e)
    batch: Batch = run_it.call_args.args[0]
    return batch


@pytest.mark.parametrize("change", ["add", "fork", "abort", "preempt", None])
def test_a_decoding_step_is_the_last_one_moved_on_until_anything_changes(
    change: str | None,
) -> None:
    params = SamplingParams(seed=1, max_tokens=60, ignore_eos=True)
    e = engine(preemption="swap")
    one, other, late = (request([i] * 5, params, width=2) for i in range(3))
    e.add(one)
    e.add(other)
    e.step()
    first = shown_batch(e)
    assert shown_batch(e) is first
    match change:
        case "add":
            e.add(late)
        case "fork":
            e.scheduler.fork(one.sequences[0], 7)
        case "abort":
            e.abort(other)
        case "preempt":
            e.scheduler.preempt()
    assert (shown_batch(e) is first) == (change is None)
    batches = [shown_batch(e) for _ in range(20)]
    assert 2 <= len({id(batch) for batch in batches}) <= 4, "a new one where a page is full"
    run(e)
    check_empty(e)
    check(one)
    check(other)


def test_a_step_of_a_prompt_is_not_moved_on() -> None:
    e = engine(tokens=2)
    params = SamplingParams(seed=1, max_tokens=9, ignore_eos=True, prompt_logprobs=1)
    made = [request([i] * 7, params) for i in range(2)]
    for one in made:
        e.add(one)
    run(e)
    for one in made:
        check(one)


def test_a_decoding_step_that_failed_runs_again() -> None:
    e = engine()
    one = request([1] * 5, SamplingParams(seed=1, max_tokens=9, ignore_eos=True))
    e.add(one)
    for _ in range(3):
        e.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(e.executable, "run", Mock(side_effect=RuntimeError("no device")))
        with pytest.raises(RuntimeError, match="no device"):
            e.step()
    run(e)
    check(one)
