"""Prefixes that outlive the engine: full KV pages of known content, kept elsewhere and taken back when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.engine.blocks import NO_PREFIX, BlockPool
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import Program

Images = NDArray[np.uint8]
PageKey = tuple[bytes, tuple[int, ...]]
"""A page: the name of the text before it, and its own tokens."""

PAGES_AT_ONCE = 16
"""Images in memory at a time: memory that a process has never touched is slower than checking."""


class Pages(Protocol):
    """Where pages are kept, as formats.kv_folder.PageFolder does in files."""

    @property
    def fingerprint(self) -> bytes:
        """The name of the empty text."""

    def __len__(self) -> int: ...

    def __contains__(self, name: bytes) -> bool: ...

    def name(self, key: PageKey) -> bytes:
        """A page's name."""

    def read(self, keys: Sequence[PageKey]) -> Images:
        """Images of the first pages up to one that is not there, or unsound."""

    def touch(self, keys: Sequence[PageKey]) -> None:
        """Note that pages are used now."""

    def save(self, keys: Sequence[PageKey], images: Callable[[Sequence[int]], Images]) -> int:
        """Keep pages, the last used first, as far as there is room. Returns how many were written."""


class PrefixStore:
    """Moves pages between an executable's KV memory and where they are kept. Nothing here may run beside a step.

    A page's bits follow from model, KV type and tokens (design.md, sections 3 and 4): one taken back is the one that
    would be computed.
    """

    def __init__(self, pages: Pages, kv: KVMemory) -> None:
        self._pages = pages
        self.kv = kv

    def load(self, tokens: Sequence[int], first: int, most: int, to: Sequence[int]) -> int:
        """Set the pages to[first:most] of a text to what is kept of it; returns how many from `first` on are set."""
        if first >= most or not len(self._pages):
            return 0
        keys: list[PageKey] = []
        parent = self._pages.fingerprint
        for number in range(most):
            begin = number * PAGE_TOKENS
            key = parent, tuple(tokens[begin : begin + PAGE_TOKENS])
            parent = self._pages.name(key)
            if number >= first:
                if parent not in self._pages:
                    break
                keys.append(key)
        loaded = 0
        while loaded < len(keys):
            wanted = keys[loaded : loaded + PAGES_AT_ONCE]
            images = self._pages.read(wanted)
            at = first + loaded
            self.kv.write(to[at : at + len(images)], images)
            loaded += len(images)
            if len(images) < len(wanted):
                break
        self._pages.touch(keys[:loaded])
        return loaded

    def save(self, pool: BlockPool) -> int:
        """Keep all known pages of the pool; returns how many were not kept before. Raises OSError."""
        names = {NO_PREFIX: self._pages.fingerprint}
        keys: list[PageKey] = []
        places: list[int] = []
        for prefix, tokens, known in pool.known():
            key = names[prefix], tokens
            names[known.prefix] = self._pages.name(key)
            keys.append(key)
            places.append(known.page)
        return self._pages.save(keys, lambda chosen: self.kv.read([places[i] for i in chosen]))


def fingerprint(program: Program, content: str, kv_type: KVType, numerics: str) -> bytes:
    """A name, 32 bytes, for everything that the bits of a KV page depend on besides its tokens.

    content: the hash of the weights. numerics: how devices compute; those of one name give the same bits.
    """
    digest = hashlib.sha256()
    for part in (content, kv_type, numerics, PAGE_TOKENS, program.kv, program.ops):
        digest.update(f"{part!r}\n".encode())
    for name, values in sorted(program.constants.items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.digest()
