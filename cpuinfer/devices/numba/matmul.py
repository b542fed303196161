"""Matrix products: out[T, N] = x[T, K] @ w[N, K]^T with an epilogue (native/matmul.c).

The team shares panels of 16 output rows. A thread takes tokens in chunks, panels in strips of at most four, and of each
panel a stretch of K at a time: unpacked once, then multiplied with every token of the chunk. Sums wait in f32 memory in
between, which changes no bit.
"""

from __future__ import annotations

from typing import Any

from cpuinfer.devices.numba.codes import (
    UNPACKED_BLOCK,
    panel_bytes,
    unpack_codes,
    unpack_floats,
)
from cpuinfer.devices.numba.compiler import inlined, kernel, unliteral
from cpuinfer.devices.numba.elementwise import rope_rotate, share
from cpuinfer.devices.numba.kv import kv_store
from cpuinfer.devices.numba.memory import copy_bytes, load_i32
from cpuinfer.devices.numba.rows import (
    in_row,
    load_part,
    out_row,
    row_bytes,
    rows_of,
    store16,
    store32,
)
from cpuinfer.devices.numba.structs import BF16, BLOCK, F32, FORMS, Q8, ROWS, Record
from cpuinfer.devices.numba.tiles import (
    PREPARED_BLOCK,
    float_tile_1,
    float_tile_4,
    int_tile_1,
    int_tile_4,
    prepare_bf16,
    prepare_q8,
)
from cpuinfer.devices.numba.vectors import vf_add, vf_load, vf_mul, vf_store, vf_zero
from cpuinfer.devices.numba.vmath import vf_silu

CHUNK = 64
"""Tokens that share an unpacked stretch."""
STRETCH_BLOCKS = 24
STRETCH_FLOATS = 448
"""Of K: 28 KiB of unpacked panel, which stays in L1 or near it."""
STRIP = 4 * 16 * 4
"""Bytes of a token's sums of a strip: four panels of f32."""
_FIRST, _SECOND, _ONE, _UP = (unliteral(i) for i in (0, 1, 1, 2 * ROWS))
_STRETCH_BYTES = STRETCH_BLOCKS * UNPACKED_BLOCK


@inlined
def prepared_bytes(activation: int, k: int) -> int:
    """Bytes of an input row as tiles read it; 0: as it is."""
    if activation == BF16:
        return (k + 1) // 2 * 8
    return k // BLOCK * PREPARED_BLOCK if activation == Q8 else 0


