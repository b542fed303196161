"""The bytes of KV pages, for whoever moves them: to another page, to a place where they wait, to a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class KVMemory:
    """An executable's KV pages as images: what a page holds in all layers, in one order on every device.

    An image is [n_layers][n_kv_heads] of K [head_dim][16], V [16][head_dim] and, of int8, the scales [2][16] f32 of K
    and V. parts: the same pieces where the device has them, uint8 [n_layers, n_kv_heads, n_pages, bytes] each (views of
    the device's memory, of any strides). Nothing here may run beside a step.
    """

    def __init__(self, *parts: Bytes) -> None:
        self._parts = parts
        self._layers, self._heads, self.n_pages = (int(n) for n in parts[0].shape[:3])
        self._part_bytes = sum(int(part.shape[3]) for part in parts)

    @property
    def image_bytes(self) -> int:
        """Bytes of one page's image."""
        return self._layers * self._heads * self._part_bytes

    def read(self, pages: Sequence[int]) -> Bytes:
        """The images of pages, uint8 [n, image_bytes]. Raises ValueError for a page that is not there."""
        images = np.empty((len(pages), self.image_bytes), np.uint8)
        self.read_to(pages, images)
        return images

    def read_to(self, pages: Sequence[int], images: Bytes | Sequence[Bytes]) -> None:
        """Set images, of uint8 [image_bytes] each, to those of pages. Raises ValueError for what does not fit.

        Page by page, each piece once: indexing all at once copies through fresh memory, at a tenth of the speed.
        """
        for page, image in self._pairs(pages, images):
            for piece, part in zip(image, self._parts, strict=True):
                piece[...] = part[:, :, page]

    def write(self, pages: Sequence[int], images: Bytes | Sequence[Bytes]) -> None:
        """Set pages to images, of uint8 [image_bytes] each. Raises ValueError for what does not fit."""
        for page, image in self._pairs(pages, images):
            for piece, part in zip(image, self._parts, strict=True):
                part[:, :, page] = piece

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Set every target to its source, as all sources were before. Raises ValueError for pages that do not fit."""
        chosen, to = self._chosen(sources), self._chosen(targets)
        if len(chosen) != len(to):
            raise ValueError(f"{len(chosen)} KV pages cannot be copied to {len(to)}")
        for part in self._parts:
            part[:, :, to] = part[:, :, chosen]

    def _chosen(self, pages: Sequence[int]) -> NDArray[np.int64]:
        chosen = np.array(pages, np.int64)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < self.n_pages):
            raise ValueError(f"KV pages {list(pages)}: there are {self.n_pages}")
        return chosen

    def _pairs(
        self, pages: Sequence[int], images: Bytes | Sequence[Bytes]
    ) -> list[tuple[int, list[Bytes]]]:
        """(page, its image cut into the parts' pieces [n_layers, n_kv_heads, bytes])."""
        chosen, expected = self._chosen(pages), (len(pages), self.image_bytes)
        odd = {(str(i.dtype), i.shape) for i in images} - {("uint8", expected[1:])}
        if len(images) != len(chosen) or odd:
            got = odd or f"{len(images)} images"
            raise ValueError(
                f"images of {len(chosen)} KV pages: expected uint8 {expected}, got {got}"
            )
        ends = np.cumsum([part.shape[3] for part in self._parts])[:-1]
        shape = self._layers, self._heads, self._part_bytes
        return [
            (int(page), np.split(image.reshape(shape), ends, axis=2))
            for page, image in zip(chosen, images, strict=True)
        ]
