"""Any schedule gives what each request gives alone, and no page is lost.

CPUINFER_CASES=500 runs 500 cases of each property and 10,000 requests in one engine (40 and 800 by default), and
CPUINFER_SEED=1 starts from that seed instead of one drawn and printed (pytest -s).
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
from cpuinfer.engine.sequence import Request, Sequence

CASES = int(os.environ.get("CPUINFER_CASES", "40"))
SEED = int(os.environ.get("CPUINFER_SEED") or int.from_bytes(os.urandom(4)))
_health = [HealthCheck.too_slow, HealthCheck.data_too_large]


def run_cases(**strategies: st.SearchStrategy[object]) -> Callable[[Callable[..., None]], object]:
    """A property of CASES cases from SEED, which is printed."""

    def wrap(test: Callable[..., None]) -> Callable[[], None]:
        options = settings(
            max_examples=CASES, deadline=None, database=None, suppress_health_check=_health
        )
        run = seed(SEED)(options(given(**strategies)(test)))

        def test_property() -> None:
            print(f"{test.__name__}: {CASES} cases, CPUINFER_SEED={SEED}")
            run()

        return test_property

    return wrap


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


def test_any_schedule_gives_what_each_request_gives_alone(clock: Clock) -> None:
    @run_cases(
        seed=st.integers(0, 2**32 - 1),
        n_jobs=st.integers(4, 9),
        tokens=st.sampled_from([70, 33, 16, 9, 4]),
        rows=st.sampled_from([8, 8, 4, 1]),
        pages=st.integers(9, 15),
        sequences=st.sampled_from([8, 8, 5, 2]),
        prefix_caching=st.booleans(),
        preemption=st.sampled_from(["auto", "auto", "swap", "recompute"]),
        swap_pages=st.sampled_from([100, 100, 10, 3]),
    )
    def schedules(seed: int, n_jobs: int, tokens: int, rows: int, **options: Any) -> None:
        draws = Random(seed)
        e = engine(tokens, rows, context=100, **options)
        e.costs.prefers_swap = lambda *_: draws.random() < 0.5  # type: ignore[method-assign]
        play(e, [draw_job(draws) for _ in range(n_jobs)], options["pages"], clock)
        seen.append(e)

    seen: list[Engine] = []
    schedules()
    counters = [e.scheduler.counters for e in seen]
    assert any(c.recomputed for c in counters) and any(c.swapped for c in counters)
    assert any(c.copies for c in counters) and any(c.prefix_hit for c in counters)


def test_many_requests_in_one_engine_leave_nothing(clock: Clock) -> None:
    """20 times CASES small requests, many of which begin alike, in a pool far too small for those at once."""
    print(f"{20 * CASES} requests, CPUINFER_SEED={SEED}")
    draws = Random(SEED)
    e = engine(40, 8, 14, 100, 6, preemption="auto", swap_pages=10)
    e.costs.prefers_swap = lambda *_: draws.random() < 0.5  # type: ignore[method-assign]
    for _ in range(CASES):
        work = [draw_job(draws) for _ in range(20)]
        for job in work:
            job.params = replace(job.params, max_tokens=draws.randrange(1, 21))
        play(e, work, 14, clock)
    counters = e.scheduler.counters
    assert counters.recomputed and counters.swapped and counters.copies and counters.prefix_hit
