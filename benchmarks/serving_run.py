"""One run of a load on one engine: the clock, who is due, and what is noted of each request."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from serving_load import Item


@dataclass
class Record:
    """What became of a request; times in seconds after the start. intended: when it should have been sent."""

    intended: float
    n_prompt: int
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    n_output: int = 0

    def as_json(self) -> dict[str, Any]:
        """Without the tokens."""
        return {k: v for k, v in asdict(self).items() if k != "tokens"}


@dataclass(frozen=True)
class Due:
    """A request whose time has come."""

    number: int
    prompt: list[int]
    n_output: int
    intended: float


class Arrivals:
    """Virtual arrivals: when a request is due depends on the load alone (and on the end of what it follows), never on
    whether the engine kept up. Waiting counts from there."""

    def __init__(self, load: Sequence[Item]) -> None:
        self._load = load
        self.records: dict[int, Record] = {}
        self._followers: dict[int, list[int]] = {}
        self._prompts: dict[int, list[int]] = {}
        self._coming: list[tuple[float, int]] = []
        self._left = len(load)
        for number, item in enumerate(load):
            if item.after is None:
                heapq.heappush(self._coming, (item.arrival, number))
            else:
                self._followers.setdefault(item.after, []).append(number)

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return self._left == 0

    @property
    def next(self) -> float:
        """When the next is due; infinity while that depends on others, or none is left."""
        return self._coming[0][0] if self._coming else math.inf

    def due(self, now: float) -> list[Due]:
        """The requests whose time has come since the last call."""
        found = []
        while self._coming and self._coming[0][0] <= now:
            intended, number = heapq.heappop(self._coming)
            item = self._load[number]
            prompt = list(item.prompt)
            if item.continues and item.after is not None:
                before = self.records[item.after]
                prompt = self._prompts[item.after] + before.tokens + prompt
            self._prompts[number] = prompt
            self.records[number] = Record(intended, len(prompt))
            found.append(Due(number, prompt, item.n_output, intended))
        return found

    def end(self, number: int, now: float) -> None:
        """A request has ended: those that follow it have a time now."""
        self._left -= 1
        for follower in self._followers.get(number, []):
            heapq.heappush(self._coming, (now + self._load[follower].arrival, follower))


class Policy:
    """Which of the waiting requests start now. The plain one: all, into whatever runs (continuous batching)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def start(self, waiting: deque[Due], busy: bool, coming: float, now: float) -> list[Due]:
        """Take from `waiting`. busy: whether anything runs; coming: when the next is due, infinity if none is."""
        taken = list(waiting)
        waiting.clear()
        return taken

    def wake(self, waiting: deque[Due]) -> float:
        """When to ask again though nothing has changed."""
        return math.inf


class Static(Policy):
    """Waits for a full batch and runs it to its end."""

    def start(self, waiting: deque[Due], busy: bool, coming: float, now: float) -> list[Due]:
        full = len(waiting) >= self.size or coming == math.inf
        if busy or not waiting or not (full or now >= self.wake(waiting)):
            return []
        return [waiting.popleft() for _ in range(min(self.size, len(waiting)))]


class Dynamic(Static):
    """Waits for a full batch, or until the first has waited for `window` seconds, and runs it to its end."""

    def __init__(self, size: int, window: float) -> None:
        super().__init__(size)
        self._window = window

    def wake(self, waiting: deque[Due]) -> float:
        return waiting[0].intended + self._window if waiting else math.inf
