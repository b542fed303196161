"""Rows of buffers: where they are, and stores that quantise where the type asks for it (native/quantize.h)."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpuinfer.devices.numba.compiler import inlined, kernel
from cpuinfer.devices.numba.memory import store_f32, store_i16, store_i32
from cpuinfer.devices.numba.structs import BF16, BLOCK, F32, Q8, Record
from cpuinfer.devices.numba.vectors import (
    LANES,
    store_bf16_n,
    vf_abs,
    vf_first_n,
    vf_hmax,
    vf_hsum,
    vf_load,
    vf_load_i8,
    vf_load_n,
    vf_max,
    vf_mul,
    vf_set1,
    vf_store,
    vf_store_bf16,
    vf_store_i8,
    vf_store_n,
    vf_zero,
)

_ZERO, _MOST = np.float32(0), np.float32(127)
_LEAST_AMAX = np.float32(2.0**-119)  # below it a scale would be denormal, which a step flushes


@inlined
def row_bytes(type_: int, n: int) -> int:
    """Bytes from one row of n values to the next."""
    if type_ == Q8:
        return (n + n // 32 * 16 + 63) // 64 * 64
    if type_ == BF16:
        return (n + 1) // 2 * 4
    return 4 * n


@inlined
def rows_of(op: Record, step: Record) -> int:
    """Rows that the op runs over."""
    return step.n_rows if op.rows_are_logits else step.n_tokens  # type: ignore[no-any-return]


@inlined
def in_row(op: Record, row: int) -> int:
    """Address of a row of the first input."""
    return op.in0 + row * row_bytes(op.in_type, op.k)  # type: ignore[no-any-return]


@inlined
def out_row(op: Record, row: int) -> int:
    """Address of a row of the output."""
    return op.out + row * row_bytes(op.out_type, op.n)  # type: ignore[no-any-return]


@inlined
def load_part(row: int, n: int, at: int) -> Any:
    """Values at .. at + 15 of a row of n f32; zeros from n on."""
    if at + LANES <= n:
        return vf_load(row + 4 * at)
    if at < n:
        return vf_load_n(row + 4 * at, n - at)
    return vf_zero()


@inlined
def scales_of(amax: Any) -> tuple[Any, Any]:
    """What values are multiplied by to become codes, and the scale of these."""
    if amax < _LEAST_AMAX:
        return _ZERO, _ZERO
    return _MOST / amax, amax / _MOST


@inlined
def quantize_block(row: int, n: int, i: int, low: Any, high: Any) -> None:
    """Block i of a q8 row of width n."""
    inverse, scale = scales_of(vf_hmax(vf_max(vf_abs(low), vf_abs(high))))
    q = row + BLOCK * i
    vf_store_i8(q, vf_mul(low, vf_set1(inverse)))
    vf_store_i8(q + LANES, vf_mul(high, vf_set1(inverse)))
    first, second = vf_hsum(vf_load_i8(q)), vf_hsum(vf_load_i8(q + LANES))
    scales, part = row + n, n // BLOCK * 4
    store_f32(scales + 4 * i, scale)
    store_i32(scales + part + 4 * i, np.int64(first + second))
    store_f32(scales + 2 * part + 4 * i, scale * (first + second))
    store_i16(scales + 3 * part + 4 * i, np.int64(first))
    store_i16(scales + 3 * part + 4 * i + 2, np.int64(second))


@inlined
def store16(row: int, type_: int, n: int, at: int, x: Any) -> None:
    """Values at .. at + 15, those below n, of a row of f32 or bf16; the last of an odd bf16 row zeroes its padding."""
    left = n - at
    if type_ == F32:
        if left >= LANES:
            vf_store(row + 4 * at, x)
        else:
            vf_store_n(row + 4 * at, x, left)
    elif left >= LANES:
        vf_store_bf16(row + 2 * at, x)
    else:
        store_bf16_n(row + 2 * at, vf_first_n(x, vf_zero(), left), left + left % 2)


@kernel
def store32(row: int, type_: int, n: int, at: int, low: Any, high: Any) -> None:
    """Values at .. at + 31, those below n, of a row of f32, bf16 or q8; at is a multiple of 32."""
    if type_ == Q8:
        quantize_block(row, n, at // BLOCK, low, high)
        return
    store16(row, type_, n, at, low)
    if at + LANES < n:
        store16(row, type_, n, at + LANES, high)
