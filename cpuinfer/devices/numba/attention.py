"""Causal attention over paged keys and values (native/attention*.[ch]; docs/design.md, section 4).

A work item is a tile, some consecutive queries of one sequence, with all heads of one kv head. A row is (query, head):
row = query * group + head. Every row does the same operations whatever rows go with it. Outputs are f32; where the
op's are of another type, the team meets and stores them again, so that blocks of 32 may cross heads.
"""

from __future__ import annotations

from typing import Any

from cpuinfer.devices.numba.attention_rows import (
    attend_row,
    finish_row,
    merge_row,
    row_sum,
    start_row,
)
from cpuinfer.devices.numba.compiler import inlined, kernel
from cpuinfer.devices.numba.elementwise import blocks_of, share
from cpuinfer.devices.numba.kv import itemsize, kv_k, kv_scales
from cpuinfer.devices.numba.memory import copy_bytes, load_i32, meet, next_of
from cpuinfer.devices.numba.rows import load_part, out_row, store32
from cpuinfer.devices.numba.structs import BF16, BLOCK, F16, F32, I8, PAGE, Record
from cpuinfer.devices.numba.vectors import (
    LANES,
    vf_load,
    vf_load_bf16,
    vf_load_f16,
    vf_load_i8,
    vf_store,
    vf_zero,
)

GROUP, CHUNK = 64, 256
"""Keys of one online-softmax update, and of a partial result: part of the result's definition."""
_ALL = 1 << 29  # a window that hides no key
_ROWS = 192