@inlined
def _heads_at(k: int) -> int:
    """Where the heads begin in a thread's workspace: [strip][prepared rows][unpacked stretch][heads]."""
    row = max((k + 1) // 2 * 8, k // BLOCK * PREPARED_BLOCK)
    return CHUNK * (STRIP + row) + _STRETCH_BYTES


def workspace_bytes(k: int, head_dim: int) -> int:
    """Bytes of a thread's workspace for a product; head_dim: 0, or that of the heads which it turns."""
    row = max((k + 1) // 2 * 8, k // BLOCK * PREPARED_BLOCK)
    return CHUNK * (STRIP + row + 4 * head_dim) + _STRETCH_BYTES


@kernel
def _prepare(op: Record, first: int, n: int, own: int) -> None:
    """Input rows first .. first + n - 1, as tiles read them."""
    for t in range(n):
        row, to = in_row(op, first + t), own + CHUNK * STRIP + t * prepared_bytes(op.in_type, op.k)
        if op.in_type == BF16:
            prepare_bf16(to, row, op.k)
        elif op.in_type == Q8:
            prepare_q8(to, row, op.k)


@kernel
def _int_panel(type_: int, panel: int, k: int, x: int, n: int, unpacked: int, out: int) -> None:
    """out[t] (STRIP bytes apart) = panel times prepared row t, for n tokens."""
    blocks, mins = k // BLOCK, FORMS[type_].mins
    stride = blocks * PREPARED_BLOCK
    for first in range(0, blocks, STRETCH_BLOCKS):
        count = min(STRETCH_BLOCKS, blocks - first)
        unpack_codes(type_, unpacked, panel, first, count)
        at = x + first * PREPARED_BLOCK
        t = 0
        while t + 4 <= n:
            int_tile_4(
                unpacked, count, mins, at + t * stride, stride, out + t * STRIP, STRIP, first
            )
            t += 4
        while t < n:
            int_tile_1(unpacked, count, mins, at + t * stride, out + t * STRIP, first)
            t += 1


@kernel
def _float_panel(
    type_: int, panel: int, k: int, x: int, stride: int, n: int, unpacked: int, out: int
) -> None:
    if type_ == BF16:
        k += k % 2
    for first in range(0, k, STRETCH_FLOATS):
        count = min(STRETCH_FLOATS, k - first)
        weights = panel + 64 * first
        if type_ != F32:
            weights = unpacked
            unpack_floats(type_, unpacked, panel, first, count)
        at = x + 4 * first
        t = 0
        while t + 4 <= n:
            float_tile_4(weights, count, at + t * stride, stride, out + t * STRIP, STRIP, first)
            t += 4
        while t < n:
            float_tile_1(weights, count, at + t * stride, out + t * STRIP, first)
            t += 1


@kernel
def _multiply(
    op: Record, which: int, first: int, panels: int, token: int, n: int, own: int, column: int
) -> None:
    """strip[t][column + 16 p + lane] = panels first .. of weight `which` times n tokens, prepared where need be."""
    type_ = op.w_type[which]
    prepared = own + CHUNK * STRIP
    size = panel_bytes(FORMS[type_], op.k)
    x, stride = in_row(op, token), row_bytes(op.in_type, op.k)
    if op.in_type != F32:
        x, stride = prepared, prepared_bytes(op.in_type, op.k)
    unpacked = prepared + CHUNK * prepared_bytes(op.in_type, op.k)
    for p in range(panels):
        panel, out = op.w[which] + (first + p) * size, own + 4 * (column + ROWS * p)
        if op.in_type != Q8:
            _float_panel(type_, panel, op.k, x, stride, n, unpacked, out)
        else:
            _int_panel(type_, panel, op.k, x, n, unpacked, out)


@inlined
def _panels(n: int) -> int:
    return (n + ROWS - 1) // ROWS


@kernel
def matmul(op: Record, step: Record) -> None:
    """out = in0 @ w^T, plus in1 where there is one."""
    begin, end = share(step, _panels(op.n))
    own, n = step.own, op.n
    for token in range(0, rows_of(op, step), CHUNK):
        count = min(CHUNK, rows_of(op, step) - token)
        _prepare(op, token, count, own)
        for first in range(begin, end, 4):
            panels = min(4, end - first)
            _multiply(op, _FIRST, first, panels, token, count, own, _FIRST)
            for t in range(count):
                out, residual = out_row(op, token + t), op.in1 + 4 * n * (token + t)
                for p in range(panels):
                    at = (first + p) * ROWS
                    y = vf_load(own + t * STRIP + 64 * p)
                    if op.in1:
                        y = vf_add(load_part(residual, n, at), y)
                    store16(out, op.out_type, n, at, y)


@kernel
def matmul_swiglu(op: Record, step: Record) -> None:
    """out = silu(in0 @ w[0]^T) * (in0 @ w[1]^T), two panels at a time: a block of 32 is one thread's."""
    begin, end = share(step, (_panels(op.n) + 1) // 2)
    own = step.own
    for token in range(0, rows_of(op, step), CHUNK):
        count = min(CHUNK, rows_of(op, step) - token)
        _prepare(op, token, count, own)
        for pair in range(begin, end):
            panels = min(2, _panels(op.n) - 2 * pair)
            _multiply(op, _FIRST, 2 * pair, panels, token, count, own, _FIRST)
            _multiply(op, _SECOND, 2 * pair, panels, token, count, own, _UP)
            for t in range(count):
                gate = own + t * STRIP
                low = vf_mul(vf_silu(vf_load(gate)), vf_load(gate + 128))
                high = vf_zero()
                if panels == 2:
                    high = vf_mul(vf_silu(vf_load(gate + 64)), vf_load(gate + 192))
                store32(out_row(op, token + t), op.out_type, op.n, BLOCK * pair, low, high)


@inlined
def _rotate(op: Record, step: Record, token: int, d: int, at: int) -> Any:
    """rope of 16 dimensions from d on, which lie at `at`."""
    position = load_i32(step.positions + 4 * token)
    table = op.rope + 4 * (position * 2 * op.head_dim + d)
    return rope_rotate(vf_load(at), vf_load(table), vf_load(table + 4 * op.head_dim))


@kernel
def _qkv_store(op: Record, step: Record, which: int, head: int, token: int, x: int) -> None:
    """A whole head of one token, f32 at x: to the output (q), or to its page (k, v)."""
    d = op.head_dim
    if which < 2:
        for at in range(0, d, ROWS):
            vf_store(x + 4 * at, _rotate(op, step, token, at, x + 4 * at))
    if which == 0:
        copy_bytes(op.out + 4 * d * (op.heads * token + head), x, 4 * d)
    else:
        kv_store(step, op.layer, token, head, d, which - 1, x)


@kernel
def matmul_qkv_rope(op: Record, step: Record) -> None:
    """q, k, v = in0 @ w[0..2]^T; out = rope(q); KV pages of the layer <- rope(k), v. A thread does whole heads, one after
    the other: their scale, where pages have one, is of the whole."""
    d = op.head_dim
    begin, end = share(step, op.heads + 2 * op.kv_heads)
    own = step.own
    heads = own + _heads_at(op.k)
    for token in range(0, rows_of(op, step), CHUNK):
        count = min(CHUNK, rows_of(op, step) - token)
        _prepare(op, token, count, own)
        for i in range(begin, end):
            which = (i >= op.heads) + (i >= op.heads + op.kv_heads)
            head = i - (op.heads if which else 0) - (op.kv_heads if which == 2 else 0)
            for panel in range(d // ROWS):
                _multiply(op, which, head * d // ROWS + panel, _ONE, token, count, own, _FIRST)
                for t in range(count):
                    vf_store(heads + 4 * (t * d + panel * ROWS), vf_load(own + t * STRIP))
            for t in range(count):
                _qkv_store(op, step, which, head, token + t, heads + 4 * t * d)
