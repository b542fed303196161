"""A folder of KV pages: one file for each page, named after all tokens from the beginning to its end.

A page's name is SHA-256 of its parent's name and its own tokens (int32, little-endian); the parent of a first page is the
fingerprint: of the model, and of all else that the bits of keys and values depend on. So pages of different models lie
side by side and are never asked for by another's name, and processes that write the same page write the same bytes.

`<64 hex digits>.kvpage`, all little-endian:

| bytes | what |
|---|---|
| 8 | magic, `cpuiKVpg` |
| 4, 4 | format version (2); tokens n of a page |
| 32, 32 | fingerprint; the parent's name |
| 4 n | the tokens |
| 8 | bytes of the image |
| 4 | CRC-32 of the image (zlib's) |
| 32 | SHA-256 of all above |
| | the image (devices.kv_memory), to the end of the file |

Files are untrusted: size and header are compared with what the reader expects before the image is read, and the image
with its checksum before it is given away. Both find damage and mix-ups, not forgery: who may write to the folder may
change answers, so one that everybody may write to is refused. A file is replaced whole, and its time of modification is
that of its last use; a page is never older than one that continues it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cpuinfer.formats.header import FormatError
from cpuinfer.formats.replacing import replacing
from cpuinfer.machine import system

MAGIC = b"cpuiKVpg"
VERSION = 2
SUFFIX = ".kvpage"
LOCK = ".lock"
NAME = re.compile(rf"([0-9a-f]{{64}}){re.escape(SUFFIX)}")
READERS = 4
"""Threads that read and check pages, which lets others run."""
STAMP_NS = 1000
"""Pages used at once are so far apart in time, as file systems tell times apart."""

Images = NDArray[np.uint8]
_UNUSED = "It is not used; a later save writes the page anew."


PageKey = tuple[bytes, tuple[int, ...]]
"""A page: its parent's name and its tokens."""


def name_of(key: PageKey) -> bytes:
    """A page's name, 32 bytes."""
    parent, tokens = key
    return hashlib.sha256(parent + _packed(tokens)).digest()


