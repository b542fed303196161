"""The header of a GGUF file (metadata and tensor entries), read as untrusted input.

Our own reader, because the `gguf` package's GGUFReader takes seconds for a vocabulary of 50,000
tokens (two array objects for each string) and trusts the sizes that the file states. The format:
ggml/include/gguf.h.

Every count and size is compared with the bytes that remain in the file before anything of that
size is made, so memory and time are bounded by the file's own size.
"""

from __future__ import annotations

import enum
import mmap
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
"""ggml's own bound on the dimensions of a tensor."""
MAX_NAME_BYTES = 65535
"""The format's bound on keys (2^16 - 1 bytes); tensor names get the same one."""
MAX_ARRAY_DEPTH = 4
"""Arrays inside arrays: the format allows any depth, no known file has more than one; bounds the
recursion.
"""


class FormatError(ValueError):
    """A file that cannot be read: says which file, what is wrong, what was found and what to do."""

    def __init__(self, path: str | os.PathLike[str], what: str, got: object, remedy: str) -> None:
        found = shorten(got).strip("'") if isinstance(got, str) else shorten(got)
        super().__init__(f"{os.fspath(path)}: {what}; got {found}. {remedy}")


def shorten(value: object, limit: int = 80) -> str:
    """`value` as one line of at most about `limit` characters, safe to print, as names come from
    hostile files. Text and bytes are quoted.
    """
    text = ascii(value[: 2 * limit]) if isinstance(value, (str, bytes)) else str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


