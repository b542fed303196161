"""Addresses in the KV pages and stores into them (native/kv.h)."""

from __future__ import annotations

from typing import Any

from cpuinfer.devices.numba.compiler import inlined, kernel
from cpuinfer.devices.numba.memory import (
    copy_bytes,
    load_i8,
    load_i32,
    load_u16,
    scratch,
    store_f32,
    store_i8,
    store_i16,
)
from cpuinfer.devices.numba.rows import load_part, scales_of
from cpuinfer.devices.numba.structs import F16, F32, I8, PAGE, Record
from cpuinfer.devices.numba.vectors import (
    LANES,
    vf_abs,
    vf_hmax,
    vf_max,
    vf_mul,
    vf_set1,
    vf_store,
    vf_store_bf16,
    vf_store_f16,
    vf_store_i8,
    vf_zero,
)


@inlined
def itemsize(type_: int) -> int:
    """Bytes of an element."""
    if type_ == F32:
        return 4
    return 1 if type_ == I8 else 2


@inlined
def page_of(step: Record, layer: int, page: int) -> int:
    """Address of a page of a layer."""
    return step.kv + step.layer_bytes * layer + step.page_bytes * page  # type: ignore[no-any-return]


@inlined
def kv_k(step: Record, layer: int, page: int, head: int, head_dim: int) -> int:
    """K of one head in a page: [head_dim][16]; its V, [16][head_dim], comes k_bytes later."""
    return page_of(step, layer, page) + head * head_dim * PAGE * itemsize(step.kv_type)


@inlined
def kv_scales(step: Record, layer: int, page: int, head: int) -> int:
    """Scales of one head in a page of int8: f32 [2][16], those of K, then those of V."""
    return page_of(step, layer, page) + 2 * step.k_bytes + head * 8 * PAGE  # type: ignore[no-any-return]


@inlined
def _store_part(to: int, type_: int, stride: int, x: Any, n: int) -> None:
    """n dimensions of a key or value, `stride` elements apart, in a type other than int8."""
    lanes = scratch()
    if type_ == F32:
        vf_store(lanes, x)
        for i in range(n):
            copy_bytes(to + 4 * i * stride, lanes + 4 * i, 4)
        return
    if type_ == F16:
        vf_store_f16(lanes, x)
    else:
        vf_store_bf16(lanes, x)
    for i in range(n):
        store_i16(to + 2 * i * stride, load_u16(lanes + 2 * i))


@inlined
def _store_int8(to: int, scale_at: int, stride: int, x: int, head_dim: int) -> None:
    """A whole key or value as int8, elements `stride` apart, and its scale."""
    most = vf_zero()
    for d in range(0, head_dim, LANES):
        most = vf_max(most, vf_abs(load_part(x, head_dim, d)))
    inverse, scale = scales_of(vf_hmax(most))
    codes = scratch()
    for d in range(0, head_dim, LANES):
        vf_store_i8(codes, vf_mul(load_part(x, head_dim, d), vf_set1(inverse)))
        for i in range(min(LANES, head_dim - d)):
            store_i8(to + (d + i) * stride, load_i8(codes + i))
    store_f32(scale_at, scale)


@kernel
def kv_store(step: Record, layer: int, token: int, head: int, d: int, value: int, x: int) -> None:
    """A token's whole key (value 0) or value (1) of one head, f32 [d] at x, into its page."""
    page = load_i32(step.token_pages + 4 * token)
    lane = load_i32(step.positions + 4 * token) % PAGE
    size = itemsize(step.kv_type)
    to, stride = kv_k(step, layer, page, head, d) + lane * size, PAGE
    if value:
        to, stride = to + step.k_bytes + lane * (d - 1) * size, 1
    if step.kv_type == I8:
        scale = kv_scales(step, layer, page, head) + 4 * (value * PAGE + lane)
        _store_int8(to, scale, stride, x, d)
        return
    for at in range(0, d, LANES):
        part = load_part(x, d, at)
        _store_part(to + at * stride * size, step.kv_type, stride, part, min(LANES, d - at))
