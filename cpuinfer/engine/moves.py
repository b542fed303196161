"""KV pages that change their place between two steps."""

from __future__ import annotations

from collections.abc import Iterable

from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.engine.swap import SwapArea


class Moves:
    """What must be done to the KV pages before a step runs: first all copies, then what comes back from the swap area.

    The scheduler collects; whoever runs the step performs, once, whether or not the step then fails.
    """

    def __init__(self) -> None:
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._returns: list[tuple[SwapArea, dict[int, int], list[int]]] = []

    def __bool__(self) -> bool:
        return bool(self._sources or self._returns)

    def copy(self, source: int, target: int) -> None:
        """Set page `target` to what `source` holds now, whatever becomes of `source` until then."""
        self._sources.append(source)
        self._targets.append(target)

    def bring_back(self, area: SwapArea, pages: dict[int, int], used: Iterable[int]) -> None:
        """Set the page of every slot in `pages` to the slot's image; then give the `used` slots back."""
        self._returns.append((area, pages, list(used)))

    def perform(self, kv: KVMemory) -> None:
        """Do it all, and forget it."""
        if self._sources:
            kv.copy(self._sources, self._targets)
            self._sources.clear()
            self._targets.clear()
        while self._returns:
            area, pages, used = self._returns[-1]
            if pages:
                area.load(list(pages), list(pages.values()))
            area.free(used)
            self._returns.pop()
