"""Drives the attention kernel of one library through ci_run: a program of one op over KV pages that a test fills."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.machine.isa import Library

F32, F16, I8, BF16, Q8A = 0, 1, 24, 30, 1000
NO_PAGE = 2**30  # what block tables hold past a sequence's end: using it would fault


def guarded(nbytes: int, fill: int = 0) -> NDArray[np.uint8]:
    """nbytes bytes that end where a page without access begins."""
    page = mmap.PAGESIZE
    whole = -(-max(nbytes, 1) // page) * page
    memory = mmap.mmap(-1, whole + page)
    array = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(array.ctypes.data + whole), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    data = array[whole - nbytes : whole]
    data[:] = fill
    return data


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_int8(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes [..., D] and scales [...] of x: docs/design.md, section 4. x is finite, no head of it zero."""
    amax = np.abs(x).max(-1)
    codes = np.rint(x * (np.float32(127) / amax)[..., None])
    return codes.astype(np.int8), amax / np.float32(127)


@dataclass(frozen=True)
class Rules:
    """What the op may do besides: the fields of ci_op, and the sinks [heads]."""

    window: int = 0
    softcap: float = 0.0
    sinks: NDArray[np.float32] | None = None


PLAIN = Rules()


@dataclass
class Pages:
    """KV pages of one layer, all NaN until written, so that what was never written cannot go unnoticed."""

    type: int
    n_pages: int
    kv_heads: int
    head_dim: int
    data: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        scales = 8 * 16 if self.type == I8 else 0
        nbytes = self.kv_heads * self.n_pages * (2 * self.k_bytes + scales)
        self.data = guarded(nbytes, fill=0xFF).reshape(self.kv_heads, self.n_pages, -1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one element."""
        types = {F32: np.float32, F16: np.float16, BF16: np.uint16, I8: np.int8}
        return np.dtype(types[self.type])

    @property
    def k_bytes(self) -> int:
        """Of one head's K in a page."""
        return 16 * self.head_dim * self.dtype.itemsize

    def stored(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """x as the pages hold it, exactly."""
        if self.type == BF16:
            return (to_bf16(x).astype(np.uint32) << 16).view(np.float32)
        if self.type == I8:
            codes, scales = to_int8(x)
            return codes * scales[..., None].astype(np.float64)
        return x.astype(self.dtype).astype(np.float32)

    def write(
        self, table: NDArray[np.int32], k: NDArray[np.float32], v: NDArray[np.float32], start: int
    ) -> None:
        """k, v [n, kv_heads, head_dim] of positions start .. start+n-1 of the sequence with that block table."""
        for i in range(len(k)):
            number, lane = table[(start + i) // 16], (start + i) % 16
            for head in range(self.kv_heads):
                page = self.data[head, number]
                keys = page[: self.k_bytes].view(self.dtype)
                values = page[self.k_bytes : 2 * self.k_bytes].view(self.dtype)
                key, value = k[i, head], v[i, head]
                if self.type == I8:
                    scales = page[2 * self.k_bytes :].view(np.float32).reshape(2, 16)
                    (key, scales[0, lane]), (value, scales[1, lane]) = to_int8(key), to_int8(value)
                elif self.type == BF16:
                    key, value = to_bf16(key), to_bf16(value)
                keys.reshape(self.head_dim, 16)[:, lane] = key
                values.reshape(16, self.head_dim)[lane] = value


@dataclass(frozen=True)
class Queries:
    """Consecutive queries of one sequence: q [n, heads, head_dim], the first at position `start`."""

    q: NDArray[np.float32]
    start: int
    table: NDArray[np.int32]


def row_bytes(out_type: int, n: int) -> int:
    """As ci_row_bytes."""
    if out_type == Q8A:
        return -(-(n + n // 32 * 16) // 64) * 64
    return n * 4 if out_type == F32 else -(-n // 2) * 4


def attend(
    library: Library,
    pages: Pages,
    queries: Sequence[Queries],
    *,
    threads: int = 1,
    out_type: int = F32,
    scale: float | None = None,
    rules: Rules = PLAIN,
) -> NDArray[Any]:
    """The op's output rows of the sequences' queries, one after the other: f32 [T, n], or bytes [T, row_bytes]."""
    ffi, lib = library.ffi, library.lib
    q = np.concatenate([x.q for x in queries])
    tokens, heads, head_dim = q.shape
    q_memory = guarded(q.nbytes)
    q_memory[:] = np.ascontiguousarray(q).view(np.uint8).ravel()
    out = guarded(tokens * row_bytes(out_type, heads * head_dim), fill=0)

    op = ffi.new("ci_op *")
    op.kind, op.in_type, op.out_type = lib.CI_OP_ATTENTION, F32, out_type
    op.n = op.k = heads * head_dim
    op.heads, op.kv_heads, op.head_dim = heads, pages.kv_heads, head_dim
    op.scale = head_dim**-0.5 if scale is None else scale
    op.window, op.softcap = rules.window, rules.softcap
    if rules.sinks is not None:
        sinks = guarded(rules.sinks.nbytes).view(np.float32)
        sinks[:] = rules.sinks
        op.w[0].data = ffi.cast("void *", sinks.ctypes.data)
        op.w[0].type, op.w[0].n, op.w[0].k = F32, heads, 1
    getattr(op, "in")[0] = ffi.cast("void *", q_memory.ctypes.data)
    op.out = ffi.cast("void *", out.ctypes.data)

    stride = max(len(x.table) for x in queries)
    tables = np.full((len(queries), stride), NO_PAGE, np.int32)
    for row, x in zip(tables, queries, strict=True):
        needed = -(-(x.start + len(x.q)) // 16)
        row[:needed] = x.table[:needed]
    positions = np.concatenate(
        [np.arange(x.start, x.start + len(x.q), dtype=np.int32) for x in queries]
    )
    indptr = np.cumsum([0, *(len(x.q) for x in queries)], dtype=np.int32)
    batch = ffi.new("ci_batch *")
    batch.n_tokens, batch.n_seqs, batch.block_stride = tokens, len(queries), stride
    batch.positions = ffi.from_buffer("int32_t[]", positions)
    batch.q_indptr = ffi.from_buffer("int32_t[]", indptr)
    batch.block_tables = ffi.from_buffer("int32_t[]", tables)

    program = ffi.new("ci_program *")
    program.ops, program.n_ops, program.n_threads = op, 1, threads
    program.kv.data = ffi.cast("void *", pages.data.ctypes.data)
    program.kv.layer_bytes = pages.data.nbytes
    program.kv.head_bytes, program.kv.page_bytes = pages.data[0].nbytes, pages.data[0, 0].nbytes
    program.kv.k_bytes = pages.k_bytes
    program.kv.type, program.kv.n_pages = pages.type, pages.n_pages
    program.thread_bytes = lib.ci_thread_bytes(op, 1, tokens)
    program.shared_bytes = lib.ci_shared_bytes(op, 1, threads, tokens, int(positions.max()) + 1)
    # Garbage in the workspace, and its end is guarded: whole lines, so it starts aligned too.
    nbytes = -(-(threads * program.thread_bytes + program.shared_bytes) // 64) * 64
    workspace = guarded(nbytes, fill=0xFF)
    program.workspace = ffi.cast("void *", workspace.ctypes.data)
    if error := lib.ci_run(program, batch):
        raise ValueError(f"ci_run: {error}")
    rows = out.reshape(tokens, -1)
    return rows.view(np.float32) if out_type == F32 else rows


def reference(
    pages: Pages,
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    x: Queries,
    scale: float,
    rules: Rules = PLAIN,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Softmax attention in float64 over the stored k, v [n, kv_heads, head_dim], and a bound on the kernel's error.

    With u = 2^-24, to first order: a score is a sum of D products, scaled: (D + 1) u scale sum|q k|, one u more with a
    scale of the key (int8). A soft cap's slope is at most 1; its quotient, tanh (6 u, vmath.h) and product add 8 u of the
    score. A sink is one more update of the maximum. A scale of V adds a u to each weight. A weight exp(s - m) takes on the error of s, u |s - m| of the difference, and 2 u of the exponential. Every update of the maximum (one
    per 64 keys, two per chunk of 256) multiplies by one more such factor; their differences add up to the range of s.
    Numerator and denominator then sum n terms each. The output is a mean of v with these relative errors, twice.
    """
    u = 2.0**-24
    n, heads, head_dim = x.q.shape
    out, bound = np.zeros((2, n, heads, head_dim))
    keys = np.arange(len(k))
    own = x.start + np.arange(n)[:, None]
    seen = (keys <= own) & (keys > own - (rules.window or len(k)))
    group = heads // pages.kv_heads
    for head in range(heads):
        q, kh, vh = (
            y.astype(np.float64)
            for y in (
                x.q[:, head],
                pages.stored(k)[:, head // group],
                pages.stored(v)[:, head // group],
            )
        )
        score = q @ kh.T * scale
        if rules.softcap:
            score = rules.softcap * np.tanh(score / rules.softcap)
        least = np.where(seen, score, np.inf).min(1)
        score = np.where(seen, score, -np.inf)
        most, sink = score.max(1), -np.inf
        if rules.sinks is not None:
            sink = float(rules.sinks[head])
            most, least = np.maximum(most, sink), np.minimum(least, sink)
        spread = most - least
        weight = np.exp(score - most[:, None])
        weight /= (weight.sum(1) + np.exp(sink - most))[:, None]
        out[:, head] = weight @ vh
        magnitude = np.where(seen, np.abs(q) @ np.abs(kh).T * scale, 0).max(1)
        updates = len(k) / 64 + 2 * len(k) / 256 + 3
        roundings = head_dim + 1 + (pages.type == I8) + 8 * (rules.softcap > 0)
        more = (pages.type == I8) + 4 * (rules.sinks is not None)
        error = roundings * magnitude + 2 * spread + 4 * updates + len(k) + more
        bound[:, head] = 2 * u * error[:, None] * (weight @ np.abs(vh))
    return out.reshape(n, -1), bound.reshape(n, -1)
