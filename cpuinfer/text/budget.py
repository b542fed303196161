"""What one rendering of an untrusted template may spend."""

from __future__ import annotations

import time
from typing import Any

STEP_UNITS = 16
"""Price of a loop turn, a call or a filter, in units; a unit is one character or one element of new data."""

MAX_DEPTH = 100
"""Deepest nesting of lists and dicts: C code that hashes or compares them recurses on the machine's stack."""

_NODES_PER_CLOCK = 4096
_CONTAINERS = (list, tuple, dict)
_COLLECTIONS: tuple[type, ...] = (
    *_CONTAINERS,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


def _is_collection(value: Any) -> bool:
    return isinstance(value, _COLLECTIONS)


class LimitExceeded(Exception):
    """The rendering spent its budget. Not a ValueError, so that no filter of the template engine swallows it."""


class Budget:
    """Units of work and a deadline for one rendering. Every operation pays before it runs.

    Single operations are short, because what they read and make is bounded by the units; so checking the clock
    between operations is enough to stop any template soon after the deadline.
    """

    def __init__(self, units: int, seconds: float) -> None:
        """units: characters and elements that may be made; seconds: wall time."""
        self._limit = units
        self._left = units
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def step(self, extra: int = 0) -> None:
        """Pay for one step and `extra` units. Raises LimitExceeded."""
        self.charge(STEP_UNITS + extra)
        self.check_clock()

    def charge(self, units: int) -> None:
        """Pay for new data. Raises LimitExceeded."""
        if units > self._left:
            self._left = 0
            raise LimitExceeded(
                f"it makes more than {self._limit} characters or elements, or loops too long"
            )
        self._left -= units

    def check_clock(self) -> None:
        """Raises LimitExceeded after the deadline."""
        if time.monotonic() > self._deadline:
            raise LimitExceeded(f"it runs longer than {self._seconds:g} seconds")

    def charge_new(self, value: Any) -> None:
        """Pay for a value just made: its length, elements counted once."""
        if isinstance(value, (str, *_CONTAINERS)):
            self.charge(len(value))

    def size(self, value: Any) -> int:
        """Characters and elements of a value, shared parts counted as often as they appear.

        Raises LimitExceeded if that is more than the whole budget or the nesting is too deep: code that walks such a
        value (printing, comparing, hashing) would not return.
        """
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, _COLLECTIONS):
            return 1
        total = 0
        nodes = 0
        stack: list[tuple[Any, int]] = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            nodes += 1
            if nodes % _NODES_PER_CLOCK == 0:
                self.check_clock()
            if isinstance(item, str):
                total += len(item)
            elif _is_collection(item):
                if depth > MAX_DEPTH:
                    raise LimitExceeded(f"it nests lists or dicts more than {MAX_DEPTH} deep")
                total += len(item)
                if total > self._limit:
                    break
                if isinstance(item, dict):
                    stack.extend((key, depth + 1) for key in item)
                    stack.extend((part, depth + 1) for part in item.values())
                else:
                    stack.extend((part, depth + 1) for part in item)
            total += 1
        if total > self._limit:
            raise LimitExceeded(
                f"it handles data of more than {self._limit} characters or elements"
            )
        return total

    def text(self, value: Any) -> str:
        """What the template prints for a value, paid for."""
        if not isinstance(value, str):
            self.charge(self.size(value))
        text = str(value)
        self.step(len(text))
        return text
