"""The native device: a Program as a list of C structs, run by one call per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.arena import Allocator, allocate
from cpuinfer.devices.arena_executable import ArenaExecutable
from cpuinfer.devices.barriers import barriers
from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits, check_limits, check_weights
from cpuinfer.devices.batch_check import check_batch, check_shapes
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.devices.native_sampler import NativeSampler
from cpuinfer.graph.dtypes import Activation, KVType
from cpuinfer.graph.passes import PASSES, optimise
from cpuinfer.graph.passes.replicas import replicas
from cpuinfer.graph.program import Op, Program
from cpuinfer.graph.weights import Weight
from cpuinfer.machine import cpu
from cpuinfer.machine.isa import Library, fetch_ahead, load
from cpuinfer.machine.pace import Pace


class NativeDevice:
    """Runs Programs on the kernels of one ISA level.

    threads: how many make a team (default: what machine.cpu finds, or fewer while others use their processors:
    machine.pace); of more than there are processors only as many run, as others would wait for their turn at every
    barrier, unless share_processors insists. isa: the level's name (default: CPUINFER_ISA, or the best). passes: what
    `compile` does to a Program first. measure: whether op_seconds measures. Raises ValueError for threads or a level
    that cannot be.
    """

    name = "native"

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        *,
        passes: Mapping[str, Callable[[Program], Program]] = PASSES,
        allocator: Allocator = allocate,
        measure: bool = False,
        share_processors: bool = False,
    ) -> None:
        self._paced = False
        if threads is None:
            found = cpu.default_threads()
            self.threads, self._paced = found.count, found.reason != cpu.ENVIRONMENT
        else:
            self.threads = cpu.check_threads(threads, "threads")
        if not share_processors:
            self.threads = min(self.threads, cpu.processors())
        self.library = load(isa)
        self._passes = passes
        self._allocator = allocator
        self._measure = measure

    @property
    def level(self) -> str:
        """The ISA level's name."""
        return self.library.level

    def compile(
        self, program: Program, weights: Mapping[str, Weight], limits: Limits
    ) -> NativeExecutable:
        """Apply the passes, check every weight, allocate everything. Raises ValueError as Device.compile does."""
        program = optimise(program, self._passes)
        check_limits(program, limits)
        check_weights(program, weights)
        for name in program.weights:
            _check_alignment(weights[name])
        pace = Pace(self.threads) if self._paced and self.threads > 1 else None
        return NativeExecutable(
            program,
            weights,
            limits,
            self.library,
            self.threads,
            self._allocator,
            self._measure,
            pace,
        )


