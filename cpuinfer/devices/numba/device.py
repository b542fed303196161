"""The Numba device: a Program as an array of records, run by a team of Python threads in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.arena import Allocator, allocate
from cpuinfer.devices.arena_executable import ArenaExecutable
from cpuinfer.devices.barriers import barriers
from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits, check_limits, check_weights
from cpuinfer.devices.batch_check import check_batch
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.devices.numba import attention, matmul
from cpuinfer.devices.numba.codes import UNPACKED_BLOCK
from cpuinfer.devices.numba.memory import LEAVE, WAIT
from cpuinfer.devices.numba.program import load_kernels, walk
from cpuinfer.devices.numba.structs import ACTIVATIONS, KINDS, KV_TYPES, OP, STEP
from cpuinfer.graph.passes import PASSES, optimise
from cpuinfer.graph.program import Op, Program
from cpuinfer.graph.weights import Weight
from cpuinfer.machine import cpu

_LINE = 64


class NumbaDevice:
    """Runs Programs on kernels that Numba compiles, once, for this processor.

    threads: how many make a team (default: what machine.cpu finds). passes: what `compile` does to a Program first.
    Raises ValueError for threads that cannot be.
    """

    name = "numba"

    def __init__(
        self,
        threads: int | None = None,
        *,
        passes: Mapping[str, Callable[[Program], Program]] = PASSES,
        allocator: Allocator = allocate,
    ) -> None:
        if threads is None:
            self.threads = cpu.default_threads().count
        else:
            self.threads = cpu.check_threads(threads, "threads")
        self._passes = passes
        self._allocator = allocator
        load_kernels()

    def compile(
        self, program: Program, weights: Mapping[str, Weight], limits: Limits
    ) -> NumbaExecutable:
        """Apply the passes, check every weight, allocate everything. Raises ValueError as Device.compile does."""
        program = optimise(program, self._passes)
        check_limits(program, limits)
        check_weights(program, weights)
        _check_ops(program)
        return NumbaExecutable(program, weights, limits, self.threads, self._allocator)


class NumbaExecutable(ArenaExecutable):
    """A Program with its memory, run by Numba's kernels."""

    sampler = None

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Weight],
        limits: Limits,
        threads: int,
        allocator: Allocator,
    ) -> None:
        super().__init__(program, weights, limits, allocator)
        self._ops = self._translate()
        self._steps = self._assemble(threads, allocator)
        self._pool = ThreadPoolExecutor(max(threads - 1, 1), "cpuinfer-numba")
        self._logits = self._view(program.output, limits.max_rows)
        self._last_write = max(
            (i for i, op in enumerate(program.ops) if op.kind in ("kv_write", "matmul_qkv_rope")),
            default=-1,
        )

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [R, V], a view valid until the next run. Raises ValueError as Executable.run does."""
        check_batch(batch, self.limits, self.program.vocab_size)
        n_tokens, n_rows = batch.tokens.size, batch.logit_rows.size
        sequence = np.repeat(np.arange(batch.q_indptr.size - 1), np.diff(batch.q_indptr))
        pages = batch.block_tables[sequence, batch.positions // PAGE_TOKENS]
        self._pages[:n_tokens] = pages
        steps = self._steps
        n_ops = len(self.program.ops) if n_rows or self._last_write < 0 else self._last_write + 1
        steps["n_ops"], steps["n_tokens"], steps["n_rows"] = n_ops, n_tokens, n_rows
        steps["n_seqs"], steps["block_stride"] = batch.block_tables.shape
        for name in ("tokens", "positions", "q_indptr", "block_tables", "logit_rows"):
            steps[name] = getattr(batch, name).ctypes.data
        self._counters[:] = 0
        self._run_team()
        self._rows = {"T": n_tokens, "R": n_rows}
        return self._logits[:n_rows]

    def _run_team(self) -> None:
        """Run `walk` on all threads. The others wait for this one, which an interrupt may keep from coming."""
        go, others = self._barrier[2 * _LINE :].view(np.int64), []
        go[0] = WAIT
        try:
            for i in range(1, len(self._steps)):
                others.append(self._pool.submit(walk, self._ops, self._steps, i))
            walk(self._ops, self._steps, 0)
        finally:
            if go[0] == WAIT:
                go[0] = LEAVE
            for other in others:
                other.result()

    def op_seconds(self) -> NDArray[np.float64]:
        """Zeros: ops are not timed here."""
        return np.zeros(len(self.program.ops))

    def _address(self, buffer: str) -> int:
        return int(self._arena.ctypes.data) + self._memory.offsets[buffer]

    def _translate(self) -> NDArray[Any]:
        ops = np.zeros(len(self.program.ops), OP)
        for record, op, meet in zip(
            ops, self.program.ops, barriers(self.program, self._memory), strict=True
        ):
            self._fill(record, op)
            record["barrier"] = meet
        return ops

    def _fill(self, record: Any, op: Op) -> None:
        buffers = self.program.buffers
        ins = [buffers[name] for name in op.inputs]
        out = buffers[op.outputs[0]] if op.outputs else ins[0]
        record["kind"] = KINDS.index(op.kind)
        record["rows_are_logits"] = out.rows == "R"
        record["n"], record["out_type"] = out.width, ACTIVATIONS[out.dtype]
        record["k"], record["in_type"] = (
            (ins[0].width, ACTIVATIONS[ins[0].dtype]) if ins else (out.width, 0)
        )
        for name in ("heads", "kv_heads", "head_dim", "layer", "eps", "scale", "window", "softcap"):
            if name in op.attrs:
                record[name] = op.attrs[name]
        if "rope" in op.attrs:
            record["rope"] = self._constants[op.attrs["rope"]].ctypes.data
        for field, name in zip(("in0", "in1"), op.inputs, strict=False):
            record[field] = self._address(name)
        if op.outputs:
            record["out"] = self._address(op.outputs[0])
        for i, name in enumerate(op.weights):
            weight = self._weights[name]
            record["w"][i] = weight.data.ctypes.data
            record["w_type"][i], record["w_n"][i] = int(weight.type), weight.shape[0]

    def _assemble(self, threads: int, allocator: Allocator) -> NDArray[Any]:
        limits, kv = self.limits, self.program.kv
        token_bytes = limits.kv_type.token_bytes(kv.n_kv_heads, kv.head_dim)
        page_bytes = PAGE_TOKENS * token_bytes
        self._kv = allocator(max(kv.n_layers * limits.n_pages * page_bytes, 1))
        k_bytes = kv.n_kv_heads * kv.head_dim * PAGE_TOKENS * limits.kv_type.itemsize
        self.kv = self._kv_memory(page_bytes, k_bytes)
        self._pages = np.zeros(limits.max_tokens, np.int32)
        self._counters = np.zeros(len(self.program.ops), np.int64)
        self._barrier = allocator(2 * _LINE + 8)
        own, shared = self._workspace_bytes()
        self._workspace = allocator(threads * own + shared)
        at = int(self._workspace.ctypes.data)
        steps = np.zeros(threads, STEP)
        steps["me"], steps["n_threads"] = np.arange(threads), threads
        steps["barrier"] = self._barrier.ctypes.data
        steps["counters"], steps["token_pages"] = (
            self._counters.ctypes.data,
            self._pages.ctypes.data,
        )
        steps["kv"], steps["kv_type"] = self._kv.ctypes.data, KV_TYPES[limits.kv_type]
        steps["layer_bytes"], steps["page_bytes"] = limits.n_pages * page_bytes, page_bytes
        steps["k_bytes"] = k_bytes
        steps["own"], steps["shared"] = at + own * np.arange(threads), at + own * threads
        return steps

    def _kv_memory(self, page_bytes: int, k_bytes: int) -> KVMemory:
        """The pages, whose K of all heads, V of all heads and scales of all heads follow each other."""
        kv, n_pages = self.program.kv, self.limits.n_pages
        pages = self._kv[: kv.n_layers * n_pages * page_bytes]
        pages = pages.reshape(kv.n_layers, n_pages, page_bytes)
        ends = [begin for begin in (0, k_bytes, 2 * k_bytes, page_bytes) if begin <= page_bytes]
        return KVMemory(
            *(
                pages[:, :, begin:end]
                .reshape(kv.n_layers, n_pages, kv.n_kv_heads, (end - begin) // kv.n_kv_heads)
                .transpose(0, 2, 1, 3)
                for begin, end in pairwise(ends)
                if begin < end
            )
        )

    def _workspace_bytes(self) -> tuple[int, int]:
        """Of a thread, and of the team."""
        own, shared = UNPACKED_BLOCK + 32 * 64, _LINE
        for op in self.program.ops:
            a = op.attrs
            if op.kind.startswith("matmul"):
                width = self.program.buffers[op.inputs[0]].width
                head = a["head_dim"] if op.kind == "matmul_qkv_rope" else 0
                own = max(own, matmul.workspace_bytes(width, head))
            elif op.kind == "attention":
                heads, dim = a["heads"], a["head_dim"]
                own = max(own, attention.workspace_bytes(heads, a["kv_heads"], dim))
                shared = max(shared, attention.shared_bytes(heads, dim, self.limits.max_tokens))
        return -(-own // _LINE) * _LINE, shared


def _check_ops(program: Program) -> None:
    """Raise ValueError for a matrix product whose input is not what its weights take."""
    for op in program.ops:
        if op.kind.startswith("matmul"):
            wanted = program.weights[op.weights[0]].type.activation
            found = program.buffers[op.inputs[0]].dtype
            if found is not wanted:
                raise ValueError(
                    f"op {op.label} ({op.kind}): its weights take {wanted}, its input is {found}; "
                    "run the passes of cpuinfer.graph.passes first"
                )
