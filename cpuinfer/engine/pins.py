"""Prompts whose pages stay: computed once, never given to others, counted against the KV budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.blocks import BlockPool
from cpuinfer.engine.sequence import Sequence


@dataclass(eq=False)
class Pin:
    """A pinned prompt. n_pages: full pages of n_tokens tokens, reserved from the start; pages: those held by now."""

    n_tokens: int
    n_pages: int
    pages: list[int] = field(default_factory=list)


class Pins:
    """The pins of a pool. A pin is a holder of its pages as a sequence is: it never gives one back by itself.

    What pins leave must hold every sequence alone, or none might ever finish: both a pin and a sequence are checked
    when they come. Pages that two pins, or a pin and a sequence, share count for each.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._coming: dict[Sequence, Pin] = {}
        self._held: set[Pin] = set()

    @property
    def n_pages(self) -> int:
        """Pages that pins hold, or will."""
        return sum(pin.n_pages for pin in (*self._held, *self._coming.values()))

    @property
    def room(self) -> int:
        """Pages that they leave."""
        return self._pool.n_pages - self.n_pages

    def room_for(self, sequence: Sequence) -> int:
        """Pages that they leave to a sequence, those reserved for its own prompt included."""
        pin = self._coming.get(sequence)
        return self.room + (pin.n_pages if pin else 0)

    def add(self, sequence: Sequence, longest: int) -> Pin:
        """Reserve pages for the prompt of a sequence to come; `keep` takes them over when it has computed them.

        longest: pages that the longest other sequence in flight may need. Raises ValueError where fewer would be left,
        or none, or where the prompt fills no page.
        """
        n_pages = sequence.n_prompt // PAGE_TOKENS
        if n_pages == 0:
            raise ValueError(
                f"pin: {sequence.n_prompt} tokens fill no KV page of {PAGE_TOKENS}; there is nothing to keep"
            )
        left = self.room - n_pages
        if left < max(longest, 1):
            raise ValueError(
                f"pin: {sequence.n_prompt} tokens keep {n_pages} of {self._pool.n_pages} KV pages, {self.n_pages} are"
                f" pinned already; that leaves {left}, and requests in flight may need {max(longest, 1)}; unpin"
                " another, wait for long requests to end, or raise kv_memory_bytes"
            )
        pin = self._coming[sequence] = Pin(sequence.n_prompt, n_pages)
        return pin

    def keep(self, sequence: Sequence) -> None:
        """Hold the pages of a pinned prompt, now computed; of any other sequence nothing."""
        pin = self._coming.pop(sequence, None)
        if pin is not None:
            pin.pages += sequence.pages[: pin.n_pages]
            for page in pin.pages:
                self._pool.share(page)
            self._held.add(pin)

    def drop(self, sequence: Sequence) -> None:
        """Give up a sequence's reservation, if it has one: it ended before its prompt was computed."""
        self._coming.pop(sequence, None)

    def remove(self, pin: Pin) -> None:
        """Let go of a pin's pages, which stay known until they are needed, or of its reservation."""
        self._coming = {s: coming for s, coming in self._coming.items() if coming is not pin}
        self._held.discard(pin)
        while pin.pages:
            self._pool.release(pin.pages.pop())
