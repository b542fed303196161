"""Ops whose outputs need few inputs each. Blocks of 32 columns of all rows are shared by the team (native/norm.c,
elementwise.c, quantize.c, embed.c, rope.c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpuinfer.devices.numba.codes import decode_row
from cpuinfer.devices.numba.compiler import inlined, kernel
from cpuinfer.devices.numba.kv import kv_store
from cpuinfer.devices.numba.memory import copy_bytes, load_i32
from cpuinfer.devices.numba.rows import in_row, load_part, out_row, rows_of, store32
from cpuinfer.devices.numba.structs import BLOCK, Record
from cpuinfer.devices.numba.vectors import (
    LANES,
    vf_add,
    vf_div,
    vf_fma,
    vf_hsum,
    vf_load_n,
    vf_mul,
    vf_set1,
    vf_sqrt,
    vf_store_n,
    vf_swap_pairs,
    vf_zero,
)
from cpuinfer.devices.numba.vmath import vf_silu

_ONE = np.float32(1)


@inlined
def share(step: Record, n: int) -> tuple[int, int]:
    """This thread's share of n items."""
    return n * step.me // step.n_threads, n * (step.me + 1) // step.n_threads


@inlined
def blocks_of(n: int) -> int:
    """Blocks of 32 in a row of n values."""
    return (n + BLOCK - 1) // BLOCK


@kernel
def embed(op: Record, step: Record) -> None:
    """out[t] = row tokens[t] of the table."""
    blocks = blocks_of(op.n)
    begin, end = share(step, rows_of(op, step) * blocks)
    for i in range(begin, end):
        t, at = i // blocks, i % blocks * BLOCK
        row = load_i32(step.tokens + 4 * t)
        n = min(op.n - at, BLOCK)
        out = out_row(op, t) + 4 * at
        decode_row(op.w_type[0], out, op.w[0], op.n, row, at, n, step.own)


@inlined
def inverse_rms(x: int, n: int, eps: Any) -> Any:
    """1 / sqrt(mean(x^2) + eps): lane i of one accumulator takes x[i], x[i + 16], ... in order."""
    total = vf_zero()
    for at in range(0, n, LANES):
        v = load_part(x, n, at)
        total = vf_fma(v, v, total)
    mean = vf_hsum(total) / np.float32(n)
    return vf_div(vf_set1(_ONE), vf_sqrt(vf_set1(mean + eps)))


@kernel
def rmsnorm(op: Record, step: Record) -> None:
    """out = in / sqrt(mean(in^2) + eps) * w."""
    w, n, blocks = op.w[0], op.n, blocks_of(op.n)
    begin, end = share(step, rows_of(op, step) * blocks)
    r = vf_zero()
    for i in range(begin, end):
        row, at = i // blocks, i % blocks * BLOCK
        x = in_row(op, row)
        if i == begin or at == 0:
            r = inverse_rms(x, n, op.eps)
        low = vf_mul(vf_mul(load_part(x, n, at), r), load_part(w, n, at))
        high = vf_mul(vf_mul(load_part(x, n, at + LANES), r), load_part(w, n, at + LANES))
        store32(out_row(op, row), op.out_type, n, at, low, high)


@kernel
def quantize(op: Record, step: Record) -> None:
    """out = in, in the type that a matrix product takes."""
    n, blocks = op.n, blocks_of(op.n)
    begin, end = share(step, rows_of(op, step) * blocks)
    for i in range(begin, end):
        row, at = i // blocks, i % blocks * BLOCK
        x = in_row(op, row)
        store32(
            out_row(op, row),
            op.out_type,
            n,
            at,
            load_part(x, n, at),
            load_part(x, n, at + LANES),
        )


@kernel
def add(op: Record, step: Record) -> None:
    """out = in0 + in1."""
    n, blocks = op.n, blocks_of(op.n)
    begin, end = share(step, rows_of(op, step) * blocks)
    for i in range(begin, end):
        row, at = i // blocks, i % blocks * BLOCK
        x, y = op.in0 + 4 * n * row, op.in1 + 4 * n * row
        low = vf_add(load_part(x, n, at), load_part(y, n, at))
        high = vf_add(load_part(x, n, at + LANES), load_part(y, n, at + LANES))
        store32(out_row(op, row), op.out_type, n, at, low, high)


@kernel
def swiglu(op: Record, step: Record) -> None:
    """out = silu(in0) * in1."""
    n, blocks = op.n, blocks_of(op.n)
    begin, end = share(step, rows_of(op, step) * blocks)
    for i in range(begin, end):
        row, at = i // blocks, i % blocks * BLOCK
        gate, up = op.in0 + 4 * n * row, op.in1 + 4 * n * row
        low = vf_mul(vf_silu(load_part(gate, n, at)), load_part(up, n, at))
        high = vf_mul(vf_silu(load_part(gate, n, at + LANES)), load_part(up, n, at + LANES))
        store32(out_row(op, row), op.out_type, n, at, low, high)


@kernel
def take_rows(op: Record, step: Record) -> None:
    """out[r] = in[logit_rows[r]]."""
    blocks = blocks_of(op.n)
    begin, end = share(step, step.n_rows * blocks)
    for i in range(begin, end):
        row, at = i // blocks, i % blocks * BLOCK
        source = in_row(op, load_i32(step.logit_rows + 4 * row))
        copy_bytes(out_row(op, row) + 4 * at, source + 4 * at, 4 * min(op.n - at, BLOCK))


@inlined
def rope_rotate(x: Any, cosine: Any, sine: Any) -> Any:
    """x holds adjacent pairs; sine is (-sin, +sin) of each."""
    return vf_fma(vf_swap_pairs(x), sine, vf_mul(x, cosine))


@kernel
def rope(op: Record, step: Record) -> None:
    """out = rope(in), heads of head_dim."""
    d = op.head_dim
    begin, end = share(step, rows_of(op, step) * op.heads)
    for i in range(begin, end):
        row, head = i // op.heads, i % op.heads
        x, y = in_row(op, row) + 4 * d * head, out_row(op, row) + 4 * d * head
        table = op.rope + load_i32(step.positions + 4 * row) * 8 * d
        for j in range(0, d, LANES):
            n = min(d - j, LANES)
            cosine, sine = vf_load_n(table + 4 * j, n), vf_load_n(table + 4 * (d + j), n)
            vf_store_n(y + 4 * j, rope_rotate(vf_load_n(x + 4 * j, n), cosine, sine), n)


@kernel
def kv_write(op: Record, step: Record) -> None:
    """KV pages of the layer <- in0 (k), in1 (v)."""
    d, width = op.head_dim, op.kv_heads * op.head_dim
    begin, end = share(step, step.n_tokens * op.kv_heads)
    for i in range(begin, end):
        row, head = i // op.kv_heads, i % op.kv_heads
        at = 4 * (width * row + d * head)
        for value in range(2):
            kv_store(step, op.layer, row, head, d, value, (op.in1 if value else op.in0) + at)
