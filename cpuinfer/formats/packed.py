"""The packed file: a GGUF container whose tensors are weights in the r16k4 layout, ready to be
mapped and run.

Metadata is the source's own, so tokenizer and hyperparameters travel along and `gguf` reads the
file. To it come:

| key | type | what |
|---|---|---|
| `general.alignment` | u32 | 64: a packed chunk is one cache line |
| `cpuinfer.pack.version` | u32 | 2 (1 knew six types and expanded all others); any change of the layout raises it |
| `cpuinfer.pack.source_sha256` | string | SHA-256 of the source file, 64 hex digits |
| `cpuinfer.pack.source_types` | u32 [tensors] | type in the source, numbered as in GGUF |
| `cpuinfer.pack.types` | u32 [tensors] | type here: F32 for vectors, and where the source's has no native kernel |
| `cpuinfer.pack.rows` | u64 [tensors] | N, or the length of a vector |
| `cpuinfer.pack.columns` | u64 [tensors] | K, or 0 for a vector |

The arrays are in the order of the tensor entries. A matrix is an I8 tensor of one dimension, its
packed bytes; a vector is an F32 tensor. Packed files are untrusted: every size is checked against
the layout's before it is used. A file must not be cut short while it is mapped (the system ends
whoever reads a mapped page that is gone): ours are replaced whole, never written in place.
"""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.formats.gguf import PACK_VERSION_KEY, type_name
from cpuinfer.formats.header import (
    FormatError,
    Header,
    TensorInfo,
    map_file,
    read_header,
    shorten,
)
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4 import packed_nbytes
from cpuinfer.graph.weights import Weight
from cpuinfer.machine import system

PACK_VERSION = 2
PACK_ALIGNMENT = 64
"""Weights start on a cache line: kernels load whole aligned 64-byte chunks."""
MAX_DIM = 2**31 - 1
"""`ci_weight` counts rows and columns in int32."""
CONTAINER_I8 = 24
"""ggml's number of the type I8, under which a packed matrix lies in the container."""
SHA256_KEY = "cpuinfer.pack.source_sha256"
SOURCE_TYPES_KEY = "cpuinfer.pack.source_types"
TYPES_KEY = "cpuinfer.pack.types"
ROWS_KEY = "cpuinfer.pack.rows"
COLUMNS_KEY = "cpuinfer.pack.columns"

_REPACK = "Pack it again from its source: cpuinfer pack."


@dataclass(frozen=True)
class PackedModel:
    """A mapped packed file. Its weights are views of the mapping, which ends with the last of them.

    `weight_types` are the types as packed; `expanded` names the tensors whose own type (the value)
    has no native kernel and which are stored as F32. `nbytes` is the file's size.
    """

    path: str
    nbytes: int
    metadata: dict[str, Any]
    source_sha256: str
    weights: dict[str, Weight]
    expanded: dict[str, WeightType]

    @property
    def weight_types(self) -> dict[str, WeightType]:
        """The packed type of every weight."""
        return {name: weight.type for name, weight in self.weights.items()}


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a packed file: `columns` 0 means a vector of `rows` floats."""

    name: str
    source_type: WeightType
    type: WeightType
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K), or (n,) of a vector."""
        return (self.rows, self.columns) if self.columns else (self.rows,)

    @property
    def nbytes(self) -> int:
        """Bytes of its data in the packed file."""
        return packed_nbytes(self.type, self.rows, self.columns) if self.columns else self.rows * 4

    @property
    def container_type(self) -> int:
        """Its ggml type number in the container."""
        return CONTAINER_I8 if self.columns else int(WeightType.F32)

    @property
    def container_shape(self) -> tuple[int, ...]:
        """Its shape in the container."""
        return (self.nbytes,) if self.columns else (self.rows,)


def packed_type(source: WeightType, is_matrix: bool) -> WeightType:
    """The type as which a tensor is packed: its own where a native kernel reads it, else F32;
    vectors are F32.
    """
    return source if is_matrix and source.is_native else WeightType.F32


