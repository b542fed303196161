"""The packed layout r16k4: from GGUF's blocks to panels of 16 rows, and back to f32.

A matrix [N, K] becomes ceil(N / 16) panels, each a row of units along K; docs/design.md, section 2, gives the bytes of
a unit, r16k4_types the fields they are. Here fields only change places: rows come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4_types import LAYOUTS, ROWS, Layout, Record, Terms
from cpuinfer.graph.weights import Weight

_ALIGN = 64
_SLAB_BYTES = 1 << 20
"""Source bytes packed at a time: bounds the temporaries, and stays in the last-level cache."""


def panel_nbytes(type: WeightType, k: int) -> int:
    """Bytes of one panel of 16 rows and k columns. Raises ValueError for a type or a k that r16k4 does not have."""
    if k <= 0:
        raise ValueError(f"a packed matrix needs K > 0, got {k}")
    if k % type.block[0]:
        raise ValueError(
            f"a {type.name} matrix needs K to be a multiple of {type.block[0]}, got {k}"
        )
    layout = LAYOUTS[type]
    return -(-k // (layout.elements * layout.blocks)) * layout.unit.itemsize


def packed_nbytes(type: WeightType, n: int, k: int) -> int:
    """Bytes of a packed [n, k] matrix. Raises ValueError as panel_nbytes does."""
    if n <= 0:
        raise ValueError(f"a packed matrix needs N > 0, got {n}")
    return -(-n // ROWS) * panel_nbytes(type, k)


def pack(type: WeightType, n: int, k: int, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack a matrix [n, k] whose rows are stored as in a GGUF file; `blocks` are its bytes, of any shape.

    Returns uint8 [packed_nbytes(type, n, k)], 64-byte aligned. Raises ValueError as panel_nbytes does, and where
    `blocks` has not the size of the matrix.
    """
    layout = LAYOUTS[type]
    out = aligned_empty(packed_nbytes(type, n, k))
    elements, block_bytes = type.block
    row_bytes = k // elements * block_bytes
    if blocks.dtype != np.uint8 or blocks.size != n * row_bytes:
        raise ValueError(
            f"a {type.name} matrix [{n}, {k}] takes {n * row_bytes} bytes (uint8), got {blocks.size} ({blocks.dtype})"
        )
    rows = np.ascontiguousarray(blocks).reshape(n, row_bytes)
    units = out.view(layout.unit).reshape(-(-n // ROWS), -1)
    whole = n // ROWS
    for begin, end in _slabs(whole, ROWS * row_bytes):
        slab = rows[begin * ROWS : end * ROWS].reshape(end - begin, ROWS, row_bytes)
        _pack_slab(layout, slab, units[begin:end])
    if n % ROWS:
        _pack_slab(layout, rows[None, whole * ROWS :], units[whole:])
    return out


def unpack(weight: Weight) -> NDArray[np.float32]:
    """The f32 values [N, K] of a packed matrix, as GGUF defines them; [n] of a vector."""
    if len(weight.shape) == 1:
        return weight.data.view(np.float32)
    return unpack_rows(weight, np.arange(weight.shape[0]))


def unpack_rows(weight: Weight, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    """The f32 values [len(rows), K] of some rows of a packed matrix; an index may repeat.

    Raises ValueError where `data` has not the size that `shape` and `type` give. Raises IndexError for a row
    outside 0..N-1.
    """
    n, k = weight.shape
    _check_size(weight)
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise IndexError(f"{weight.name}: rows {rows.min()}..{rows.max()} of a matrix of {n} rows")
    layout = LAYOUTS[weight.type]
    panels = weight.data.reshape(-(-n // ROWS), -1)
    wanted, where = np.unique(rows // ROWS, return_inverse=True)
    out = np.empty((rows.size, k), np.float32)
    order = np.argsort(where, kind="stable")
    for begin, end in _slabs(len(wanted), ROWS * k):
        first, last = np.searchsorted(where[order], [begin, end])
        mine = order[first:last]
        units = panels[wanted[begin:end]].view(layout.unit)
        terms = _terms(layout, k, units)
        with np.errstate(invalid="ignore", over="ignore"):  # scales of a file may be anything
            values = terms.values()  # [panels, 16, blocks, elements]
        by_row = values.reshape(end - begin, ROWS, -1)[..., :k]
        out[mine] = by_row[where[mine] - begin, rows[mine] % ROWS]
    return out


def unpack_terms(weight: Weight) -> Terms:
    """A packed matrix as what its weights are computed from, the leading dimensions [N, blocks]; all of it at once.

    A block has 32 or 256 weights; for BF16 two, of which the last of an odd K is zero. Raises ValueError as unpack_rows.
    """
    n, k = weight.shape
    _check_size(weight)
    layout = LAYOUTS[weight.type]
    terms = _terms(layout, k, weight.data.view(layout.unit).reshape(-(-n // ROWS), -1))

    def by_row(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x.reshape(-1, *x.shape[2:])[:n]

    scales, mins = (x if x is None else by_row(x) for x in (terms.scales, terms.mins))
    return Terms(by_row(terms.codes), scales, mins)


def _check_size(weight: Weight) -> None:
    n, k = weight.shape
    if weight.data.size != packed_nbytes(weight.type, n, k):
        raise ValueError(
            f"{weight.name}: {weight.type.name} [{n}, {k}] packs into {packed_nbytes(weight.type, n, k)} bytes, "
            f"got {weight.data.size}"
        )


def _slabs(n: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLAB_BYTES // bytes_each)
    for begin in range(0, n, step):
        yield begin, min(begin + step, n)


def aligned_empty(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that start on a cache line."""
    raw = np.empty(nbytes + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + nbytes]


def _leaves(layout: Layout, units: Record) -> Iterator[tuple[str, NDArray[Any]]]:
    """The fields of units [panels, units], by name: views [panels, units, blocks, inner..., 16]."""
    for name in layout.unit.names or ():
        field = units[name]
        if field.dtype.names is None:
            yield name, field
        else:
            yield from ((inner, field[inner]) for inner in field.dtype.names)


def _pack_slab(layout: Layout, rows: NDArray[np.uint8], units: Record) -> None:
    """rows [panels, up to 16, row bytes] into units [panels, units]; rows and blocks that are absent become zero."""
    odd = -rows.shape[2] % layout.block.itemsize
    if odd:  # BF16's last pair of an odd K
        rows = np.pad(rows, ((0, 0), (0, 0), (0, odd)))
    n_rows = rows.shape[1]
    fields = layout.split(rows.view(layout.block))
    for name, there in _leaves(layout, units):
        # [inner..., panels, rows, blocks] -> [panels, blocks, inner..., rows]
        here = np.moveaxis(fields[name], (-3, -1, -2), (0, 1, -1))
        for block in range(layout.blocks):
            own = here[:, block :: layout.blocks]
            there[:, : own.shape[1], block, ..., :n_rows] = own
            there[:, own.shape[1] :, block] = 0
        there[..., n_rows:] = 0


def _terms(layout: Layout, k: int, units: Record) -> Terms:
    """Units [panels, units] as terms whose leading dimensions are [panels, 16, blocks]."""
    n_blocks = -(-k // layout.elements)
    fields = {}
    for name, field in _leaves(layout, units):
        by_row = np.moveaxis(field, -1, 1)  # [panels, 16, units, blocks, inner...]
        blocks = by_row.reshape(*by_row.shape[:2], -1, *by_row.shape[4:])
        fields[name] = np.ascontiguousarray(blocks[:, :, :n_blocks])
    with np.errstate(invalid="ignore", over="ignore"):  # as above
        return layout.terms(fields)
