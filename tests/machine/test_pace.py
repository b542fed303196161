"""The number of threads that run: what a team's waits and the times of its steps decide. No clock: a simulated machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpuinfer.machine.pace import MOST_PATIENCE_S, TRIAL_S, Pace


class Machine:
    """Steps that take what `seconds` says for a number of threads; `waits` is the part of one that a thread waits."""

    def __init__(self, most: int, seconds: Callable[[int], float], waits: float) -> None:
        self.pace, self.seconds, self.waits = Pace(most), seconds, waits
        self.spent: dict[int, float] = {}

    def run(self, seconds: float, shape: object = "decode") -> None:
        while seconds > 0:
            threads = self.pace.threads
            step = self.seconds(threads)
            waited = self.waits * step if threads > 1 else 0.0
            self.spent[threads] = self.spent.get(threads, 0.0) + step
            self.pace.step(shape, step, waited)
            seconds -= step

    def share(self, threads: int) -> float:
        return self.spent.get(threads, 0.0) / sum(self.spent.values())


def shared(threads: int) -> float:
    """One of two processors is somebody else's half of the time."""
    return 0.011 if threads == 1 else 0.066


def quiet(threads: int) -> float:
    return 0.012 / threads


@pytest.mark.parametrize("most", [1, 2, 16])
def test_a_quiet_machine_keeps_all_threads(most: int) -> None:
    machine = Machine(most, quiet, 0.08)
    machine.run(60)
    assert machine.share(most) == 1


def test_waits_alone_take_no_threads_away() -> None:
    """As where the work is uneven: a smaller team is slower, and is tried less and less often."""
    machine = Machine(2, quiet, 0.5)
    machine.run(120)
    assert machine.pace.threads == 2
    assert 0 < machine.share(1) < 0.02


def test_a_shared_processor_is_left_to_others() -> None:
    machine = Machine(2, shared, 0.6)
    machine.run(1.5)
    assert machine.pace.threads == 1
    machine.run(120)
    assert machine.share(1) > 0.9


def test_it_comes_back_when_others_have_gone() -> None:
    machine = Machine(2, shared, 0.6)
    machine.run(60)
    machine.seconds, machine.waits = quiet, 0.05
    machine.run(MOST_PATIENCE_S + 1)
    assert machine.pace.threads == 2
    machine.spent.clear()
    machine.run(60)
    assert machine.share(2) == 1


def test_a_large_team_shrinks_by_what_is_taken() -> None:
    """Three of 16 processors belong to others: whatever has more threads than 13 waits for a turn of the scheduler."""
    machine = Machine(16, lambda n: 0.048 / n if n <= 13 else 0.02, 0.0)

    def waits(n: int) -> float:
        return 0.5 if n > 13 else 0.05

    for _ in range(4000):
        machine.waits = waits(machine.pace.threads)
        machine.run(1e-9)
    assert 11 <= machine.pace.threads <= 14
    assert sum(machine.share(n) for n in (11, 12, 13)) > 0.75


def test_steps_of_many_shapes_decide_nothing() -> None:
    machine = Machine(2, shared, 0.6)
    for shape in range(300):
        machine.run(0.15, shape)
    assert machine.share(2) == 1


def test_shapes_may_alternate() -> None:
    """As where prompts come between the steps of those that decode."""
    machine = Machine(2, shared, 0.6)
    for _ in range(20):
        machine.run(0.05, "prefill")
        machine.run(0.1, "decode")
    assert machine.pace.threads == 1
    machine.seconds, machine.waits = quiet, 0.05
    for _ in range(20):
        machine.run(0.05, "prefill")
        machine.run(0.1, "decode")
    assert machine.pace.threads == 2


def test_a_trial_whose_steps_end_is_undone() -> None:
    machine = Machine(2, shared, 0.6)
    while machine.pace.threads == 2:
        machine.run(1e-9)
    machine.run(TRIAL_S, "prefill")
    assert machine.pace.threads == 2