def open_packed(path: str | os.PathLike[str]) -> PackedModel:
    """Map a packed file and check it; copies no weight, and reads no more than the header.

    Raises FormatError for a file that is not a sound packed file of this version; OSError where it
    can't be opened.
    """
    mapping = map_file(path)
    return from_header(mapping, read_header(path, mapping))


def from_header(mapping: mmap.mmap, header: Header) -> PackedModel:
    """`open_packed` for a file whose header is read already."""
    tensors = dict(zip((info.name for info in header.tensors), _tensors(header), strict=True))
    regions = header.regions(lambda info: tensors[info.name].nbytes, len(mapping))
    system.read_ahead(mapping)  # while the caller builds its program
    file_bytes = np.frombuffer(mapping, np.uint8)
    weights = {
        name: Weight(name, tensor.type, tensor.shape, file_bytes[slice(*regions[name])])
        for name, tensor in tensors.items()
    }
    expanded = {n: t.source_type for n, t in tensors.items() if not t.source_type.is_native}
    sha256 = header.metadata[SHA256_KEY]
    return PackedModel(header.path, len(mapping), header.metadata, sha256, weights, expanded)


def _tensors(header: Header) -> list[PackedTensor]:
    metadata = header.metadata
    version = metadata.get(PACK_VERSION_KEY)
    if version != PACK_VERSION:
        raise FormatError(
            header.path, f"packed files of version {PACK_VERSION} are read", version, _REPACK
        )
    sha256 = metadata.get(SHA256_KEY)
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise FormatError(header.path, f"{SHA256_KEY} must be 64 hex digits", sha256, _REPACK)
    if header.alignment % PACK_ALIGNMENT:
        raise FormatError(
            header.path,
            f"alignment must be a multiple of {PACK_ALIGNMENT}",
            header.alignment,
            _REPACK,
        )
    columns = [
        _numbers(header, key) for key in (SOURCE_TYPES_KEY, TYPES_KEY, ROWS_KEY, COLUMNS_KEY)
    ]
    entries = zip(header.tensors, *(column.tolist() for column in columns), strict=True)
    return [_tensor(header.path, *entry) for entry in entries]


def _numbers(header: Header, key: str) -> NDArray[Any]:
    value = header.metadata.get(key)
    if (
        not isinstance(value, np.ndarray)
        or value.dtype.kind != "u"
        or len(value) != len(header.tensors)
    ):
        what = f"{key} must be an array of {len(header.tensors)} unsigned numbers"
        got = f"{value.dtype} [{len(value)}]" if isinstance(value, np.ndarray) else value
        raise FormatError(header.path, what, got, _REPACK)
    return value


def _tensor(
    path: str, info: TensorInfo, source: int, kind: int, rows: int, columns: int
) -> PackedTensor:
    what = f"tensor {shorten(info.name)}"
    try:
        source_type, weight_type = WeightType(source), WeightType(kind)
    except ValueError:
        raise FormatError(
            path, f"{what} has a type that packed files don't have", (source, kind), _REPACK
        ) from None
    if weight_type is not packed_type(source_type, columns > 0):
        raise FormatError(
            path, f"{what} of type {source_type.name} can't be packed so", weight_type.name, _REPACK
        )
    if not 1 <= rows <= MAX_DIM or not 0 <= columns <= MAX_DIM:
        raise FormatError(
            path, f"{what} must have 1 to {MAX_DIM} rows and columns", (rows, columns), _REPACK
        )
    block = weight_type.block[0]
    if columns % block:
        raise FormatError(
            path, f"columns of {what} must be a multiple of {block}", columns, _REPACK
        )
    tensor = PackedTensor(info.name, source_type, weight_type, rows, columns)
    if (info.type_number, info.shape) != (tensor.container_type, tensor.container_shape):
        raise FormatError(
            path,
            f"{what} must be {type_name(tensor.container_type)} {tensor.container_shape} inside",
            f"{type_name(info.type_number)} {info.shape}",
            _REPACK,
        )
    return tensor
