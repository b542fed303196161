"""GGUF files: metadata and tensors, mapped. Untrusted input; see `header` for how it is read."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.formats.header import (
    BROKEN,
    FormatError,
    Header,
    TensorInfo,
    map_file,
    read_header,
    shorten,
)
from cpuinfer.graph.dtypes import WeightType

PACK_VERSION_KEY = "cpuinfer.pack.version"
"""The key that makes a GGUF file a packed file (see `packed`)."""


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file: `shape` row-major (N first); `data` its bytes, a read-only view of
    the mapped file.
    """

    name: str
    type: WeightType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file, mapped read-only. A context manager.

    Values of `metadata` are int, float, bool, str, lists of str or of lists, or read-only arrays of
    numbers. `data` of a tensor stays valid after `close`: the mapping ends when its last view does.
    """

    header: Header
    tensors: dict[str, GGUFTensor]
    mapping: mmap.mmap

    @property
    def path(self) -> str:
        """The path as given."""
        return self.header.path

    @property
    def metadata(self) -> dict[str, Any]:
        """Every key of the file and its value."""
        return self.header.metadata

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.mapping)

    def close(self) -> None:
        """Forget the tensors; the mapping ends with its last view."""
        self.tensors.clear()
        try:
            self.mapping.close()
        except BufferError:  # views are held elsewhere: the last of them ends the mapping
            return

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF file (version 2 or 3, little endian). A file without tensors (vocabulary only) is
    fine.

    Raises FormatError for a file that is not sound, whole and of supported types; OSError where it
    can't be opened.
    """
    mapping = map_file(path)
    return from_header(mapping, read_header(path, mapping))


def from_header(mapping: mmap.mmap, header: Header) -> GGUFFile:
    """`open_gguf` for a file whose header is read already."""
    if PACK_VERSION_KEY in header.metadata:
        raise FormatError(
            header.path,
            "a plain GGUF file is wanted",
            "a packed file",
            "Give it to open_packed or load_model.",
        )
    types = {info.name: _weight_type(header, info) for info in header.tensors}
    regions = header.regions(
        lambda info: _stored_bytes(header, info, types[info.name]), len(mapping)
    )
    file_bytes = np.frombuffer(mapping, np.uint8)
    tensors = {
        name: GGUFTensor(name, types[name], shape, file_bytes[slice(*regions[name])])
        for name, shape in ((info.name, info.shape) for info in header.tensors)
    }
    return GGUFFile(header, tensors, mapping)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of any GGUF file: plain, packed, vocabulary-only, or with tensors of types we lack.

    Raises FormatError, OSError as `open_gguf`.
    """
    with map_file(path) as mapping:
        return read_header(path, mapping).metadata


def _weight_type(header: Header, info: TensorInfo) -> WeightType:
    try:
        return WeightType(info.type_number)
    except ValueError:
        raise FormatError(
            header.path,
            f"tensor {shorten(info.name)} has a type that cpuinfer does not read",
            type_name(info.type_number),
            f"Types that it reads: {', '.join(t.name for t in WeightType)}.",
        ) from None


def type_name(number: int) -> str:
    """The name of a ggml tensor type, or its number where `gguf` does not know it either."""
    from gguf import (
        GGMLQuantizationType,
    )  # only on the way to an error or in a listing: costs 60 ms

    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return f"type number {number}"


def _stored_bytes(header: Header, info: TensorInfo, kind: WeightType) -> int:
    elements, size = kind.block
    if info.shape[-1] % elements:
        raise FormatError(
            header.path,
            f"rows of {kind.name} tensor {shorten(info.name)} must be multiples of {elements}",
            info.shape,
            BROKEN,
        )
    return prod(info.shape) // elements * size
