"""Tiles: one unpacked panel times one token or four. A token's sum is the same sequence of operations in either."""

from __future__ import annotations

from typing import Any

from cpuinfer.devices.numba.codes import CODES, MIN, MIN_PAIRS, UNPACKED_BLOCK
from cpuinfer.devices.numba.compiler import inlined, kernel
from cpuinfer.devices.numba.integers import (
    store_prepared,
    vh_load,
    vh_multiply_add,
    vh_pair,
    vi_add,
    vi_to_float,
    vi_zero,
)
from cpuinfer.devices.numba.memory import copy_bytes, load_f32, load_u16, store_i32
from cpuinfer.devices.numba.structs import BLOCK
from cpuinfer.devices.numba.vectors import (
    vf_fma,
    vf_load,
    vf_mul,
    vf_set1,
    vf_store,
    vf_zero,
)

PREPARED_BLOCK = 80
"""Bytes of a block of a prepared q8 row: [32] int16, as chunks are unpacked; f32 d, f32 d * s, [2] int16 s of halves."""
_D, _DS, _HALVES = 64, 68, 72


@kernel
def prepare_q8(out: int, row: int, k: int) -> None:
    """A q8 row of k values, its parts block by block."""
    part = k // BLOCK * 4
    for block in range(k // BLOCK):
        at = row + k + 4 * block
        store_prepared(out, row + BLOCK * block)
        copy_bytes(out + _D, at, 4)
        copy_bytes(out + _DS, at + 2 * part, 4)
        copy_bytes(out + _HALVES, at + 3 * part, 4)
        out += PREPARED_BLOCK


@kernel
def prepare_bf16(out: int, row: int, k: int) -> None:
    """A bf16 row of k values, rounded up to even, as f32; of every pair the odd one first."""
    n = k + k % 2
    for i in range(n):
        store_i32(out + 4 * (i ^ 1), load_u16(row + 2 * i) << 16)


@inlined
def _sums(out: int, first: int) -> Any:
    """What sums start from: zero, or what they were after the columns before `first`."""
    return vf_load(out) if first else vf_zero()


@inlined
def _int_finish(acc: Any, dot: Any, panel: int, scale: Any, x: int, mins: int) -> Any:
    """The sum with one more block (docs/design.md, section 3)."""
    d = vf_set1(load_f32(x + _D))
    acc = vf_fma(vi_to_float(dot), vf_mul(scale, d), acc)
    if mins == 1:
        acc = vf_fma(vf_load(panel + MIN), vf_set1(load_f32(x + _DS)), acc)
    elif mins == 2:
        least = vh_multiply_add(vh_load(panel + MIN_PAIRS), vh_pair(x + _HALVES))
        acc = vf_fma(vf_load(panel + MIN), vf_mul(d, vi_to_float(least)), acc)
    return acc


@kernel
def int_tile_1(panel: int, blocks: int, mins: int, x: int, out: int, first: int) -> None:
    """out [16] (+)= unpacked blocks times a prepared row."""
    acc = _sums(out, first)
    for _ in range(blocks):
        even, odd = vi_zero(), vi_zero()
        for i in range(0, 16, 2):
            codes = panel + CODES + 64 * i
            even = vi_add(even, vh_multiply_add(vh_load(codes), vh_pair(x + 4 * i)))
            odd = vi_add(odd, vh_multiply_add(vh_load(codes + 64), vh_pair(x + 4 * i + 4)))
        acc = _int_finish(acc, vi_add(even, odd), panel, vf_load(panel), x, mins)
        panel += UNPACKED_BLOCK
        x += PREPARED_BLOCK
    vf_store(out, acc)


@kernel
def int_tile_4(
    panel: int, blocks: int, mins: int, x: int, stride: int, out: int, out_stride: int, first: int
) -> None:
    """Four rows at once, `stride` bytes apart; their sums out_stride apart."""
    acc0, acc1 = _sums(out, first), _sums(out + out_stride, first)
    acc2, acc3 = _sums(out + 2 * out_stride, first), _sums(out + 3 * out_stride, first)
    for _ in range(blocks):
        x1, x2, x3 = x + stride, x + 2 * stride, x + 3 * stride
        dot0, dot1, dot2, dot3 = vi_zero(), vi_zero(), vi_zero(), vi_zero()
        for i in range(16):
            codes = vh_load(panel + CODES + 64 * i)
            dot0 = vi_add(dot0, vh_multiply_add(codes, vh_pair(x + 4 * i)))
            dot1 = vi_add(dot1, vh_multiply_add(codes, vh_pair(x1 + 4 * i)))
            dot2 = vi_add(dot2, vh_multiply_add(codes, vh_pair(x2 + 4 * i)))
            dot3 = vi_add(dot3, vh_multiply_add(codes, vh_pair(x3 + 4 * i)))
        scale = vf_load(panel)
        acc0 = _int_finish(acc0, dot0, panel, scale, x, mins)
        acc1 = _int_finish(acc1, dot1, panel, scale, x1, mins)
        acc2 = _int_finish(acc2, dot2, panel, scale, x2, mins)
        acc3 = _int_finish(acc3, dot3, panel, scale, x3, mins)
        panel += UNPACKED_BLOCK
        x += PREPARED_BLOCK
    vf_store(out, acc0)
    vf_store(out + out_stride, acc1)
    vf_store(out + 2 * out_stride, acc2)
    vf_store(out + 3 * out_stride, acc3)


@kernel
def float_tile_1(panel: int, n: int, x: int, out: int, first: int) -> None:
    """out [16] (+)= n columns of f32 times n values of a row."""
    acc = _sums(out, first)
    for k in range(n):
        acc = vf_fma(vf_load(panel + 64 * k), vf_set1(load_f32(x + 4 * k)), acc)
    vf_store(out, acc)


@kernel
def float_tile_4(
    panel: int, n: int, x: int, stride: int, out: int, out_stride: int, first: int
) -> None:
    """Four rows at once."""
    acc0, acc1 = _sums(out, first), _sums(out + out_stride, first)
    acc2, acc3 = _sums(out + 2 * out_stride, first), _sums(out + 3 * out_stride, first)
    for k in range(n):
        w, at = vf_load(panel + 64 * k), x + 4 * k
        acc0 = vf_fma(w, vf_set1(load_f32(at)), acc0)
        acc1 = vf_fma(w, vf_set1(load_f32(at + stride)), acc1)
        acc2 = vf_fma(w, vf_set1(load_f32(at + 2 * stride)), acc2)
        acc3 = vf_fma(w, vf_set1(load_f32(at + 3 * stride)), acc3)
    vf_store(out, acc0)
    vf_store(out + out_stride, acc1)
    vf_store(out + 2 * out_stride, acc2)
    vf_store(out + 3 * out_stride, acc3)
