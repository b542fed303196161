"""The KV pages and who holds them."""

from __future__ import annotations


class BlockPool:
    """Page numbers 0..n-1 with a count of holders each; a page without holders is free.

    Pages are only numbered here: their memory is the device's. The page freed last is given out
    first, so that memory which has been touched is touched again.
    """

    def __init__(self, n_pages: int) -> None:
        self._free = list(range(n_pages - 1, -1, -1))
        self._holders = [0] * n_pages

    @property
    def n_pages(self) -> int:
        """All pages."""
        return len(self._holders)

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def holders(self, page: int) -> int:
        """How many hold the page."""
        return self._holders[page]

    def take(self, n: int) -> list[int]:
        """Take n free pages, each with one holder.

        Raises ValueError, taking none, if fewer are free.
        """
        if n > len(self._free):
            raise ValueError(f"{n} KV pages wanted, {len(self._free)} free")
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, page: int) -> None:
        """Add a holder to a page that has one. Raises ValueError for a free page."""
        if self._holders[page] == 0:
            raise ValueError(f"KV page {page} is free and cannot be shared")
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Take one holder off; the last makes the page free. Raises ValueError for a free page."""
        if self._holders[page] == 0:
            raise ValueError(f"KV page {page} is free already")
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)
