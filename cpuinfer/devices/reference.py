"""The reference device: what every op means, in NumPy. The specification, and the oracle of accuracy.

Sums are in float64 and rounded to f32 where a buffer is f32, so a result is as near as f32 can be. Quantisation is
done in the very f32 operations of docs/design.md 3: given equal input the bytes are equal on every device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits, check_limits, check_weights
from cpuinfer.devices.batch_check import check_batch
from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.devices.numerics import (
    Values,
    bf16_to_f32,
    decode,
    f32_to_bf16,
    quantize,
    quantize_heads,
    raw_rows,
)
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import Op, Program
from cpuinfer.graph.r16k4 import unpack, unpack_rows
from cpuinfer.graph.weights import Weight

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class ReferenceDevice:
    """Runs any Program, lowered or not, fused or not, with any weight type that has a packed form."""

    name = "reference"

    def compile(
        self, program: Program, weights: Mapping[str, Weight], limits: Limits
    ) -> ReferenceExecutable:
        """Check the Program, its weights and the limits; allocate the KV pages. Raises ValueError."""
        program.check()
        check_weights(program, weights)
        check_limits(program, limits)
        return ReferenceExecutable(program, weights, limits)


class KVPages:
    """KV pages in their real layout and type: K [layer, page, kv_head, D, 16], V [layer, page, kv_head, 16, D]; of
    int8 the scales of K and V too, [layer, page, kv_head, 2, 16].
    """

    def __init__(self, program: Program, limits: Limits) -> None:
        kv = program.kv
        dtype = {
            KVType.F32: np.float32,
            KVType.F16: np.float16,
            KVType.BF16: np.uint16,
            KVType.INT8: np.int8,
        }[limits.kv_type]
        self.type = limits.kv_type
        shape = (kv.n_layers, limits.n_pages, kv.n_kv_heads)
        self.k = np.zeros((*shape, kv.head_dim, PAGE_TOKENS), dtype)
        self.v = np.zeros((*shape, PAGE_TOKENS, kv.head_dim), dtype)
        self.scales = np.ones((*shape, 2, PAGE_TOKENS), np.float32)

    def write(self, layer: int, page: int, lane: int, k: F32, v: F32) -> None:
        """Store one token: k and v are [kv_head, D]."""
        scales = self.scales[layer, page, :, :, lane]
        self.k[layer, page, :, :, lane], scales[:, 0] = self._encode(k)
        self.v[layer, page, :, lane, :], scales[:, 1] = self._encode(v)

    def memory(self) -> KVMemory:
        """The pages as bytes."""
        parts = (self.k, self.v, self.scales) if self.type is KVType.INT8 else (self.k, self.v)
        return KVMemory(
            *(
                part.reshape(*part.shape[:3], math.prod(part.shape[3:]))
                .view(np.uint8)
                .transpose(0, 2, 1, 3)
                for part in parts
            )
        )

    def read(self, layer: int, pages: NDArray[np.int32], context: int) -> tuple[F64, F64]:
        """K and V of the first `context` positions of a block table, [kv_head, context, D] each."""
        scales = self.scales[layer, pages].astype(np.float64)  # [page, kv_head, 2, lane]
        k = self._decode(self.k[layer, pages]) * scales[:, :, 0, None, :]
        v = self._decode(self.v[layer, pages]) * scales[:, :, 1, :, None]
        k, v = k.transpose(1, 0, 3, 2), v.transpose(1, 0, 2, 3)  # [kv_head, page, lane, D]
        heads, dim = k.shape[0], k.shape[3]
        return (
            k.reshape(heads, -1, dim)[:, :context],
            v.reshape(heads, -1, dim)[:, :context],
        )

    def _encode(self, x: F32) -> tuple[NDArray[np.generic], F32 | float]:
        """x [kv_head, D] in the pages' type, and its scales [kv_head]."""
        if self.type is KVType.INT8:
            return quantize_heads(x)
        if self.type is KVType.BF16:
            return f32_to_bf16(x), 1.0
        with np.errstate(over="ignore"):  # beyond f16's range: infinity, as in C
            return x.astype(self.k.dtype), 1.0

    def _decode(self, x: NDArray[np.generic]) -> F64:
        floats = bf16_to_f32(x.view(np.uint16)) if self.type is KVType.BF16 else x
        return floats.astype(np.float64)


@dataclass
class Step:
    """What an op sees: the Program's tables, the batch, and the buffers written so far."""

    program: Program
    weights: Mapping[str, Weight]
    kv: KVPages
    batch: Batch
    buffers: dict[str, Values]
    unpacked: dict[str, F32]  # weights used so far, kept from step to step

    def value(self, name: str) -> F64:
        """A buffer's values [rows, width], exactly."""
        return decode(self.buffers[name])

    def weight(self, name: str) -> F64:
        """A weight's values: [N, K] or [n], exactly."""
        if name not in self.unpacked:
            self.unpacked[name] = unpack(self.weights[name])
        return self.unpacked[name].astype(np.float64)

    def store(self, name: str, x: F64) -> None:
        """Round to f32, then to the buffer's own type."""
        self.buffers[name] = quantize(x.astype(np.float32), self.program.buffers[name].dtype)


