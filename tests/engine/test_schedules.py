"""Any schedule gives what each request gives alone, and no page is lost.

A few cases by default; 500, and 10,000 requests in one engine, by `pytest -m slow tests/engine/test_schedules.py`.
CPUINFER_CASES=20000 before that runs as many instead (of the first property only: -k any_schedule). The few have a fixed
seed; of many it is drawn, and printed (-s); CPUINFER_SEED=1 sets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from engine_cases import (
    bounds,
    check,
    check_empty,
    check_pool,
    check_sequence,
    draw_params,
    draw_prompt,
    engine,
    request,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cpuinfer.config import SamplingParams
from cpuinfer.engine.engine import Engine
from cpuinfer.engine.preemption import Counters
from cpuinfer.engine.sequence import Request, Sequence

MANY = int(os.environ.get("CPUINFER_CASES", "500"))
FEW = 30
_health = [HealthCheck.too_slow, HealthCheck.data_too_large]


few_and_many = pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def drawn_seed(n: int) -> int:
    """The seed of n cases, which is printed."""
    drawn = 4 if n == FEW else int.from_bytes(os.urandom(4))
    drawn = int(os.environ.get("CPUINFER_SEED", drawn))
    print(f"{n} cases, CPUINFER_SEED={drawn}")
    return drawn


def run_cases(n: int, test: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Run n cases of a property."""
    options = settings(max_examples=n, deadline=None, database=None, suppress_health_check=_health)
    seed(drawn_seed(n))(options(given(**strategies)(test)))()


@dataclass
class Clock:
    """Steps so far, as seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Job:
    """A request of a case. It comes `steps` steps after the one before; at its own step `at` its fate comes upon it."""

    prompt: list[int]
    params: SamplingParams
    steps: int
    priority: int
    fate: str
    at: int
    made: Request | None = None
    age: int = 0
    forks: list[tuple[Sequence, list[int]]] = field(default_factory=list)

    def meet(self, e: Engine) -> bool:
        """Let time go on by a step; returns whether anything happened."""
        assert self.made is not None
        self.age += 1
        if not self.fate or self.age % self.at:
            return False
        alive = e.scheduler.unfinished(self.made)
        if self.fate == "abort":
            e.abort(self.made)
        elif self.fate == "cut" and alive:
            e.scheduler.remove(alive[-1])
            alive[-1].finish("abort")
        elif self.fate == "fork":
            ready = [s for s in alive if s.computed >= s.n_prompt]
            for choice in range(len(alive), self.made.width or 0):
                if ready and len(self.forks) < 4:
                    parent = ready[self.age % len(ready)]
                    child = e.scheduler.fork(parent, 10 + choice + self.age)
                    self.forks.append((child, child.tokens.copy()))
        return True


FATES = ["", "", "", "", "abort", "cut", "fork", "timeout"]


def draw_job(draws: Random) -> Job:
    """Any job."""
    prompt, params = draw_prompt(draws), draw_params(draws)
    steps, at = draws.choice([0, 0, 0, 1, 2, 5]), draws.randrange(1, 26)
    return Job(prompt, params, steps, draws.choice([0, 0, 0, -1, 2]), draws.choice(FATES), at)


def play(e: Engine, work: list[Job], pages: int, clock: Clock) -> None:
    """Run all jobs to their ends, looking at the pool after every step."""

    def step(playing: list[Job]) -> None:
        clock.now += 1
        if e.has_work:
            assert e.step(), "a step without work"
        check_pool(e)
        for job in playing:
            if job.meet(e):
                check_pool(e)

    limits = bounds(context=100, pages=pages)
    for i, job in enumerate(work):
        width = job.params.n + 1 if job.fate == "fork" else None
        made = request(job.prompt, job.params, limits, priority=job.priority, width=width)
        timeout = job.at if job.fate == "timeout" else None
        job.made = replace(made, created=clock.now, timeout_s=timeout)
        e.add(job.made)
        for _ in range(job.steps):
            step(work[: i + 1])
    for _ in range(20_000):
        if not e.has_work:
            break
        step(work)
    check_empty(e)
    for job in work:
        assert job.made is not None and job.made.done
        check(job.made)
        for child, begin in job.forks:
            check_sequence(child, begin)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cpuinfer.engine.engine.perf_counter", made)
    return made


@few_and_many
def test_any_schedule_gives_what_each_request_gives_alone(clock: Clock, n: int) -> None:
    def schedules(seed: int, n_jobs: int, tokens: int, rows: int, **options: Any) -> None:
        draws = Random(seed)
        e = engine(tokens, rows, context=100, **options)
        e.costs.prefers_swap = lambda *_: draws.random() < 0.5  # type: ignore[method-assign]
        play(e, [draw_job(draws) for _ in range(n_jobs)], options["pages"], clock)
        seen.append(e.scheduler.counters)

    seen: list[Counters] = []
    run_cases(
        n,
        schedules,
        seed=st.integers(0, 2**32 - 1),
        n_jobs=st.integers(4, 7),
        tokens=st.sampled_from([70, 33, 16, 9]),
        rows=st.sampled_from([8, 8, 4, 1]),
        pages=st.integers(9, 13),
        sequences=st.sampled_from([8, 8, 8, 3]),
        prefix_caching=st.booleans(),
        preemption=st.sampled_from(["auto", "auto", "swap", "recompute"]),
        swap_pages=st.sampled_from([100, 100, 10, 3]),
    )
    print({name: sum(getattr(c, name) > 0 for c in seen) for name in vars(Counters())})
    assert all(any(getattr(c, name) for c in seen) for name in vars(Counters()))


@few_and_many
def test_many_requests_in_one_engine_leave_nothing(clock: Clock, n: int) -> None:
    """20 n requests, many of which begin alike, in a pool far too small for those at once."""
    draws = Random(drawn_seed(n))
    e = engine(64, 8, 14, 100, 8, preemption="auto", swap_pages=12)
    e.costs.prefers_swap = lambda *_: draws.random() < 0.5  # type: ignore[method-assign]
    for _ in range(n):
        work = [draw_job(draws) for _ in range(20)]
        for job in work:
            few = draws.random() < 0.75
            job.params = replace(
                job.params,
                n=1 if few else job.params.n,
                max_tokens=draws.randrange(1, 6) if few else draws.randrange(33, 50),
                logprobs=None,
                prompt_logprobs=None,
                repetition_penalty=1.0,
            )
        play(e, work, 14, clock)
    print(e.scheduler.counters)
    assert all(vars(e.scheduler.counters).values())
