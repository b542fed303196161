"""The packed layout r16k4: from GGUF's blocks to panels of 16 rows, and back to f32.

A matrix [N, K] becomes ceil(N / 16) panels; docs/design.md, section 2, gives the bytes inside a panel. A 4-bit or
8-bit panel is a row of tiles of 64 k: `[2 blocks][16 rows] f16` scales (then mins, for Q4_1), then the codes of the
two blocks as `[chunk][16 rows][4]` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.weights import Weight

ROWS = 16
"""Rows of a panel: the lanes of a vf16."""

_ALIGN = 64
_SLAB_BYTES = 4 << 20
"""Source bytes packed at a time: bounds the temporaries, and stays in the last-level cache."""

_HEADER = {WeightType.Q8_0: 1, WeightType.Q4_0: 1, WeightType.Q4_1: 2}
"""f16 numbers in front of a block's codes in GGUF: the scale, and for Q4_1 the min."""

_FLOATS = (WeightType.F32, WeightType.F16, WeightType.BF16)


def panel_nbytes(type: WeightType, k: int) -> int:
    """Bytes of one panel of 16 rows and k columns. Raises ValueError for a type or a k that r16k4 does not have."""
    if k <= 0:
        raise ValueError(f"a packed matrix needs K > 0, got {k}")
    if type in _FLOATS:
        return ROWS * {WeightType.F32: 4 * k, WeightType.F16: 2 * k}.get(type, -(-k // 2) * 4)
    if type not in _HEADER:
        raise ValueError(f"{type.name} has no packed form; expand it to F32 first")
    if k % 32:
        raise ValueError(f"a {type.name} matrix needs K to be a multiple of 32, got {k}")
    return -(-k // 64) * 2 * ROWS * (type.block[1])


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
    panel = panel_nbytes(type, k)
    out = _aligned(packed_nbytes(type, n, k))
    elements, block_bytes = type.block
    row_bytes = k // elements * block_bytes
    if blocks.dtype != np.uint8 or blocks.size != n * row_bytes:
        raise ValueError(
            f"a {type.name} matrix [{n}, {k}] takes {n * row_bytes} bytes (uint8), got {blocks.size} ({blocks.dtype})"
        )
    rows = blocks.reshape(n, row_bytes)
    panels = out.reshape(-1, panel)
    for begin, end in _slabs(len(panels), ROWS * row_bytes):
        slab = rows[begin * ROWS : end * ROWS]
        missing = (end - begin) * ROWS - len(slab)
        if missing:
            slab = np.concatenate([slab, np.zeros((missing, row_bytes), np.uint8)])
        _pack_slab(type, k, slab.reshape(end - begin, ROWS, row_bytes), panels[begin:end])
        if missing:
            _clear_rows(type, k, panels[end - 1], ROWS - missing)
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
    if weight.data.size != packed_nbytes(weight.type, n, k):
        raise ValueError(
            f"{weight.name}: {weight.type.name} [{n}, {k}] packs into {packed_nbytes(weight.type, n, k)} bytes, "
            f"got {weight.data.size}"
        )
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n:
        raise IndexError(f"{weight.name}: rows {rows.min()}..{rows.max()} of a matrix of {n} rows")
    panels = weight.data.reshape(-1, panel_nbytes(weight.type, k))
    wanted, where = np.unique(rows // ROWS, return_inverse=True)
    out = np.empty((rows.size, k), np.float32)
    order = np.argsort(where, kind="stable")
    for begin, end in _slabs(len(wanted), ROWS * k * 4):
        first, last = np.searchsorted(where[order], [begin, end])
        mine = order[first:last]
        values = _unpack_panels(weight.type, k, panels[wanted[begin:end]])
        out[mine] = values[where[mine] - begin, rows[mine] % ROWS]
    return out


def _slabs(n: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    step = max(1, _SLAB_BYTES // bytes_each)
    for begin in range(0, n, step):
        yield begin, min(begin + step, n)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    raw = np.empty(nbytes + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + nbytes]


def _pack_slab(type: WeightType, k: int, rows: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """rows [panels, 16, row bytes] into out [panels, panel bytes]."""
    panels = len(rows)
    if type is WeightType.F32:
        out.view(np.uint32).reshape(panels, k, ROWS)[:] = rows.view(np.uint32).swapaxes(1, 2)
        return
    if type is WeightType.F16:
        out.view(np.uint16).reshape(panels, k, ROWS)[:] = rows.view(np.uint16).swapaxes(1, 2)
        return
    if type is WeightType.BF16:
        if k % 2:
            rows = np.concatenate([rows, np.zeros((panels, ROWS, 2), np.uint8)], axis=2)
        out.view(np.uint32).reshape(panels, -1, ROWS)[:] = rows.view(np.uint32).swapaxes(1, 2)
        return
    header, codes = _tiles(type, k, out)
    n_blocks = k // 32
    blocks = rows.reshape(panels, ROWS, n_blocks, type.block[1])
    split = 2 * _HEADER[type]
    scales = np.ascontiguousarray(blocks[..., :split]).view(np.uint16)
    chunks = np.ascontiguousarray(blocks[..., split:])
    if type is WeightType.Q8_0:
        chunks ^= 0x80  # q + 128
    words = chunks.view(np.uint32)
    for half in range(
        2
    ):  # [panel, row, block, i] of either half of the tiles -> [panel, tile, i, row]
        count = len(range(half, n_blocks, 2))
        header[:, :count, :, half] = scales[:, :, half::2].transpose(0, 2, 3, 1)
        codes[:, :count, half] = words[:, :, half::2].transpose(0, 2, 3, 1)
        header[:, count:, :, half] = 0
        codes[:, count:, half] = 0


def _tiles(
    type: WeightType, k: int, panels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Views of the panels: scales (and mins) [panel, tile, 1 or 2, half, 16], codes [panel, tile, half, chunk, 16]."""
    n, tiles = len(panels), -(-k // 64)
    split = 2 * ROWS * 2 * _HEADER[type]
    parts = panels.reshape(n, tiles, -1)
    header = parts[..., :split].view(np.uint16).reshape(n, tiles, _HEADER[type], 2, ROWS)
    codes = parts[..., split:].view(np.uint32).reshape(n, tiles, 2, -1, ROWS)
    return header, codes


def _clear_rows(type: WeightType, k: int, panel: NDArray[np.uint8], first: int) -> None:
    """Zero bytes in rows first.. of a panel: Q8_0's absent rows have code 0, like an absent block."""
    if type is WeightType.Q8_0:
        _tiles(type, k, panel[None])[1][..., first:] = 0


def _unpack_panels(type: WeightType, k: int, panels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[panels, panel bytes] to f32 [panels, 16, k]."""
    n = len(panels)
    if type is WeightType.F32:
        return panels.view(np.float32).reshape(n, k, ROWS).swapaxes(1, 2)
    if type is WeightType.F16:
        return panels.view(np.float16).reshape(n, k, ROWS).swapaxes(1, 2).astype(np.float32)
    if type is WeightType.BF16:
        pairs = panels.view(np.uint16).reshape(n, -1, ROWS, 2).swapaxes(1, 2)
        return (pairs.reshape(n, ROWS, -1)[..., :k].astype(np.uint32) << 16).view(np.float32)
    header, words = _tiles(type, k, panels)
    codes = words.view(np.uint8).reshape(*words.shape, 4)  # [panel, tile, half, chunk, row, 4]
    offset = np.float32({WeightType.Q8_0: 128, WeightType.Q4_0: 8}.get(type, 0))
    if type is not WeightType.Q8_0:
        codes = np.concatenate([codes & 15, codes >> 4], axis=3)
    by_row = codes.transpose(0, 4, 1, 2, 3, 5).reshape(n, ROWS, -1, 32)
    factors = (
        header.view(np.float16).transpose(2, 0, 4, 1, 3).reshape(_HEADER[type], n, ROWS, -1, 1)
    )
    values: NDArray[np.float32] = by_row.astype(np.float32)
    values = (values - offset) * factors[0].astype(np.float32)
    if _HEADER[type] == 2:
        values += factors[1].astype(np.float32)
    rows: NDArray[np.float32] = values.reshape(n, ROWS, -1)[..., :k]
    return rows
