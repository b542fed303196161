"""Where KV pages of preempted groups wait, and whether it pays: copying them out and back, or computing them anew."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.kv_memory import KVMemory

_KEEP = 0.9
"""What a measurement still weighs when the next one comes."""
_RETRY = 32
"""Choices against swapping after which its cost, not measured meanwhile, is forgotten and it is tried again."""


class Mean:
    """Means of an amount and its seconds over the latest measurements, each weighing 0.9 of the one after it."""

    def __init__(self) -> None:
        self._weight = self._amount = self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """One more measurement."""
        self._weight = self._weight * _KEEP + 1
        self._amount = self._amount * _KEEP + amount
        self._seconds = self._seconds * _KEEP + seconds

    def forget(self) -> None:
        """As if nothing had been measured."""
        self._weight = self._amount = self._seconds = 0.0

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._weight > 0

    @property
    def amount(self) -> float:
        """The mean amount. Only where known."""
        return self._amount / self._weight

    @property
    def seconds(self) -> float:
        """The mean of the seconds. Only where known."""
        return self._seconds / self._weight

    @property
    def pace(self) -> float:
        """Seconds of one unit. Only where known."""
        return self._seconds / self._amount


class CostRule:
    """Swap or recompute, by what this engine's own steps and copies have taken lately.

    Recomputing n tokens takes n times the seconds that one more prompt token adds to a step: the difference between
    steps with prompts and steps that only decode, in seconds, over that in tokens. It is an upper bound where pages
    are found again in the index of prefixes. Swapping takes bytes over the bandwidth of copies out, and over that of
    copies back (until one came back: the same). What was never measured is tried: the first preemption swaps.
    """

    def __init__(self) -> None:
        self._prompts, self._decodes = Mean(), Mean()
        self._out, self._back = Mean(), Mean()
        self._refused = 0

    def add_step(self, n_tokens: int, n_sequences: int, seconds: float) -> None:
        """A step of so many tokens of so many sequences has run."""
        (self._prompts if n_tokens > 2 * n_sequences else self._decodes).add(n_tokens, seconds)

    def add_out(self, n_bytes: int, seconds: float) -> None:
        """So much was copied to where it waits."""
        self._out.add(n_bytes, seconds)

    def add_back(self, n_bytes: int, seconds: float) -> None:
        """So much was copied back."""
        self._back.add(n_bytes, seconds)

    def recompute_s(self, n_tokens: int) -> float | None:
        """Seconds to compute tokens anew beside those that run; None where nothing was measured."""
        prompts, decodes = self._prompts, self._decodes
        if not prompts.known:
            return n_tokens * decodes.pace if decodes.known else None
        if decodes.known and prompts.seconds > decodes.seconds:
            more = prompts.amount - decodes.amount
            if more > 0:
                return n_tokens * (prompts.seconds - decodes.seconds) / more
        return n_tokens * prompts.pace

    def swap_s(self, n_bytes: int) -> float | None:
        """Seconds to copy so much out and back; None where nothing was measured."""
        if not self._out.known:
            return None
        back = self._back if self._back.known else self._out
        return n_bytes * (self._out.pace + back.pace)

    def prefers_swap(self, n_tokens: int, n_bytes: int) -> bool:
        """Whether n_tokens tokens, n_bytes in their pages, come back sooner by swapping."""
        recompute, swap = self.recompute_s(n_tokens), self.swap_s(n_bytes)
        if recompute is None or swap is None or swap <= recompute:
            self._refused = 0
            return True
        self._refused += 1
        if self._refused >= _RETRY:
            self._refused = 0
            self._out.forget()
            self._back.forget()
        return False


class SwapArea:
    """Slots for images of KV pages, in RAM (touched only when used) or in a nameless file, which is mapped.

    The file lies in `folder`, has its whole size from the start and is gone when the process ends. Raises OSError
    where the folder does not take it.
    """

    def __init__(self, kv: KVMemory, n_slots: int, folder: Path | None, rule: CostRule) -> None:
        self.n_slots = n_slots
        self.rule = rule
        self._kv = kv
        self._free = list(range(n_slots - 1, -1, -1))
        self._images = _images(n_slots, kv.image_bytes, folder)

    @property
    def n_free(self) -> int:
        """Slots not in use."""
        return len(self._free)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a page's image."""
        return self._kv.image_bytes

    def store(self, pages: Sequence[int]) -> list[int]:
        """Copy pages to free slots, and return those. Raises ValueError if there are fewer."""
        if len(pages) > len(self._free):
            raise ValueError(f"{len(pages)} swap slots wanted, {len(self._free)} free")
        begin = perf_counter()
        slots = [self._free.pop() for _ in pages]
        self._kv.read_to(pages, [self._images[slot] for slot in slots])
        self.rule.add_out(len(pages) * self.slot_bytes, perf_counter() - begin)
        return slots

    def load(self, slots: Sequence[int], pages: Sequence[int]) -> None:
        """Copy slots to pages. The slots stay in use."""
        begin = perf_counter()
        self._kv.write(pages, [self._images[slot] for slot in slots])
        self.rule.add_back(len(pages) * self.slot_bytes, perf_counter() - begin)

    def free(self, slots: Sequence[int]) -> None:
        """Give slots back."""
        self._free.extend(slots)


def _images(n_slots: int, image_bytes: int, folder: Path | None) -> NDArray[np.uint8]:
    shape = n_slots, image_bytes
    if folder is None or n_slots == 0:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full says so now, not by a signal later
            os.posix_fallocate(file.fileno(), 0, n_slots * image_bytes)
        else:
            file.truncate(n_slots * image_bytes)
        return np.memmap(file, np.uint8, "r+", shape=shape)