class PageFolder:
    """The pages of one fingerprint in a folder that others may share, of at most `most_bytes` all together.

    At start only names are read. n_tokens, image_bytes: of a page. Raises ValueError for what is no folder or one that everybody may write to, OSError
    where it can't be made or read. Not thread-safe; any number of processes may use the folder at once.
    """

    def __init__(
        self, path: Path, fingerprint: bytes, n_tokens: int, image_bytes: int, most_bytes: int
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self._n_tokens = n_tokens
        self._image_bytes = image_bytes
        self._most_bytes = most_bytes
        self._header = struct.Struct(f"<8sII32s32s{4 * n_tokens}sQI32s")
        _make(path)
        self._names = set(self._scan())
        self._refused: set[bytes] = set()
        self._readers = ThreadPoolExecutor(
            READERS, "cpuinfer-prefixes"
        )  # threads start when needed

    @property
    def file_bytes(self) -> int:
        """Bytes of a page's file."""
        return self._header.size + self._image_bytes

    def __len__(self) -> int:
        """Pages believed to be there, those of other fingerprints included."""
        return len(self._names)

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def name(self, key: PageKey) -> bytes:
        """A page's name, and the parent of those that continue it."""
        return name_of(key)

    def read(self, keys: Sequence[PageKey]) -> Images:
        """The images of the first pages up to one that is gone or refused, uint8 [n, image_bytes].

        Warns of a page that is refused, with the reason; it is not looked for again.
        """
        images = np.empty((len(keys), self._image_bytes), np.uint8)
        faults = list(self._readers.map(self._fault, keys, images))
        for key, fault in zip(keys, faults, strict=True):
            if fault is not None:
                self._names.discard(name_of(key))
                if not isinstance(fault, FileNotFoundError):
                    self._refused.add(name_of(key))
                    warnings.warn(f"prefix store: {fault}", stacklevel=2)
        n = next((i for i, fault in enumerate(faults) if fault is not None), len(keys))
        return images[:n]

    def touch(self, keys: Sequence[PageKey]) -> None:
        """Note that pages are used now; parents come before what continues them."""
        now = time.time_ns()
        for i, key in enumerate(keys):
            self._stamp(name_of(key), now - i * STAMP_NS)

    def save(self, keys: Sequence[PageKey], images: Callable[[Sequence[int]], Images]) -> int:
        """Write those pages that are not there, the last used first, parents before what continues them.

        images: of pages by their places in `keys`. The pages used longest ago, whoever wrote them, make room; others
        are not written if there is none. Returns how many were written. Raises OSError where that fails.
        """
        with open(self.path / LOCK, "ab") as file:
            system.lock(file)
            for stale in self.path.glob(f".*{SUFFIX}.*.tmp"):
                stale.unlink(
                    missing_ok=True
                )  # of a process that was killed: who writes holds the lock
            now = time.time_ns()
            stamps = {name_of(key): now - i * STAMP_NS for i, key in enumerate(keys)}
            there = self._scan()
            kept = self._room(there, stamps, now)
            written = 0
            for i, key in enumerate(keys):
                name = name_of(key)
                if name not in kept:
                    continue
                if (
                    name not in there
                    or name in self._refused
                    or there[name].st_size != self.file_bytes
                ):
                    self._write(key, images([i])[0])
                    written += 1
                self._stamp(name, stamps[name])
            self._refused -= kept
            self._names = kept - self._refused
        return written

    def _room(
        self, there: dict[bytes, os.stat_result], stamps: dict[bytes, int], now: int
    ) -> set[bytes]:
        """The pages to keep, there or to be written; files of others are removed."""
        last_used = {name: min(status.st_mtime_ns, now) for name, status in there.items()} | stamps
        kept: set[bytes] = set()
        left = self._most_bytes
        for name in sorted(last_used, key=lambda name: last_used[name], reverse=True):
            nbytes = self.file_bytes if name in stamps else there[name].st_size
            if nbytes > self._most_bytes:
                warnings.warn(
                    f"prefix store: {self._file(name)}: {nbytes} bytes are more than the whole store may have"
                    f" ({self._most_bytes}). It is removed.",
                    stacklevel=3,
                )
            else:
                left -= nbytes
                if left >= 0:
                    kept.add(name)
                    continue
            if name in there:
                self._file(name).unlink(missing_ok=True)
        return kept

    def _scan(self) -> dict[bytes, os.stat_result]:
        """The page files by name."""
        found = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                if match := NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found[bytes.fromhex(match[1])] = entry.stat(follow_symlinks=False)
        return found

    def _file(self, name: bytes) -> Path:
        return self.path / f"{name.hex()}{SUFFIX}"

    def _stamp(self, name: bytes, ns: int) -> None:
        with contextlib.suppress(OSError):  # gone, or not ours: then others say how old it is
            os.utime(self._file(name), ns=(ns, ns))

    def _write(self, key: PageKey, image: Images) -> None:
        raw = image.tobytes()
        fields = (MAGIC, VERSION, self._n_tokens, self.fingerprint, key[0], _packed(key[1]))
        head = self._header.pack(*fields, len(raw), zlib.crc32(raw), b"")[:-32]
        with replacing(self._file(name_of(key)), self.file_bytes, durable=False) as file:
            file.write(head + hashlib.sha256(head).digest())
            file.write(raw)

    def _fault(self, key: PageKey, into: Images) -> OSError | FormatError | None:
        """Why a page cannot be read; None where it is in `into`."""
        path = self._file(name_of(key))
        try:
            with _open(path) as file:
                self._check(path, file, key, into)
        except (OSError, FormatError) as error:
            return error
        return None

    def _check(self, path: Path, file: IO[bytes], key: PageKey, into: Images) -> None:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(
                path, "a page is a regular file", stat.filemode(status.st_mode), _UNUSED
            )
        if status.st_size != self.file_bytes:
            what = f"a page of this model has {self.file_bytes} bytes"
            raise FormatError(path, what, f"{status.st_size} bytes", _UNUSED)
        raw = file.read(self._header.size)
        if len(raw) != self._header.size:
            raise FormatError(path, "the header ends early", f"{len(raw)} bytes", _UNUSED)
        *fields, image_crc32, header_sha256 = self._header.unpack(raw)
        if hashlib.sha256(raw[:-32]).digest() != header_sha256:
            raise FormatError(path, "the header is damaged", "another checksum", _UNUSED)
        expected = (
            ("magic", MAGIC),
            ("format version", VERSION),
            ("number of tokens", self._n_tokens),
            ("fingerprint (another model, or KV type)", self.fingerprint),
            ("parent", key[0]),
            ("tokens", _packed(key[1])),
            ("size of the image", self._image_bytes),
        )
        for (what, want), got in zip(expected, fields, strict=True):
            if got != want:
                shown = got.hex() if isinstance(got, bytes) else got
                raise FormatError(path, f"the page has another {what}", shown, _UNUSED)
        image = into.data
        view = image
        while view and (n := file.readinto(view)):  # type: ignore[attr-defined]  # a raw file
            view = view[n:]
        if view or zlib.crc32(image) != image_crc32:
            raise FormatError(path, "the page is damaged", "another checksum", _UNUSED)


def _open(path: Path) -> IO[bytes]:
    """Unbuffered; neither follows a link nor waits for the other end of a pipe."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return open(os.open(path, flags), "rb", buffering=0)


def _make(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"prefix_store: {path} is no folder; give one, or a new name")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and path.stat().st_mode & stat.S_IWOTH:
        raise ValueError(
            f"prefix_store: everybody may write to {path}, and so change answers; chmod o-w, or give another folder"
        )


def _packed(tokens: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(tokens)}i", *tokens)
