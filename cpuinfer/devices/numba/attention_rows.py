"""One row of attention: a query's head against a group of 64 keys, and how its partial results become one.

A row's state: f32 max and sum on a line of their own, 16 lanes of the sum, then the output [padded].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpuinfer.devices.numba.compiler import inlined, kernel, unliteral
from cpuinfer.devices.numba.memory import copy_bytes, load_f32, store_f32
from cpuinfer.devices.numba.structs import Record
from cpuinfer.devices.numba.vectors import (
    LANES,
    vf_add,
    vf_div,
    vf_first_n,
    vf_fma,
    vf_hmax,
    vf_hsum,
    vf_load,
    vf_max,
    vf_mul,
    vf_set1,
    vf_store,
    vf_store_n,
    vf_sub,
    vf_zero,
)
from cpuinfer.devices.numba.vmath import vf_exp_nonpositive, vf_tanh

_MINUS_INFINITY, _ONE, _ZERO = np.float32(-np.inf), np.float32(1), np.float32(0)
_SUM, _LANES, _OUT = 4, 64, 128
_KEY0, _KEY1, _KEY2, _KEY3 = (unliteral(i) for i in (0, 16, 32, 48))
"""First keys of a group's vectors."""


@inlined
def start_row(state: int, padded: int) -> None:
    """Nothing seen yet."""
    store_f32(state, _MINUS_INFINITY)
    vf_store(state + _LANES, vf_zero())
    for d in range(0, padded, LANES):
        vf_store(state + _OUT + 4 * d, vf_zero())


@inlined
def row_sum(state: int) -> None:
    """The sum, of its lanes by the fixed tree."""
    store_f32(state + _SUM, vf_hsum(vf_load(state + _LANES)))


@inlined
def _mask(x: Any, y: Any, i: int, low: int, high: int) -> Any:
    """Lanes of keys low .. high - 1 keep x, the others take y; the vector's first key is i."""
    return vf_first_n(y, vf_first_n(x, y, high - i), low - i)


@inlined
def _capped(op: Record, x: Any) -> Any:
    if op.softcap > _ZERO:
        cap = vf_set1(op.softcap)
        return vf_mul(cap, vf_tanh(vf_div(x, cap)))
    return x


@inlined
def _probability(s: Any, top: Any, i: int, low: int, high: int) -> Any:
    return _mask(vf_exp_nonpositive(vf_sub(s, top)), vf_zero(), i, low, high)


@kernel
def _rescale(state: int, old: Any, top: Any, padded: int) -> None:
    """What there is, relative to a new maximum."""
    factor = vf_exp_nonpositive(vf_set1(old - top))
    vf_store(state + _LANES, vf_mul(vf_load(state + _LANES), factor))
    for d in range(_OUT, _OUT + 4 * padded, 4 * LANES):
        vf_store(state + d, vf_mul(vf_load(state + d), factor))


@kernel
def attend_row(
    op: Record, has_scales: bool, q: int, low: int, high: int, own: int, state: int
) -> None:
    """One online-softmax update of a row by keys low .. high - 1 of the group that lies in `own`, f32: K
    [4][head_dim][16], V [64][padded], with has_scales then those of K [64] and V [64], and room for [64]."""
    depth, page = op.head_dim, 64 * op.head_dim
    padded = (depth + LANES - 1) // LANES * LANES
    s0, s1, s2, s3 = vf_zero(), vf_zero(), vf_zero(), vf_zero()
    for d in range(depth):
        x, k = vf_set1(load_f32(q + 4 * d)), own + 64 * d
        s0, s1 = vf_fma(x, vf_load(k), s0), vf_fma(x, vf_load(k + page), s1)
        s2, s3 = vf_fma(x, vf_load(k + 2 * page), s2), vf_fma(x, vf_load(k + 3 * page), s3)
    scales = own + 256 * (depth + padded)
    if has_scales:
        s0, s1 = vf_mul(s0, vf_load(scales)), vf_mul(s1, vf_load(scales + 64))
        s2, s3 = vf_mul(s2, vf_load(scales + 128)), vf_mul(s3, vf_load(scales + 192))
    scale, nothing = vf_set1(op.scale), vf_set1(_MINUS_INFINITY)
    s0, s1 = _capped(op, vf_mul(s0, scale)), _capped(op, vf_mul(s1, scale))
    s2, s3 = _capped(op, vf_mul(s2, scale)), _capped(op, vf_mul(s3, scale))
    old = load_f32(state)
    most = vf_max(vf_set1(old), _mask(s0, nothing, _KEY0, low, high))
    most = vf_max(most, _mask(s1, nothing, _KEY1, low, high))
    most = vf_max(most, _mask(s2, nothing, _KEY2, low, high))
    most = vf_max(most, _mask(s3, nothing, _KEY3, low, high))
    top = vf_hmax(most)
    if top != old:
        store_f32(state, top)
        if old != _MINUS_INFINITY:
            _rescale(state, old, top, padded)
    most = vf_set1(load_f32(state))
    p0, p1 = _probability(s0, most, _KEY0, low, high), _probability(s1, most, _KEY1, low, high)
    p2, p3 = _probability(s2, most, _KEY2, low, high), _probability(s3, most, _KEY3, low, high)
    total = vf_add(vf_add(vf_load(state + _LANES), p0), p1)
    vf_store(state + _LANES, vf_add(vf_add(total, p2), p3))
    if has_scales:
        p0, p1 = vf_mul(p0, vf_load(scales + 256)), vf_mul(p1, vf_load(scales + 320))
        p2, p3 = vf_mul(p2, vf_load(scales + 384)), vf_mul(p3, vf_load(scales + 448))
    p = scales + 512
    vf_store(p, p0)
    vf_store(p + 64, p1)
    vf_store(p + 128, p2)
    vf_store(p + 192, p3)
    _add_values(p, own + 256 * depth, low, high, padded, state + _OUT)


