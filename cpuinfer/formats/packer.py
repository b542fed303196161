"""Packing: a plain GGUF file in, a packed file out, a slab of rows at a time."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpuinfer.formats.gguf import PACK_VERSION_KEY, GGUFFile, GGUFTensor, open_gguf
from cpuinfer.formats.header import FormatError, ValueType, shorten
from cpuinfer.formats.packed import (
    COLUMNS_KEY,
    MAX_DIM,
    PACK_ALIGNMENT,
    PACK_VERSION,
    ROWS_KEY,
    SHA256_KEY,
    SOURCE_TYPES_KEY,
    TYPES_KEY,
    PackedModel,
    PackedTensor,
    open_packed,
    packed_type,
)
from cpuinfer.formats.quant_types import dequantize_bytes, row_slabs
from cpuinfer.formats.replacing import replacing
from cpuinfer.graph import r16k4

Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all) as packing goes on."""


def pack(
    source: str | os.PathLike[str], target: str | os.PathLike[str], progress: Progress | None = None
) -> PackedModel:
    """Write the plain GGUF file `source` as a packed file `target` (replaced whole, or untouched on
    any failure).

    Raises FormatError for a source that is not sound or holds what can't be packed, ValueError
    where both paths are one file, OSError where the target can't be written (a full disk says how
    many bytes are needed).
    """
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(
            f"{os.fspath(target)}: the packed file would replace its source; give another target"
        )
    with open_gguf(source) as model:
        write_packed(model, hashlib.sha256(model.mapping).hexdigest(), Path(target), progress)
    return open_packed(target)


def write_packed(
    model: GGUFFile, sha256: str, target: Path, progress: Progress | None = None
) -> None:
    """`pack` for an open file of known SHA-256 (64 hex digits)."""
    tensors = [_plan(model.path, tensor) for tensor in model.tensors.values()]
    if not tensors:
        raise FormatError(
            model.path,
            "a model with weights is wanted",
            "a file without tensors",
            "Give a whole model.",
        )
    header = _header(model, sha256, tensors)
    total = len(header) + sum(_aligned(tensor.nbytes) for tensor in tensors)
    with replacing(target, total) as file:
        file.write(header)
        for tensor in tensors:
            for slab in _packed_slabs(model.tensors[tensor.name], tensor):
                file.write(slab.data)
            file.write(bytes(_aligned(tensor.nbytes) - tensor.nbytes))
            if progress is not None:
                progress(file.tell(), total)


def _plan(path: str, tensor: GGUFTensor) -> PackedTensor:
    """How a tensor will lie in the packed file. Raises FormatError for one that can't be packed."""
    if len(tensor.shape) > 2:
        raise FormatError(
            path,
            f"tensor {shorten(tensor.name)} must be a matrix or a vector",
            tensor.shape,
            "Models with tensors of more dimensions (mixtures of experts) are not supported.",
        )
    if max(tensor.shape) > MAX_DIM:
        raise FormatError(
            path,
            f"tensor {shorten(tensor.name)} must have at most {MAX_DIM} rows and columns",
            tensor.shape,
            "Models of matrices that large are not supported.",
        )
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (tensor.shape[0], 0)
    return PackedTensor(
        tensor.name, tensor.type, packed_type(tensor.type, columns > 0), rows, columns
    )


def _packed_slabs(tensor: GGUFTensor, plan: PackedTensor) -> Iterator[NDArray[np.uint8]]:
    """The tensor's packed bytes in order. Slabs are whole panels of 16 rows, so their packs follow
    each other.
    """
    for slab in row_slabs(tensor):
        if plan.type is not tensor.type:
            slab = dequantize_bytes(slab, tensor.type).view(np.uint8)
        if plan.columns:
            block_elements, block_bytes = plan.type.block
            rows = slab.size // (plan.columns // block_elements * block_bytes)
            slab = r16k4.pack(plan.type, rows, plan.columns, slab)
        yield slab


def _aligned(n: int) -> int:
    return -(-n // PACK_ALIGNMENT) * PACK_ALIGNMENT


def _header(model: GGUFFile, sha256: str, tensors: Sequence[PackedTensor]) -> bytes:
    """The container up to its first tensor: the source's key-value pairs as they are, then ours."""
    kept = {
        key: span
        for key, span in model.header.spans.items()
        if key != "general.alignment" and not key.startswith("cpuinfer.pack.")
    }
    ours = [
        _key("general.alignment", ValueType.UINT32) + struct.pack("<I", PACK_ALIGNMENT),
        _key(PACK_VERSION_KEY, ValueType.UINT32) + struct.pack("<I", PACK_VERSION),
        _key(SHA256_KEY, ValueType.STRING) + _string(sha256),
        _array(SOURCE_TYPES_KEY, ValueType.UINT32, "<u4", [t.source_type for t in tensors]),
        _array(TYPES_KEY, ValueType.UINT32, "<u4", [t.type for t in tensors]),
        _array(ROWS_KEY, ValueType.UINT64, "<u8", [t.rows for t in tensors]),
        _array(COLUMNS_KEY, ValueType.UINT64, "<u8", [t.columns for t in tensors]),
    ]
    out = io.BytesIO()
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(kept) + len(ours)))
    for start, end in kept.values():
        out.write(model.mapping[start:end])
    out.writelines(ours)
    offset = 0
    for tensor in tensors:
        (dim,) = tensor.container_shape
        out.write(
            _string(tensor.name) + struct.pack("<IQIQ", 1, dim, tensor.container_type, offset)
        )
        offset += _aligned(tensor.nbytes)
    out.write(bytes(_aligned(out.tell()) - out.tell()))
    return out.getvalue()


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _key(name: str, kind: ValueType) -> bytes:
    return _string(name) + struct.pack("<I", kind)


def _array(name: str, kind: ValueType, dtype: str, values: Sequence[int]) -> bytes:
    return (
        _key(name, ValueType.ARRAY)
        + struct.pack("<IQ", kind, len(values))
        + np.array(values, dtype).tobytes()
    )