class NativeExecutable(ArenaExecutable):
    """A Program with its memory, run by a native library."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Weight],
        limits: Limits,
        library: Library,
        threads: int,
        allocator: Allocator,
        measure: bool,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(program, weights, limits, allocator)
        self._ffi, self._lib = library.ffi, library.lib
        self._slots = replicas(program)
        self._ops = self._translate()
        self._check_ops()
        self._seconds = np.zeros(len(program.ops))
        self._pace, self._waited = pace, np.zeros(1)
        self._program = self._assemble(threads, allocator)
        self.measure_ops(measure)
        self._batch = self._ffi.new("ci_batch *")
        self._shown: Batch | None = None  # whose arrays _batch points at, kept alive
        self._logits = self._view(program.output, limits.max_rows)
        self.sampler = NativeSampler(library, program.vocab_size, threads, allocator)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [R, V], a view valid until the next run. Raises ValueError as Executable.run does."""
        c = self._batch
        if batch is not self._shown:
            self._show(batch)
        limits, vocab_size = self.limits, self.program.vocab_size
        if not self._lib.ci_batch_is_sound(c, vocab_size, limits.max_context, limits.n_pages):
            check_batch(batch, limits, vocab_size)  # raises, and says why
            raise RuntimeError("the library refused a batch in which check_batch finds no fault")
        pace = self._pace
        error = self._run_paced(c, pace) if pace else self._lib.ci_run(self._program, c)
        if error:
            raise RuntimeError(f"ci_run returned {error} for a program that ci_check let pass")
        self._rows = {"T": c.n_tokens, "R": c.n_rows}
        return self._logits[: c.n_rows]

    def _run_paced(self, c: Any, pace: Pace) -> int:
        """Run a step, and have the next one's threads decided by what it took."""
        begin = perf_counter()
        error: int = self._lib.ci_run(self._program, c)
        seconds, waited = perf_counter() - begin, float(self._waited[0])
        self._waited[0] = 0.0
        pace.step((c.n_tokens, c.n_seqs, c.n_rows), seconds, waited)
        if pace.threads != self._program.n_threads:
            self._program.n_threads = pace.threads
            self.sampler.use(pace.threads)
        return error

    def _show(self, batch: Batch) -> None:
        """Point the library's batch at this one's arrays, which stay where they are, whatever is written to them."""
        check_shapes(batch, self.limits)
        from_buffer, c = self._ffi.from_buffer, self._batch
        c.n_tokens = batch.tokens.size
        c.n_seqs, c.block_stride = batch.block_tables.shape
        c.n_rows = batch.logit_rows.size
        c.tokens = from_buffer("int32_t[]", batch.tokens)
        c.positions = from_buffer("int32_t[]", batch.positions)
        c.q_indptr = from_buffer("int32_t[]", batch.q_indptr)
        c.block_tables = from_buffer("int32_t[]", batch.block_tables)
        c.logit_rows = from_buffer("int32_t[]", batch.logit_rows)
        self._shown = batch

    def op_seconds(self) -> NDArray[np.float64]:
        """Seconds spent in each op of `program` since the last call; zeros where it was not measured."""
        seconds = self._seconds.copy()
        self._seconds[:] = 0
        return seconds

    def n_barriers(self, small: bool) -> int:
        """How often the team meets in a step, small (one of few rows: a decoding one) or not."""
        name = "barrier_if_small" if small else "barrier_before"
        return sum(getattr(self._ops[i], name) for i in range(len(self.program.ops)))

    def measure_ops(self, on: bool) -> None:
        """Whether op_seconds counts the steps from now on."""
        seconds = self._ffi.cast("double *", self._seconds.ctypes.data)
        self._program.op_seconds = seconds if on else self._ffi.NULL

    def _pointer(self, array: NDArray[Any]) -> Any:
        return self._ffi.cast("void *", array.ctypes.data)

    def _translate(self) -> Any:
        ops = self._ffi.new("ci_op[]", len(self.program.ops))
        meet = barriers(self.program, self._memory)
        meet_if_small = barriers(self.program, self._memory, self._slots)
        for i, op in enumerate(self.program.ops):
            self._fill(ops[i], op)
            ops[i].barrier_before, ops[i].barrier_if_small = meet[i], meet_if_small[i]
        return ops

    def _fill(self, c: Any, op: Op) -> None:
        buffers = self.program.buffers
        ins = [buffers[name] for name in op.inputs]
        out = buffers[op.outputs[0]] if op.outputs else ins[0]
        c.kind = getattr(self._lib, f"CI_OP_{op.kind.upper()}")
        c.rows_are_logits = out.rows == "R"
        c.n, c.out_type = out.width, self._type(out.dtype)
        c.k, c.in_type = c.n, self._lib.CI_F32
        if ins:
            c.k, c.in_type = ins[0].width, self._type(ins[0].dtype)
        for name in (
            "heads",
            "kv_heads",
            "head_dim",
            "layer",
            "eps",
            "scale",
            "window",
            "softcap",
        ):
            if name in op.attrs:
                setattr(c, name, op.attrs[name])
        if "rope" in op.attrs:
            c.rope = self._ffi.cast("float *", self._constants[op.attrs["rope"]].ctypes.data)
        inputs = getattr(c, "in")  # a keyword of Python
        for i, name in enumerate(op.inputs):
            inputs[i] = self._pointer(self._arena[self._memory.offsets[name] :])
            c.in_slot[i] = self._slots.get(name, 0)
        if op.outputs:
            c.out_slot = self._slots.get(op.outputs[0], 0)
            c.out = self._pointer(self._arena[self._memory.offsets[op.outputs[0]] :])
        for i, name in enumerate(op.weights):
            weight = self._weights[name]
            n, k = (*weight.shape, 1)[:2]
            c.w[i].data = self._pointer(weight.data)
            c.w[i].type, c.w[i].n, c.w[i].k = int(weight.type), n, k

    def _type(self, dtype: Activation | KVType) -> int:
        names = {
            "f32": "CI_F32",
            "f16": "CI_F16",
            "bf16": "CI_BF16",
            "q8": "CI_Q8A",
            "int8": "CI_I8",
        }
        return int(getattr(self._lib, names[dtype]))

    def _check_ops(self) -> None:
        kv_type = self._type(self.limits.kv_type)
        for i, op in enumerate(self.program.ops):
            if self._lib.ci_check(self._ops + i, 1, kv_type):
                types = [self.program.weights[name].type.name for name in op.weights]
                dtypes = [str(self.program.buffers[name].dtype) for name in op.inputs + op.outputs]
                raise ValueError(
                    f"op {op.label} ({op.kind}): no native kernel for weights {types}, buffers {dtypes} "
                    f"and KV {self.limits.kv_type}; run the passes of cpuinfer.graph.passes first"
                )

    def _assemble(self, threads: int, allocator: Allocator) -> Any:
        limits, kv, n_ops = self.limits, self.program.kv, len(self.program.ops)
        c = self._ffi.new("ci_program *")
        c.ops, c.n_ops, c.n_threads = self._ops, n_ops, threads
        c.fetch_ahead = fetch_ahead()
        k_bytes = kv.head_dim * PAGE_TOKENS * limits.kv_type.itemsize
        page_bytes = PAGE_TOKENS * limits.kv_type.token_bytes(kv.n_kv_heads, kv.head_dim)
        self._pages = allocator(max(kv.n_layers * limits.n_pages * page_bytes, 1))
        shape = kv.n_layers, kv.n_kv_heads, limits.n_pages, page_bytes // kv.n_kv_heads
        self.kv = KVMemory(self._pages[: math.prod(shape)].reshape(shape))
        c.kv.data = self._pointer(self._pages)
        c.kv.layer_bytes = limits.n_pages * page_bytes
        c.kv.page_bytes, c.kv.k_bytes = page_bytes // kv.n_kv_heads, k_bytes
        c.kv.head_bytes = c.kv.page_bytes * limits.n_pages
        c.kv.type, c.kv.n_pages = self._type(limits.kv_type), limits.n_pages
        c.thread_bytes = self._lib.ci_thread_bytes(self._ops, n_ops, limits.max_tokens)
        c.shared_bytes = self._lib.ci_shared_bytes(
            self._ops, n_ops, threads, limits.max_tokens, limits.max_context
        )
        self._workspace = allocator(threads * c.thread_bytes + c.shared_bytes)
        c.workspace = self._pointer(self._workspace)
        c.waited = self._ffi.cast("double *", self._waited.ctypes.data)
        return c


def _check_alignment(weight: Weight) -> None:
    if weight.data.ctypes.data % 64 or not weight.data.flags.c_contiguous:
        raise ValueError(
            f"weight {weight.name}: its bytes must be contiguous and start 64-byte aligned"
        )
