"""The KV pages: who holds them, and which of them hold the beginning of a text that may come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from cpuinfer.devices.base import PAGE_TOKENS

NO_PREFIX = 0
"""The number of the empty prefix."""


class Known(NamedTuple):
    """A full page of known content: the last of a prefix, of which each has a number of its own."""

    page: int
    prefix: int


class BlockPool:
    """Page numbers 0..n-1 with a count of holders each, and an index of the prefixes that full pages hold.

    A page without holders is free. One whose content is known stays known while it is free, so that a text with the
    same beginning can hold it again; it is given out last, the longest free of them first. Of the others the page freed
    last is given out first, so that memory which has been touched is touched again.

    The index is exact: it compares tokens, not hashes of them, so no text can be taken for another. A page is found by
    its tokens and the number of the prefix before them; numbers are never used twice. Whoever holds a page of a prefix
    holds all before it, and gives back the last first: a known page is forgotten only after those that continue it.

    Pages are only numbered here: their memory is the device's.
    """

    def __init__(self, n_pages: int) -> None:
        self._free = list(range(n_pages - 1, -1, -1))
        self._holders = [0] * n_pages
        self._known: dict[tuple[int, tuple[int, ...]], Known] = {}
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}  # of known pages, by page
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and free, the longest free first
        self._numbers = count(NO_PREFIX + 1)

    @property
    def n_pages(self) -> int:
        """All pages."""
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def n_known(self) -> int:
        """Pages of known content, held or free."""
        return len(self._keys)

    def holders(self, page: int) -> int:
        """How many hold the page."""
        return self._holders[page]

    def take(self, n: int) -> list[int]:
        """Take n free pages, each with one holder; what was known of them is forgotten.

        Raises ValueError, taking none, if fewer are free.
        """
        if n > self.n_free:
            raise ValueError(f"{n} KV pages wanted, {self.n_free} free")
        pages = [self._free.pop() if self._free else self._forget() for _ in range(n)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, page: int) -> None:
        """Add a holder to a page that has one, or whose content is known. Raises ValueError for any other."""
        if self._holders[page] == 0:
            if page not in self._idle:
                raise ValueError(f"KV page {page} is free and cannot be shared")
            del self._idle[page]
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Take one holder off; the last makes the page free. Raises ValueError for a free page."""
        if self._holders[page] == 0:
            raise ValueError(f"KV page {page} is free already")
        self._holders[page] -= 1
        if self._holders[page] == 0:
            if page in self._keys:
                self._idle[page] = None
            else:
                self._free.append(page)

    def find(self, tokens: Sequence[int], most: int) -> list[Known]:
        """The known pages that the tokens begin with, in order, at most `most`. They get no holder by this."""
        found: list[Known] = []
        prefix = NO_PREFIX
        for begin in range(0, most * PAGE_TOKENS, PAGE_TOKENS):
            known = self._known.get((prefix, tuple(tokens[begin : begin + PAGE_TOKENS])))
            if known is None:
                break
            found.append(known)
            prefix = known.prefix
        return found

    def learn(self, prefix: int, tokens: Sequence[int], page: int) -> Known:
        """A held page is full: of these PAGE_TOKENS tokens, after the prefix of that number.

        Returns the page that is known for them: this one, or another that was first.
        """
        key = prefix, tuple(tokens)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Known(page, next(self._numbers))
            self._keys[page] = key
        return known

    def known(self) -> Iterator[tuple[int, tuple[int, ...], Known]]:
        """The known pages as (number of the prefix before, tokens, page), the last used first.

        None comes before what it continues.
        """
        held = (page for page in self._keys if page not in self._idle)
        for page in (*held, *reversed(self._idle)):
            key = self._keys[page]
            yield *key, self._known[key]

    def _forget(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._known[self._keys.pop(page)]
        return page