class ReferenceExecutable:
    """A checked Program with its KV pages. See devices.base.Executable."""

    sampler = None

    def __init__(self, program: Program, weights: Mapping[str, Weight], limits: Limits) -> None:
        self._program = program
        self._weights = weights
        self._limits = limits
        self._kv = KVPages(program, limits)
        self.kv = self._kv.memory()
        self._inputs: dict[str, F32] = {}
        self._buffers: dict[str, Values] = {}
        self._unpacked: dict[str, F32] = {}
        self._seconds = np.zeros(len(program.ops))

    def run(self, batch: Batch) -> F32:
        """Logits f32 [R, V]. Raises ValueError for a batch out of bounds, or an input never written."""
        check_batch(batch, self._limits, self._program.vocab_size)
        step = Step(self._program, self._weights, self._kv, batch, {}, self._unpacked)
        for name in self._program.inputs:
            step.buffers[name] = self._input(name, batch)
        for index, op in enumerate(self._program.ops):
            start = time.perf_counter()
            OPS[op.kind](op, step)
            self._seconds[index] += time.perf_counter() - start
        self._buffers = step.buffers
        logits = self._buffers[self._program.output]
        return decode(logits).astype(np.float32)

    def read(self, buffer: str) -> F32 | NDArray[np.uint8]:
        """Rows of a buffer after a run; all buffers stay intact here. Raises ValueError for an unknown buffer."""
        if buffer not in self._buffers:
            raise ValueError(f"no buffer {buffer!r}; buffers are {', '.join(self._buffers)}")
        return raw_rows(self._buffers[buffer])

    def write(self, buffer: str, values: F32) -> None:
        """Set an input buffer for the runs to come. Raises ValueError."""
        if buffer not in self._program.inputs:
            raise ValueError(f"no input {buffer!r}; inputs are {self._program.inputs}")
        width = self._program.buffers[buffer].width
        if values.dtype != np.float32 or values.ndim != 2 or values.shape[1] != width:
            raise ValueError(
                f"input {buffer}: {values.dtype} {values.shape}; need f32 [rows, {width}]"
            )
        if len(values) > self._limits.max_tokens:
            raise ValueError(
                f"input {buffer}: {len(values)} rows; at most {self._limits.max_tokens}"
            )
        self._inputs[buffer] = values.copy()

    def op_seconds(self) -> F64:
        """Seconds in each op since the last call."""
        seconds, self._seconds = self._seconds, np.zeros(len(self._program.ops))
        return seconds

    def _input(self, name: str, batch: Batch) -> F32:
        wanted = len(batch.tokens if self._program.buffers[name].rows == "T" else batch.logit_rows)
        have = len(self._inputs.get(name, ()))
        if have < wanted:
            raise ValueError(f"input {name} has {have} rows, this batch needs {wanted}; write it")
        return self._inputs[name][:wanted]


def embed(op: Op, step: Step) -> None:
    """y[t] = table[tokens[t]]."""
    rows = unpack_rows(step.weights[op.weights[0]], step.batch.tokens)
    step.store(op.outputs[0], rows.astype(np.float64))


def rmsnorm(op: Op, step: Step) -> None:
    """y = x / sqrt(mean(x^2) + eps) * w."""
    x, w = step.value(op.inputs[0]), step.weight(op.weights[0])
    mean_square = np.mean(x * x, axis=1, keepdims=True)
    step.store(op.outputs[0], x / np.sqrt(mean_square + op.attrs["eps"]) * w)


def copy(op: Op, step: Step) -> None:
    """y = x, in y's own type."""
    step.store(op.outputs[0], step.value(op.inputs[0]))


def matmul(op: Op, step: Step) -> None:
    """y = x @ w^T, plus the residual if there is one. The product is rounded to f32 first, as the op alone does."""
    y = _product(step, op.inputs[0], op.weights[0])
    if len(op.inputs) == 2:
        y = y + step.value(op.inputs[1])
    step.store(op.outputs[0], y)


def matmul_swiglu(op: Op, step: Step) -> None:
    """y = silu(x @ gate^T) * (x @ up^T)."""
    gate, up = (_product(step, op.inputs[0], w) for w in op.weights)
    step.store(op.outputs[0], _silu(gate) * up)


def matmul_qkv_rope(op: Op, step: Step) -> None:
    """q = rope(x @ wq^T); pages of the layer <- rope(x @ wk^T), x @ wv^T."""
    q, k, v = (_product(step, op.inputs[0], w) for w in op.weights)
    step.store(op.outputs[0], _rope(q, op, step))
    _write_pages(op, step, _rope(k, op, step).astype(np.float32), v.astype(np.float32))


