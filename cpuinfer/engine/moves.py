"""KV pages that change their place between two steps."""

from __future__ import annotations

from collections.abc import Sequence

from cpuinfer.devices.kv_memory import Bytes, KVMemory


class Moves:
    """What must be done to the KV pages before a step runs, in the order in which `perform` does it.

    The scheduler collects; whoever runs the step performs, once, whether or not the step then fails.
    """

    def __init__(self) -> None:
        self._sources: list[int] = []
        self._targets: list[int] = []
        self._writes: list[tuple[Sequence[int], Bytes]] = []

    def __bool__(self) -> bool:
        return bool(self._sources or self._writes)

    def copy(self, source: int, target: int) -> None:
        """Set page `target` to what `source` holds now, whatever becomes of `source` until then."""
        self._sources.append(source)
        self._targets.append(target)

    def write(self, pages: Sequence[int], images: Bytes) -> None:
        """Set pages to images, after all copies: a page may be given out that is still to be copied from."""
        if len(images):
            self._writes.append((pages, images))

    def perform(self, kv: KVMemory) -> None:
        """Do it all, and forget it."""
        if self._sources:
            kv.copy(self._sources, self._targets)
            self._sources.clear()
            self._targets.clear()
        for pages, images in self._writes:
            kv.write(pages, images)
        self._writes.clear()
