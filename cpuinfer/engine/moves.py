"""KV pages that change their place between two steps."""

from __future__ import annotations

from cpuinfer.devices.kv_memory import KVMemory


class Moves:
    """What must be done to the KV pages before a step runs, in the order in which `perform` does it.

    The scheduler collects; whoever runs the step performs, once, whether or not the step then fails.
    """

    def __init__(self) -> None:
        self._sources: list[int] = []
        self._targets: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._sources)

    def copy(self, source: int, target: int) -> None:
        """Set page `target` to what `source` holds now, whatever becomes of `source` until then."""
        self._sources.append(source)
        self._targets.append(target)

    def perform(self, kv: KVMemory) -> None:
        """Do it all, and forget it."""
        if self._sources:
            kv.copy(self._sources, self._targets)
            self._sources.clear()
            self._targets.clear()
