"""How many threads of a team run: all of them, or fewer while others use their processors.

A team meets at about five barriers a layer. Where one of its processors works for somebody else as well, another process or
another guest of the host, all wait for that thread at most of them, and two threads may be several times slower than one.
Which it is cannot be known beforehand, but it can be seen: a thread waits for others for a good part of a step, and a smaller
team makes the same step sooner. No bit of a result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

WINDOW_S = 0.2
"""Seconds of steps of one shape that decide: several turns of a scheduler, which are 3 to 10 ms long."""
WINDOW_STEPS = 3
TRIAL_S = 2.0
"""Seconds after which a trial ends in which steps of its shape have become too few to decide."""
MOST_SHAPES = 64
WAITING = 0.25
"""The part of a step that waits are beyond what its own work explains: 5 to 10 % are usual on shared processors. Two windows
in a row must be so: the first steps wait for pages of the model."""
FEWER_GAIN, MORE_GAIN = 0.9, 0.95
"""A trial of fewer or more threads must bring a step's time down to this part of what it was."""
PATIENCE_S, MOST_PATIENCE_S = 1.0, 32.0
"""Seconds from one trial to the next. Each that brings nothing doubles them: it may run at a small part of the speed."""


@dataclass
class _Window:
    """Steps of one shape by one number of threads."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def is_full(self) -> bool:
        return self.steps >= WINDOW_STEPS and self.seconds >= WINDOW_S

    @property
    def mean(self) -> float:
        return self.seconds / self.steps


@dataclass
class _Trial:
    """Of another number of threads, for steps of a shape that took `mean` seconds by `threads`."""

    trials: _Trials
    threads: int
    shape: Hashable
    mean: float
    left: float = TRIAL_S


@dataclass
class _Trials:
    """Of a smaller, or of a larger team: when the next may begin, and by how much it differs."""

    gain: float
    rest: float = 0.0
    patience: float = PATIENCE_S
    part: int = 8

    def some(self, threads: int) -> int:
        """By how many threads the next trial's team differs from one of so many."""
        return max(1, threads // self.part)

    def put_off(self, worth: bool) -> None:
        """After a trial that was worth it another may follow at once. Else the next goes further: where three processors
        are not ours, a team smaller by two is as slow as the whole."""
        self.rest = 0.0 if worth else self.patience
        self.patience = PATIENCE_S if worth else min(2 * self.patience, MOST_PATIENCE_S)
        self.part = 8 if worth else max(2, self.part // 2)


class Pace:
    """The number of threads of the next step, `threads`: from 1 to `most`, at first `most`. Not thread-safe."""

    def __init__(self, most: int) -> None:
        self.most = self.threads = most
        self._windows: dict[Hashable, _Window] = {}  # of steps by `threads`
        self._waiting = 0  # windows in a row
        self._fewer, self._more = _Trials(FEWER_GAIN), _Trials(MORE_GAIN)
        self._trial: _Trial | None = None

    def step(self, shape: Hashable, seconds: float, waited: float) -> None:
        """A step of this shape (what makes steps comparable) took `seconds`, `waited` of them for other threads."""
        if len(self._windows) >= MOST_SHAPES:
            self._windows.clear()
        window = self._windows.setdefault(shape, _Window())
        window.steps += 1
        window.seconds += seconds
        window.waited += waited
        for trials in (self._fewer, self._more):
            trials.rest = max(0.0, trials.rest - seconds)
        if self._trial:
            self._judge(self._trial, shape, window, seconds)
        elif window.is_full:
            del self._windows[shape]
            self._consider(shape, window)

    def _consider(self, shape: Hashable, window: _Window) -> None:
        """Begin a trial where there is reason to."""
        self._waiting = self._waiting + 1 if window.waited > WAITING * window.seconds else 0
        if self._waiting >= 2 and self.threads > 1 and not self._fewer.rest:
            self._trial = _Trial(self._fewer, self.threads, shape, window.mean)
            self._use(self.threads - self._fewer.some(self.threads))
        elif self.threads < self.most and not self._more.rest:
            self._trial = _Trial(self._more, self.threads, shape, window.mean)
            self._use(min(self.most, self.threads + self._more.some(self.threads)))

    def _judge(self, trial: _Trial, shape: Hashable, window: _Window, seconds: float) -> None:
        """End a trial that has shown something, or lasts too long."""
        trial.left -= seconds
        decided = shape == trial.shape and window.is_full
        if not decided and trial.left > 0:
            return
        worth = decided and window.mean < trial.trials.gain * trial.mean
        trial.trials.put_off(worth)
        if worth:  # what was right before need not be tried soon
            other = self._more if trial.trials is self._fewer else self._fewer
            other.rest = PATIENCE_S
        self._trial = None
        self._use(self.threads if worth else trial.threads)

    def _use(self, threads: int) -> None:
        self.threads, self._waiting = threads, 0
        self._windows.clear()