@inlined
def _add_values(p: int, v: int, low: int, high: int, padded: int, out: int) -> None:
    """out [padded] += p[key] * V[key], key by key."""
    d = 0
    while d + 64 <= padded:
        o, at = out + 4 * d, v + 4 * d
        o0, o1, o2, o3 = vf_load(o), vf_load(o + 64), vf_load(o + 128), vf_load(o + 192)
        for key in range(low, high):
            x, row = vf_set1(load_f32(p + 4 * key)), at + 4 * padded * key
            o0, o1 = vf_fma(x, vf_load(row), o0), vf_fma(x, vf_load(row + 64), o1)
            o2, o3 = vf_fma(x, vf_load(row + 128), o2), vf_fma(x, vf_load(row + 192), o3)
        vf_store(o, o0)
        vf_store(o + 64, o1)
        vf_store(o + 128, o2)
        vf_store(o + 192, o3)
        d += 64
    while d < padded:
        o0 = vf_load(out + 4 * d)
        for key in range(low, high):
            x = vf_set1(load_f32(p + 4 * key))
            o0 = vf_fma(x, vf_load(v + 4 * (padded * key + d)), o0)
        vf_store(out + 4 * d, o0)
        d += LANES


@kernel
def merge_row(into: int, other: int, is_first: bool, padded: int) -> None:
    """A row's running result takes in that of the next chunk; becomes it, where that is the first."""
    if is_first:
        copy_bytes(into, other, _OUT + 4 * padded)
        return
    old, fresh = load_f32(into), load_f32(other)
    top = fresh if fresh > old else old
    keep = vf_exp_nonpositive(vf_set1(old - top))
    take = vf_exp_nonpositive(vf_set1(fresh - top))
    total = vf_mul(vf_set1(load_f32(other + _SUM)), take)
    total = vf_fma(vf_set1(load_f32(into + _SUM)), keep, total)
    for d in range(_OUT, _OUT + 4 * padded, 4 * LANES):
        vf_store(into + d, vf_fma(vf_load(into + d), keep, vf_mul(vf_load(other + d), take)))
    store_f32(into, top)
    vf_store_n(into + _SUM, total, 1)


@kernel
def finish_row(state: int, sink: int, head_dim: int, to: int) -> None:
    """out / sum. A sink, where there is one, is one more chunk of a single key whose value is zero."""
    total, keep = vf_set1(load_f32(state + _SUM)), vf_set1(_ONE)
    if sink:
        old, extra = load_f32(state), load_f32(sink)
        top = extra if extra > old else old
        keep = vf_exp_nonpositive(vf_set1(old - top))
        total = vf_fma(total, keep, vf_exp_nonpositive(vf_set1(extra - top)))
    for d in range(0, head_dim, LANES):
        x = vf_div(vf_mul(vf_load(state + _OUT + 4 * d), keep), total)
        vf_store_n(to + 4 * d, x, min(LANES, head_dim - d))