def padded_dim(head_dim: int) -> int:
    """head_dim in whole vectors."""
    return -(-head_dim // LANES) * LANES


def queries_of(heads: int, kv_heads: int) -> int:
    """Queries of a full tile."""
    return max(1, _ROWS // (heads // kv_heads))


def workspace_bytes(heads: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of a thread's workspace: [K][V][p, scales][rows of states, running and next]."""
    padded, rows = padded_dim(head_dim), queries_of(heads, kv_heads) * heads // kv_heads
    return 4 * (GROUP * (head_dim + padded) + 4 * GROUP + 2 * rows * (32 + padded))


def shared_bytes(heads: int, head_dim: int, max_tokens: int) -> int:
    """Bytes of the team's workspace: f32 outputs."""
    return 4 * heads * head_dim * max_tokens


@inlined
def _window(op: Record) -> int:
    return op.window if 0 < op.window < _ALL else _ALL


@inlined
def _load_kv(at: int, i: int, type_: int) -> Any:
    """16 elements from element i on; of int8 the codes."""
    if type_ == F32:
        return vf_load(at + 4 * i)
    if type_ == F16:
        return vf_load_f16(at + 2 * i)
    return vf_load_bf16(at + 2 * i) if type_ == BF16 else vf_load_i8(at + i)


@kernel
def _widen_k(page: int, n: int, type_: int, to: int) -> None:
    for i in range(0, n, LANES):
        vf_store(to + 4 * i, _load_kv(page, i, type_))


@kernel
def _widen_v(page: int, keys: int, head_dim: int, type_: int, to: int, own: int) -> None:
    """[key][head_dim] as f32 [key][padded], zeros behind. own: 64 bytes to read a last part from."""
    padded, size = (head_dim + LANES - 1) // LANES * LANES, itemsize(type_)
    for key in range(keys):
        at = page + key * head_dim * size
        for d in range(0, head_dim, LANES):
            n = head_dim - d
            source, i = at, d
            if n < LANES:
                vf_store(own, vf_zero())
                copy_bytes(own, at + d * size, n * size)
                source, i = own, 0
            vf_store(to + 4 * (key * padded + d), _load_kv(source, i, type_))


@kernel
def _widen(op: Record, step: Record, seq: int, kv_head: int, start: int, n: int, own: int) -> None:
    """The n keys and values of the group at `start` as f32: [4][head_dim][16] and [64][padded], then their scales."""
    d, type_ = op.head_dim, step.kv_type
    padded = (d + LANES - 1) // LANES * LANES
    v, scales = own + 4 * GROUP * d, own + 4 * GROUP * (d + padded)
    for i in range((n + PAGE - 1) // PAGE):
        entry = step.block_tables + 4 * (seq * step.block_stride + start // PAGE + i)
        page = load_i32(entry)
        k = kv_k(step, op.layer, page, kv_head, d)
        keys = min(PAGE, n - PAGE * i)
        _widen_k(k, d * PAGE, type_, own + 4 * PAGE * d * i)
        _widen_v(k + step.k_bytes, keys, d, type_, v + 4 * PAGE * padded * i, scales + 768)
        if type_ == I8:
            at = kv_scales(step, op.layer, page, kv_head)
            copy_bytes(scales + 64 * i, at, 64)
            copy_bytes(scales + 256 + 64 * i, at + 64, 64)


@inlined
def _first_chunk(position: int, window: int) -> int:
    return max(position + 1 - window, 0) // CHUNK


@kernel
def _attend_group(
    op: Record, step: Record, position: int, queries: int, start: int, own: int, q: int, states: int
) -> None:
    """One update, by the keys at start .. start + 63, of the rows that see one of them."""
    d, group, window = op.head_dim, op.heads // op.kv_heads, _window(op)
    padded = (d + LANES - 1) // LANES * LANES
    for query in range(max(0, start - position), queries):
        own_key = position + query - start
        low, high = max(own_key + 1 - window, 0), min(own_key + 1, GROUP)
        if low >= high:
            continue
        for head in range(group):
            row = q + 4 * d * (op.heads * query + head)
            state = states + 4 * (32 + padded) * (query * group + head)
            attend_row(op, step.kv_type == I8, row, low, high, own, state)


@kernel
def _attend_tile(
    op: Record, step: Record, seq: int, token: int, queries: int, kv_head: int, out: int
) -> None:
    """All keys of a tile's queries, chunk after chunk, for the heads of one kv head."""
    d, group, window = op.head_dim, op.heads // op.kv_heads, _window(op)
    padded = (d + LANES - 1) // LANES * LANES
    position = load_i32(step.positions + 4 * token)
    end, size = position + queries, 4 * (32 + padded)
    own, rows = step.own, queries * group
    running = own + 4 * (GROUP * (d + padded) + 4 * GROUP)
    fresh = running + size * rows
    first_head = 4 * d * (op.heads * token + kv_head * group)
    for chunk in range(_first_chunk(position, window), (end - 1) // CHUNK + 1):
        for row in range(rows):
            start_row(fresh + size * row, padded)
        seen = max(position + 1 - window, 0) // GROUP * GROUP
        for start in range(max(chunk * CHUNK, seen), min((chunk + 1) * CHUNK, end), GROUP):
            _widen(op, step, seq, kv_head, start, min(GROUP, end - start), own)
            _attend_group(op, step, position, queries, start, own, op.in0 + first_head, fresh)
        for query in range(queries):
            begin = _first_chunk(position + query, window)
            if chunk < begin or chunk > (position + query) // CHUNK:
                continue
            for row in range(query * group, (query + 1) * group):
                state = fresh + size * row
                row_sum(state)
                merge_row(running + size * row, state, chunk == begin, padded)
    for row in range(rows):
        query, head = row // group, row % group
        sink = op.w[0] + 4 * (kv_head * group + head) if op.w[0] else 0
        to = out + first_head + 4 * d * (op.heads * query + head)
        finish_row(running + size * row, sink, d, to)


@kernel
def attention(op: Record, step: Record, counter: int) -> None:
    """out = softmax(cap(scale * in0 @ K^T), causal) @ V over the pages of the layer. Items are taken as threads come
    free, the last first: later queries have more keys."""
    per_tile = max(1, _ROWS // (op.heads // op.kv_heads))
    while per_tile > 1 and step.n_tokens * op.kv_heads < per_tile * 4 * step.n_threads:
        per_tile //= 2
    direct = op.out_type == F32
    out = op.out if direct else step.shared
    item, wanted = 0, next_of(counter)
    for seq in range(step.n_seqs - 1, -1, -1):
        begin = load_i32(step.q_indptr + 4 * seq)
        n = load_i32(step.q_indptr + 4 * (seq + 1)) - begin
        for tile in range((n - 1) // per_tile, -1, -1):
            for kv_head in range(op.kv_heads):
                if item == wanted:
                    token, queries = begin + tile * per_tile, min(per_tile, n - tile * per_tile)
                    _attend_tile(op, step, seq, token, queries, kv_head, out)
                    wanted = next_of(counter)
                item += 1
    if direct:
        return
    meet(step.barrier, step.n_threads)
    blocks, width = blocks_of(op.n), op.n
    first, end = share(step, step.n_tokens * blocks)
    for i in range(first, end):
        token, at = i // blocks, i % blocks * BLOCK
        row = out + 4 * width * token
        low, high = load_part(row, width, at), load_part(row, width, at + LANES)
        store32(out_row(op, token), op.out_type, width, at, low, high)
