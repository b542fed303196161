"""Quantised tensors back to f32, exactly as llama.cpp does: the same IEEE-754 operations in the
same order.

The arithmetic is `gguf.quants`'; tests compare it bit by bit with ggml's own `to_float` of every
type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cpuinfer.formats.gguf import GGUFTensor
from cpuinfer.graph.dtypes import WeightType

_SLAB_ELEMENTS = 1 << 20
"""Elements converted at once. `gguf.quants` makes about ten temporaries of up to 4 bytes an
element: 40 MB.
"""
_SLAB_ROWS = 16
"""Slabs are whole panels of the packed layout, so a packed matrix is its slabs' packs one after
another.
"""


def dequantize(tensor: GGUFTensor) -> NDArray[np.float32]:
    """The tensor's values, f32, of its shape ([N, K] for a matrix).

    Infinite and NaN block scales give infinities and NaNs, as in llama.cpp; nothing is raised for
    them.
    """
    out = np.empty(tensor.shape, np.float32)
    rows = out.reshape(-1, tensor.shape[-1])
    at = 0
    for slab in row_slabs(tensor):
        values = dequantize_bytes(slab, tensor.type)
        n = values.size // tensor.shape[-1]
        rows[at : at + n] = values.reshape(n, -1)
        at += n
    return out


def row_slabs(tensor: GGUFTensor) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes in order, cut between rows: views of about a million elements, whole
    panels of 16 rows.
    """
    k = tensor.shape[-1]
    elements, size = tensor.type.block
    row_bytes = k // elements * size
    rows = max(1, _SLAB_ELEMENTS // k // _SLAB_ROWS) * _SLAB_ROWS
    for begin in range(0, tensor.data.size, rows * row_bytes):
        yield tensor.data[begin : begin + rows * row_bytes]


def dequantize_bytes(data: NDArray[np.uint8], kind: WeightType) -> NDArray[np.float32]:
    """Whole blocks of `kind` (uint8 [n]) as f32 [n / block bytes * block elements]."""
    if kind is WeightType.F32:
        return data.view("<f4")
    if kind is WeightType.F16:
        return data.view("<f2").astype(np.float32)
    from gguf import GGMLQuantizationType, quants  # late: 60 ms, and native types never need it

    with np.errstate(invalid="ignore", over="ignore"):
        values = quants.dequantize(data, GGMLQuantizationType(kind.value))
    return cast(NDArray[np.float32], values)