def rope(op: Op, step: Step) -> None:
    """y = x * cos + swap_pairs(x) * (-sin, +sin), per head, at each token's position."""
    step.store(op.outputs[0], _rope(step.value(op.inputs[0]), op, step))


def kv_write(op: Op, step: Step) -> None:
    """Pages of the layer, at each token's position <- k, v."""
    k, v = (step.value(name).astype(np.float32) for name in op.inputs)
    _write_pages(op, step, k, v)


def attention(op: Op, step: Step) -> None:
    """y = softmax(s) @ V with s = scale * q @ K^T, capped; query head h reads KV head h // (heads // kv_heads).

    A query sees the last `window` positions up to its own (all, where that is 0). A sink is a score without a value.
    """
    batch, a = step.batch, op.attrs
    q = step.value(op.inputs[0]).reshape(len(batch.tokens), a["kv_heads"], -1, a["head_dim"])
    y = np.empty_like(q)  # [T, kv_head, query heads of the group, D]
    sinks = step.weight(op.weights[0]) if op.weights else np.full(a["heads"], -np.inf)
    sinks = sinks.reshape(*q.shape[1:3], 1, 1)
    for s, (begin, end) in enumerate(zip(batch.q_indptr[:-1], batch.q_indptr[1:], strict=True)):
        positions = batch.positions[begin:end, None]
        context = int(positions[-1, 0]) + 1
        pages = batch.block_tables[s, : -(-context // PAGE_TOKENS)]
        k, v = step.kv.read(a["layer"], pages, context)
        scores = a["scale"] * np.einsum("tkgd,kcd->kgtc", q[begin:end], k, optimize=True)
        if a.get("softcap", 0.0):
            scores = a["softcap"] * np.tanh(scores / a["softcap"])
        keys = np.arange(context)
        first = positions - (a.get("window", 0) or context) + 1
        scores[..., (keys > positions) | (keys < first)] = -np.inf
        most = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
        weights = np.exp(scores - most)
        weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks - most)
        y[begin:end] = np.einsum("kgtc,kcd->tkgd", weights, v, optimize=True)
    step.store(op.outputs[0], y.reshape(len(batch.tokens), -1))


def add(op: Op, step: Step) -> None:
    """y = a + b."""
    step.store(op.outputs[0], step.value(op.inputs[0]) + step.value(op.inputs[1]))


def swiglu(op: Op, step: Step) -> None:
    """y = silu(gate) * up."""
    step.store(op.outputs[0], _silu(step.value(op.inputs[0])) * step.value(op.inputs[1]))


def take_rows(op: Op, step: Step) -> None:
    """y[r] = x[logit_rows[r]]."""
    step.store(op.outputs[0], step.value(op.inputs[0])[step.batch.logit_rows])


def _product(step: Step, x: str, w: str) -> F64:
    """x @ w^T summed in float64, rounded to f32."""
    return (step.value(x) @ step.weight(w).T).astype(np.float32).astype(np.float64)


def _silu(x: F64) -> F64:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives -0, the limit
        y: F64 = x / (1 + np.exp(-x))
    return y


def _rope(x: F64, op: Op, step: Step) -> F64:
    """x [T, heads * D]; the table holds cos, then -sin and +sin, at [position, 0 or 1, D]."""
    heads = x.reshape(len(x), -1, op.attrs["head_dim"])
    table = step.program.constants[op.attrs["rope"]][step.batch.positions].astype(np.float64)
    cos, sin = table[:, 0, None, :], table[:, 1, None, :]
    swapped = heads.reshape(*heads.shape[:2], -1, 2)[..., ::-1].reshape(heads.shape)
    rotated: F64 = (heads * cos + swapped * sin).reshape(x.shape)
    return rotated


def _write_pages(op: Op, step: Step, k: F32, v: F32) -> None:
    batch, a = step.batch, op.attrs
    sequence = np.repeat(np.arange(len(batch.q_indptr) - 1), np.diff(batch.q_indptr))
    pages = batch.block_tables[sequence, batch.positions // PAGE_TOKENS]
    heads = (len(batch.tokens), a["kv_heads"], a["head_dim"])
    k, v = k.reshape(heads), v.reshape(heads)
    for t, (page, lane) in enumerate(zip(pages, batch.positions % PAGE_TOKENS, strict=True)):
        step.kv.write(a["layer"], page, lane, k[t], v[t])


OPS: Mapping[str, Callable[[Op, Step], None]] = {
    "embed": embed,
    "rmsnorm": rmsnorm,
    "quantize": copy,
    "matmul": matmul,
    "matmul_swiglu": matmul_swiglu,
    "matmul_qkv_rope": matmul_qkv_rope,
    "rope": rope,
    "kv_write": kv_write,
    "attention": attention,
    "add": add,
    "swiglu": swiglu,
    "take_rows": take_rows,
}
