"""KV pages that change their place between two steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.engine.swap import SwapArea


class Moves:
    """What must be done to the KV pages before a step runs: first all copies, then what comes back from the swap area.

    The scheduler collects; whoever runs the step performs, once, whether or not the step then fails.
    """

    def __init__(self) -> None:
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._coming: dict[int, int] = {}  # slot of every page that comes back
        self._used: list[int] = []  # slots to give back after that

    def __bool__(self) -> bool:
        return bool(self._sources or self._used)

    def copy(self, source: int, target: int) -> None:
        """Set page `target` to what `source` holds now, or will when it is back, whatever becomes of it until then."""
        if source in self._coming:
            self._coming[target] = self._coming[source]
        else:
            self._sources.append(source)
            self._targets.append(target)

    def bring_back(self, pages: Mapping[int, int], used: Iterable[int]) -> None:
        """Set every page to the slot that `pages` has for it; then give the `used` slots back."""
        self._coming.update(pages)
        self._used += used

    def perform(self, kv: KVMemory, area: SwapArea | None) -> None:
        """Do it all, and forget it. area: where the slots are; None where none is used."""
        if self._sources:
            kv.copy(self._sources, self._targets)
            self._sources.clear()
            self._targets.clear()
        if area is not None and self._used:
            if self._coming:
                area.load(list(self._coming.values()), list(self._coming))
            area.free(self._used)
            self._coming.clear()
            self._used.clear()