class ValueType(enum.IntEnum):
    """Types of metadata values, numbered as in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBERS: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
# Least bytes an element of an array can take, so that a count is bounded by the bytes that remain.
_LEAST_BYTES = {t: d.itemsize for t, d in _NUMBERS.items()} | {
    ValueType.STRING: 8,
    ValueType.ARRAY: 12,
}
_LEAST_KEY_VALUE = 8 + 1 + 4 + 1
_LEAST_TENSOR_INFO = 8 + 1 + 4 + 8 + 4 + 8
BROKEN = "The file is damaged or made to mislead: fetch it again from a source you trust."


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header: `shape` row-major (N first), `offset` in bytes from the
    data's start.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Everything before the tensors' data. `spans[key]` is where the whole key-value pair lies in
    the file, in bytes.
    """

    path: str
    version: int
    alignment: int
    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]
    data_start: int

    def regions(
        self, sizes: Callable[[TensorInfo], int], file_bytes: int
    ) -> dict[str, tuple[int, int]]:
        """(start, end) of each tensor in the file, where `sizes` gives a tensor's bytes.

        Raises FormatError for a tensor that is not aligned, leaves the file, or overlaps another.
        """
        regions: dict[str, tuple[int, int]] = {}
        for info in self.tensors:
            what = f"tensor {shorten(info.name)}"
            if info.offset % self.alignment:
                raise FormatError(
                    self.path,
                    f"{what} must be {self.alignment}-byte aligned",
                    f"offset {info.offset}",
                    BROKEN,
                )
            start = self.data_start + info.offset
            end = start + sizes(info)
            if end > file_bytes:
                raise FormatError(
                    self.path,
                    f"{what} ends at byte {end}, past the end of the file",
                    f"a file of {file_bytes} bytes",
                    "The file is truncated: fetch it again.",
                )
            regions[info.name] = (start, end)
        last_name, last_end = "", 0
        for name, (start, end) in sorted(regions.items(), key=lambda item: item[1]):
            if start < last_end:
                raise FormatError(
                    self.path,
                    f"tensors {shorten(last_name)} and {shorten(name)} must not overlap",
                    start,
                    BROKEN,
                )
            last_name, last_end = name, end
        return regions


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """The file mapped read-only. Raises FormatError for an empty file or one that is no regular
    file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(
            path,
            "a regular file is wanted",
            stat.filemode(status.st_mode),
            "Give a path to a file.",
        )
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise FormatError(path, "a GGUF file is wanted", "an empty file", "Fetch it again.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_header(path: str | os.PathLike[str], mapping: mmap.mmap) -> Header:
    """Metadata and tensor entries of a mapped GGUF file. Raises FormatError."""
    return _HeaderReader(os.fspath(path), mapping).read()


class _HeaderReader:
    """A position that moves through the mapped header; every step is checked against the bytes that
    remain.
    """

    def __init__(self, path: str, mapping: mmap.mmap) -> None:
        self.path = path
        self.map = mapping
        self.size = len(mapping)
        self.at = 0

    def read(self) -> Header:
        version = self._magic_and_version()
        n_tensors = self._u64("the number of tensors")
        n_keys = self._u64("the number of keys")
        self._need(n_keys, _LEAST_KEY_VALUE, f"{n_keys} key-value pairs")
        self._need(n_tensors, _LEAST_TENSOR_INFO, f"{n_tensors} tensors")
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        types: dict[str, ValueType] = {}
        for _ in range(n_keys):
            start = self.at
            key = self._name("a key")
            if key in metadata:
                raise self._error("keys must be unique", key)
            types[key], metadata[key] = self._value(f"key {shorten(key)}")
            spans[key] = (start, self.at)
        alignment = self._alignment(metadata, types)
        self._refuse_split(metadata)
        names: set[str] = set()
        tensors: list[TensorInfo] = []
        for _ in range(n_tensors):
            tensors.append(self._tensor_info())
            if tensors[-1].name in names:
                raise self._error("tensor names must be unique", tensors[-1].name)
            names.add(tensors[-1].name)
        data_start = -(-self.at // alignment) * alignment
        return Header(self.path, version, alignment, metadata, spans, tuple(tensors), data_start)

    def _error(self, what: str, got: object, remedy: str = BROKEN) -> FormatError:
        return FormatError(self.path, what, got, remedy)

    def _need(self, count: int, size: int, what: str) -> None:
        """Refuse `count` items of at least `size` bytes where fewer bytes remain."""
        if count * size > self.size - self.at:
            raise self._error(
                f"{what} at byte {self.at} can't fit in the rest of the file",
                f"{self.size - self.at} bytes",
                "The file is truncated or damaged: fetch it again.",
            )

    def _u32(self, what: str) -> int:
        self._need(1, 4, what)
        (value,) = _U32.unpack_from(self.map, self.at)
        self.at += 4
        return int(value)

    def _u64(self, what: str) -> int:
        self._need(1, 8, what)
        (value,) = _U64.unpack_from(self.map, self.at)
        self.at += 8
        return int(value)

    def _string(self, what: str) -> str:
        length = self._u64(f"the length of {what}")
        self._need(length, 1, f"{what} of {length} bytes")
        raw = self.map[self.at : self.at + length]
        self.at += length
        return self._decode(raw, what)

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._error(f"{what} must be UTF-8", raw) from None

    def _name(self, what: str) -> str:
        name = self._string(what)
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise self._error(
                f"{what} must have 1 to {MAX_NAME_BYTES} bytes", f"{len(name.encode())} bytes"
            )
        return name

    def _magic_and_version(self) -> int:
        magic = self.map[:4]
        if magic != b"GGUF":
            raise self._error("a GGUF file starts with b'GGUF'", magic, "Give a GGUF file.")
        self.at = 4
        version = self._u32("the version")
        if version & 0xFFFF == 0 and version != 0:
            raise self._error(
                "big-endian GGUF files are not read", f"version {version:#010x}", "Convert it."
            )
        if version not in (2, 3):
            raise self._error(
                "GGUF versions 2 and 3 are read", version, "Convert it with a current llama.cpp."
            )
        return version

    def _value_type(self, what: str) -> ValueType:
        number = self._u32(f"the type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            raise self._error(
                f"{what} must have a value type of 0 to {max(ValueType)}", number
            ) from None

    def _value(self, what: str) -> tuple[ValueType, Any]:
        kind = self._value_type(what)
        if kind is ValueType.STRING:
            return kind, self._string(what)
        if kind is ValueType.ARRAY:
            return kind, self._array(what, 1)
        return kind, self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str, depth: int) -> Any:
        if depth > MAX_ARRAY_DEPTH:
            raise self._error(
                f"{what} nests arrays deeper than {MAX_ARRAY_DEPTH}", f"depth {depth}"
            )
        kind = self._value_type(f"the elements of {what}")
        count = self._u64(f"the length of {what}")
        self._need(count, _LEAST_BYTES[kind], f"{count} elements of {what}")
        if kind is ValueType.STRING:
            return self._strings(count, what)
        if kind is ValueType.ARRAY:
            return [self._array(what, depth + 1) for _ in range(count)]
        return self._numbers(kind, count, what)

    def _numbers(self, kind: ValueType, count: int, what: str) -> NDArray[Any]:
        dtype = _NUMBERS[kind]
        self._need(count, dtype.itemsize, what)
        raw = self.map[self.at : self.at + count * dtype.itemsize]
        self.at += len(raw)
        if kind is ValueType.BOOL and raw.strip(b"\0\1"):
            raise self._error(f"{what} must hold bytes 0 and 1 (booleans)", raw)
        return np.frombuffer(raw, dtype)

    def _strings(self, count: int, what: str) -> list[str]:
        """A vocabulary has 50,000 to 250,000 strings: one tight loop, 0.3 us each."""
        mapping, at, size, length_at = self.map, self.at, self.size, _U64.unpack_from
        strings: list[str] = []
        for _ in range(count):
            begin = at + 8
            if begin > size:
                break
            at = begin + length_at(mapping, at)[0]
            if at > size:
                break
            raw = mapping[begin:at]
            try:
                strings.append(raw.decode())
            except UnicodeDecodeError:
                raise self._error(f"string {len(strings)} of {what} must be UTF-8", raw) from None
        if len(strings) != count:
            raise self._error(
                f"string {len(strings)} of {what} passes the end of the file",
                f"{size} bytes",
                "Fetch it again.",
            )
        self.at = at
        return strings

    def _alignment(self, metadata: dict[str, Any], types: dict[str, ValueType]) -> int:
        if "general.alignment" not in metadata:
            return DEFAULT_ALIGNMENT
        value, kind = metadata["general.alignment"], types["general.alignment"]
        if kind is not ValueType.UINT32 or value == 0 or value & (value - 1):
            raise self._error(
                "general.alignment must be a UINT32 power of two", f"{kind.name} {shorten(value)}"
            )
        return int(value)

    def _refuse_split(self, metadata: dict[str, Any]) -> None:
        count = metadata.get("split.count", 1)
        if not isinstance(count, int) or count > 1:
            raise self._error(
                "split models are not read",
                f"split.count {shorten(count)}",
                "Join it: llama-gguf-split --merge.",
            )

    def _tensor_info(self) -> TensorInfo:
        name = self._name("a tensor name")
        what = f"tensor {shorten(name)}"
        n_dims = self._u32(f"the dimensions of {what}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._error(f"{what} must have 1 to {MAX_DIMS} dimensions", n_dims)
        dims = [self._u64(f"the shape of {what}") for _ in range(n_dims)]
        if min(dims) == 0 or prod(dims) >= 2**63:
            raise self._error(f"{what} must have 1 to 2^63 - 1 elements", dims)
        return TensorInfo(
            name, tuple(reversed(dims)), self._u32(f"the type of {what}"), self._u64(what)
        )
