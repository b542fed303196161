"""Runs single ops of the native library on NumPy arrays, for the kernel tests and benchmarks."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quant_blocks import random_blocks

from cpuinfer.graph import r16k4
from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.graph.weights import Weight
from cpuinfer.machine import isa

KIND = {
    "quantize": 3,
    "matmul": 4,
    "matmul_swiglu": 5,
    "matmul_qkv_rope": 6,
    "rope": 7,
    "kv_write": 8,
    "swiglu": 11,
}
I8 = 24  # KV pages
ACTIVATION = {Activation.F32: 0, Activation.BF16: 30, Activation.Q8: 1000}
LEVELS = [level.name for level in isa.levels() if level.runnable]
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array: NDArray[Any]) -> NDArray[Any]:
    """A copy whose last byte is followed by a page that may not be touched."""
    page = mmap.PAGESIZE
    room = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, room + page)
    view = np.frombuffer(memory, np.uint8)
    if _libc.mprotect(ctypes.c_void_p(view.ctypes.data + room), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = view[room - array.nbytes : room].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass
class KV:
    """KV pages of one layer [heads][n_pages][k, then v], and where a sequence's tokens go."""

    type: int
    heads: int
    head_dim: int
    positions: Sequence[int]
    table: Sequence[int]
    n_pages: int = 8
    data: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.itemsize = {0: 4, I8: 1}.get(self.type, 2)
        self.half = self.head_dim * 16 * self.itemsize
        scales = 2 * 16 * 4 if self.type == I8 else 0
        self.data = np.zeros((self.heads, self.n_pages, 2 * self.half + scales), np.uint8)


@dataclass
class Call:
    """One op and what it needs; `run` gives the bytes of `out`."""

    kind: str
    rows: int
    n: int
    k: int
    inputs: Sequence[NDArray[Any] | None]
    weights: Sequence[Weight] = ()
    in_type: Activation = Activation.F32
    out_type: Activation = Activation.F32
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    rope: NDArray[np.float32] | None = None
    kv: KV | None = None

    def prepare(
        self, level: str, threads: int
    ) -> tuple[Any, Any, Any, NDArray[np.uint8], list[Any]]:
        """(library, program, batch, out, what must stay alive)."""
        library = isa.load(level)
        ffi = library.ffi
        out = np.full((self.rows, self.out_type.row_bytes(self.n)), 0xAA, np.uint8)
        op = ffi.new("ci_op[1]")
        op[0].kind = KIND[self.kind]
        op[0].n, op[0].k = self.n, self.k
        op[0].in_type, op[0].out_type = ACTIVATION[self.in_type], ACTIVATION[self.out_type]
        op[0].heads, op[0].kv_heads, op[0].head_dim = self.heads, self.kv_heads, self.head_dim
        op[0].out = ffi.cast("void *", out.ctypes.data)
        for i, array in enumerate(self.inputs):
            if array is not None:
                getattr(op[0], "in")[i] = _pointer(ffi, array)
        if self.rope is not None:
            op[0].rope = ffi.cast("float *", self.rope.ctypes.data)
        for i, weight in enumerate(self.weights):
            op[0].w[i].data = _pointer(ffi, weight.data)
            op[0].w[i].type = int(weight.type)
            op[0].w[i].n, op[0].w[i].k = weight.shape
        program = ffi.new("ci_program *")
        program.ops, program.n_ops, program.n_threads = op, 1, threads
        kv, positions, table = self.kv, np.arange(self.rows, dtype=np.int32), np.zeros(1, np.int32)
        if kv is not None:
            positions = np.asarray(kv.positions, np.int32)
            table = np.asarray(kv.table, np.int32)
            program.kv.data = _pointer(ffi, kv.data)
            program.kv.head_bytes, program.kv.page_bytes = kv.data[0].nbytes, kv.data.shape[2]
            program.kv.k_bytes = kv.half
            program.kv.layer_bytes = kv.data.nbytes
            program.kv.type, program.kv.n_pages = kv.type, kv.n_pages
        else:
            table = np.zeros(self.rows // 16 + 1, np.int32)
        lib = library.lib
        program.thread_bytes = lib.ci_thread_bytes(op, 1, self.rows)
        program.shared_bytes = lib.ci_shared_bytes(op, 1, threads, self.rows, self.rows)
        workspace = r16k4.aligned_empty(threads * program.thread_bytes + program.shared_bytes)
        workspace[:] = 0xFF  # NaN, wherever a kernel reads what it did not write
        program.workspace = _pointer(ffi, workspace)
        batch = ffi.new("ci_batch *")
        indptr = np.array([0, self.rows], np.int32)
        batch.n_tokens, batch.n_seqs, batch.n_rows, batch.block_stride = (
            self.rows,
            1,
            self.rows,
            table.size,
        )
        batch.positions = ffi.cast("int32_t *", positions.ctypes.data)
        batch.q_indptr = ffi.cast("int32_t *", indptr.ctypes.data)
        batch.block_tables = ffi.cast("int32_t *", table.ctypes.data)
        return library, program, batch, out, [op, workspace, positions, indptr, table, self]

    def run(self, level: str, threads: int = 1) -> NDArray[np.uint8]:
        """Rows of `out` [rows, row bytes]. Raises ValueError where ci_run refuses the op."""
        library, program, batch, out, alive = self.prepare(level, threads)
        status = library.lib.ci_run(program, batch)
        del alive
        if status:
            raise ValueError(f"ci_run of {self.kind}: {status}")
        return out


def _pointer(ffi: Any, array: NDArray[Any]) -> Any:
    return ffi.cast("void *", array.ctypes.data)


def quantize(x: NDArray[np.float32], type: Activation, level: str = "scalar") -> NDArray[np.uint8]:
    """f32 rows [rows, n] as rows of an activation type."""
    rows, n = x.shape
    if type is Activation.F32:
        return np.ascontiguousarray(x).view(np.uint8)
    x = np.ascontiguousarray(x)
    return Call("quantize", rows, n, n, [x], out_type=type).run(level)


def random_weight(rng: np.random.Generator, type: WeightType, n: int, k: int) -> Weight:
    """random_blocks, packed, up to a guard page."""
    packed = r16k4.pack(type, n, k, random_blocks(rng, type, n, k))
    return Weight("w", type, (n, k), guarded(packed))
