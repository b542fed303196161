"""The conformance table: every op kind over awkward shapes and types, as Programs of the one op and what it needs.

A case's inputs are exact (given f32, or quantised bytewise alike everywhere), so the error of the op under test is its
own. tests/conformance/bounds.py derives how large it may be.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tiny
from numpy.typing import NDArray

from cpuinfer.devices.base import PAGE_TOKENS, Batch, Limits
from cpuinfer.graph.dtypes import Activation, KVType, WeightType
from cpuinfer.graph.ops import AttrValue
from cpuinfer.graph.program import Buffer, KVSpec, Op, Program, Rows, WeightSpec
from cpuinfer.graph.rope import inverse_frequencies, rope_table
from cpuinfer.graph.weights import Weight

F32, BF16, Q8 = Activation.F32, Activation.BF16, Activation.Q8
POSITIONS = 1024

TOKENS = (1, 2, 15, 16, 17)
WIDTHS = {F32: (1, 2, 15, 16, 17, 100), BF16: (1, 2, 15, 17, 64), Q8: (32, 64, 96, 160)}
SUPER_WIDTHS = (256, 512, 768)  # of types with blocks of 256
# What files mix: the types of q, k and v; the last two are those of gate and up.
MIXES = (
    (WeightType.Q4_K, WeightType.Q4_K, WeightType.Q6_K),
    (WeightType.Q5_0, WeightType.Q8_0, WeightType.Q5_1),
    (WeightType.Q2_K, WeightType.Q3_K, WeightType.Q5_K),
    (WeightType.IQ4_XS, WeightType.IQ4_NL, WeightType.MXFP4),
)
TYPES = [(t, t, t) for t in tiny.NATIVE_TYPES] + list(MIXES)
# (heads, kv_heads, head_dim)
HEADS = ((1, 1, 2), (3, 1, 6), (6, 3, 16), (9, 3, 64), (5, 1, 80), (4, 2, 18), (2, 2, 128))


@dataclass(frozen=True)
class StepInput:
    """One step: the batch and the values of the Program's input buffers."""

    batch: Batch
    inputs: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """A Program whose op `op` is under test, and the steps to run it on. Every buffer is compared after each step."""

    name: str
    program: Program
    op: Op
    weights: Mapping[str, Weight]
    steps: tuple[StepInput, ...]
    limits: Limits


class CaseBuilder:
    """Collects one case's operands. Buffers given values are the Program's inputs."""

    def __init__(self, name: str, tokens: int, rows: int | None = None) -> None:
        self.name = name
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.rows = tokens if rows is None else rows
        self.tokens = tokens
        self.batch = one_sequence(tokens, self.rng, self.rows)
        self.ops: list[Op] = []
        self.buffers: dict[str, Buffer] = {}
        self.weights: dict[str, Weight] = {}
        self.inputs: dict[str, NDArray[np.float32]] = {}
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.kv = KVSpec(1, 1, 2)

    def input(self, name: str, width: int, rows: Rows = "T", spread: float = 1.0) -> str:
        """Normal values, some zeros and some rows much larger or smaller than others."""
        count = self.tokens if rows == "T" else self.rows
        values = self.rng.standard_normal((count, width)) * spread
        values *= 10.0 ** self.rng.integers(-2, 3, (count, 1))
        values[self.rng.random((count, width)) < 0.05] = 0
        self.buffers[name] = Buffer(name, rows, width)
        self.inputs[name] = values.astype(np.float32)
        return name

    def weight(self, name: str, type_: WeightType, *shape: int) -> str:
        """A random weight."""
        self.weights[name] = tiny.random_weight(name, type_, shape, self.rng)
        return name

    def quantized(self, name: str, dtype: Activation) -> str:
        """The buffer in another type, by a quantize op."""
        if dtype is F32:
            return name
        source = self.buffers[name]
        out = f"{name}.{dtype}"
        return self.op(
            Op("quantize", out, (name,), (out,)), Buffer(out, source.rows, source.width, dtype)
        )

    def op(self, op: Op, out: Buffer | None = None) -> str:
        """Add an op; returns its output's name."""
        self.ops.append(op)
        if out is None:
            return ""
        self.buffers[out.name] = out
        return out.name

    def case(self, steps: tuple[StepInput, ...] = (), kv_type: KVType = KVType.F16) -> Case:
        """The case; its last op is the one under test. Logits are rows of an input of their own."""
        under_test = self.ops[-1]
        out = self.input("logits.in", 3)
        self.op(Op("take_rows", "logits", (out,), ("logits",)), Buffer("logits", "R", 3))
        steps = steps or (StepInput(self.batch, {}),)
        steps = tuple(StepInput(s.batch, {**self.inputs, **s.inputs}) for s in steps)
        specs = {n: WeightSpec(n, w.shape, w.type) for n, w in self.weights.items()}
        program = Program(
            self.name,
            tuple(self.ops),
            self.buffers,
            specs,
            self.constants,
            self.kv,
            3,
            POSITIONS,
            "logits",
            tuple(self.inputs),
        )
        program.check()
        limits = Limits(max(self.tokens, 1), max(self.tokens, 1), 160, POSITIONS, kv_type)
        return Case(self.name, program, under_test, self.weights, steps, limits)


def one_sequence(tokens: int, rng: np.random.Generator, rows: int) -> Batch:
    """Tokens 0..2 of one sequence from position 5 on, on shuffled pages."""
    pages = rng.permutation(160)[: (5 + tokens) // PAGE_TOKENS + 1].tolist()
    ids = rng.integers(0, 3, tokens).tolist()
    wanted = rng.permutation(tokens)[:rows].tolist()
    return tiny.batch([ids], [5], [pages], wanted)


def widths(type_: WeightType) -> tuple[int, ...]:
    """Awkward K of a matrix of the type."""
    return SUPER_WIDTHS if type_.block[0] > 32 else WIDTHS[type_.activation]


def at_least(width: int, *types: WeightType) -> int:
    """The width, or a block of the types."""
    return max(width, *(type_.block[0] for type_ in types))


def cases() -> Iterator[Case]:
    """The whole table."""
    yield from _elementwise()
    yield from _embed()
    yield from _quantize()
    yield from _rmsnorm()
    yield from _matmul()
    yield from _matmul_swiglu()
    yield from _matmul_qkv_rope()
    yield from _rope()
    yield from _attention()


def _elementwise() -> Iterator[Case]:
    for tokens, width in zip((*TOKENS, 3), WIDTHS[F32], strict=True):
        for rows in ("T", "R"):
            b = CaseBuilder(f"add-{rows}-{tokens}x{width}", tokens, max(1, tokens // 2))
            a, c = b.input("a", width, rows), b.input("c", width, rows)
            b.op(Op("add", "y", (a, c), ("y",)), Buffer("y", rows, width))
            yield b.case()
        b = CaseBuilder(f"take_rows-{tokens}x{width}", tokens, tokens // 2)
        b.op(Op("take_rows", "y", (b.input("x", width),), ("y",)), Buffer("y", "R", width))
        yield b.case()
    for dtype, widths in WIDTHS.items():
        for tokens, width in zip(TOKENS, widths, strict=False):
            b = CaseBuilder(f"swiglu-{dtype}-{tokens}x{width}", tokens)
            gate, up = b.input("gate", width, spread=3), b.input("up", width)
            b.op(Op("swiglu", "y", (gate, up), ("y",)), Buffer("y", "T", width, dtype))
            yield b.case()


def _embed() -> Iterator[Case]:
    for type_ in tiny.NATIVE_TYPES:
        for tokens, width in zip(TOKENS, widths(type_), strict=False):
            b = CaseBuilder(f"embed-{type_.name}-{tokens}x{width}", tokens)
            table = b.weight("table", type_, 3, width)
            b.op(Op("embed", "y", (), ("y",), (table,)), Buffer("y", "T", width))
            yield b.case()


def _quantize() -> Iterator[Case]:
    for dtype in (BF16, Q8):
        for tokens in TOKENS:
            for width in WIDTHS[dtype]:
                b = CaseBuilder(f"quantize-{dtype}-{tokens}x{width}", tokens)
                b.quantized(b.input("x", width), dtype)
                yield b.case()


def _rmsnorm() -> Iterator[Case]:
    for dtype, widths in WIDTHS.items():
        for tokens, width in zip((*TOKENS, 3), widths, strict=False):
            b = CaseBuilder(f"rmsnorm-{dtype}-{tokens}x{width}", tokens)
            x, w = b.input("x", width), b.weight("w", WeightType.F32, width)
            b.op(
                Op("rmsnorm", "y", (x,), ("y",), (w,), {"eps": 1e-5}),
                Buffer("y", "T", width, dtype),
            )
            yield b.case()


def _matmul() -> Iterator[Case]:
    for type_ in tiny.NATIVE_TYPES:
        own = widths(type_)
        shapes = [
            (t, n, own[-1])
            for t, n in zip((*TOKENS, 33, 70), (17, 33, 16, 1, 15, 48, 2), strict=True)
        ]
        shapes += [(t, 18, k) for t, k in zip((1, 3, 4, 5, 1, 2), own, strict=False)]
        for index, (tokens, n, k) in enumerate(shapes):
            residual = index % 2 == 1
            b = CaseBuilder(f"matmul-{type_.name}-{tokens}x{n}x{k}{'-add' * residual}", tokens)
            x = b.quantized(b.input("x", k), type_.activation)
            inputs = (x, b.input("r", n)) if residual else (x,)
            b.op(
                Op("matmul", "y", inputs, ("y",), (b.weight("w", type_, n, k),)),
                Buffer("y", "T", n),
            )
            yield b.case()
        b = CaseBuilder(f"matmul-{type_.name}-rows", 17, 5)
        k = at_least(64, type_)
        x = b.quantized(b.input("x", k, "R"), type_.activation)
        b.op(Op("matmul", "y", (x,), ("y",), (b.weight("w", type_, 19, k),)), Buffer("y", "R", 19))
        yield b.case()


def _matmul_swiglu() -> Iterator[Case]:
    for types in TYPES:
        activation, k = types[0].activation, at_least(64, *types)
        for tokens, n, out in (
            (1, 32, F32),
            (2, 17, BF16),
            (17, 96, activation),
            (70, 64, Q8),
        ):
            b = CaseBuilder(f"matmul_swiglu-{named(types[1:])}-{tokens}x{n}-{out}", tokens)
            x = b.quantized(b.input("x", k), activation)
            gate, up = b.weight("gate", types[1], n, k), b.weight("up", types[2], n, k)
            b.op(Op("matmul_swiglu", "y", (x,), ("y",), (gate, up)), Buffer("y", "T", n, out))
            yield b.case()


def _matmul_qkv_rope() -> Iterator[Case]:
    for types in TYPES:
        activation, k = types[0].activation, at_least(96, *types)
        for tokens, (heads, kv_heads, dim) in zip(
            (1, 17, 70), ((1, 1, 16), (9, 3, 64), (2, 1, 80)), strict=True
        ):
            b = CaseBuilder(
                f"matmul_qkv_rope-{named(types)}-{tokens}-{heads}:{kv_heads}x{dim}", tokens
            )
            x = b.quantized(b.input("x", k), activation)
            attrs = _rope_attrs(b, heads, dim) | _kv_attrs(b, kv_heads, dim)
            ns = (heads * dim, kv_heads * dim, kv_heads * dim)
            ws = tuple(b.weight(f"w{i}", types[i], n, k) for i, n in enumerate(ns))
            b.op(Op("matmul_qkv_rope", "y", (x,), ("y",), ws, attrs), Buffer("y", "T", heads * dim))
            yield b.case()


def _rope() -> Iterator[Case]:
    for tokens, (heads, _, dim) in zip((*TOKENS, 3, 4), HEADS, strict=True):
        b = CaseBuilder(f"rope-{tokens}-{heads}x{dim}", tokens)
        x = b.input("x", heads * dim)
        attrs = _rope_attrs(b, heads, dim)
        b.op(Op("rope", "y", (x,), ("y",), attrs=attrs), Buffer("y", "T", heads * dim))
        yield b.case()


def _attention() -> Iterator[Case]:
    # per step and sequence: how many tokens are new; the past is what earlier steps wrote
    plans = (
        ((1,),),
        ((2,), (1,)),
        ((15, 1), (1, 17), (1, 1)),
        ((16, 3, 17), (1, 2, 15)),
        ((300,), (300,), (7,), (1,)),
        ((40, 260, 1), (1, 1, 70)),
    )
    for kv_type in KVType:
        for index, (plan, shape) in enumerate(zip((*plans, plans[2]), HEADS, strict=True)):
            out = Q8 if shape[0] * shape[2] % 32 == 0 else (BF16 if index % 2 else F32)
            yield _attention_case(f"attention-{kv_type}-{index}", plan, shape, kv_type, out)


def _attention_case(
    name: str,
    plan: tuple[tuple[int, ...], ...],
    shape: tuple[int, int, int],
    kv_type: KVType,
    out: Activation,
) -> Case:
    heads, kv_heads, dim = shape
    b = CaseBuilder(name, max(map(sum, plan)))
    width, kv_width = heads * dim, kv_heads * dim
    q, k, v = b.input("q", width), b.input("k", kv_width), b.input("v", kv_width)
    attrs = _kv_attrs(b, kv_heads, dim)
    b.op(Op("kv_write", "kv", (k, v), attrs=attrs))
    full: dict[str, AttrValue] = {**attrs, "heads": heads, "scale": dim**-0.5}
    b.op(Op("attention", "y", (q,), ("y",), attrs=full), Buffer("y", "T", width, out))
    n_seqs = len(plan[0])
    tables = b.rng.permutation(160)[: 40 * n_seqs].reshape(n_seqs, 40).tolist()
    past = [0] * n_seqs
    steps = []
    for lengths in plan:
        batch = tiny.batch([[0] * n for n in lengths], past, tables)
        values = {
            name: b.rng.standard_normal((sum(lengths), w)).astype(np.float32)
            for name, w in (("q", width), ("k", kv_width), ("v", kv_width))
        }
        steps.append(StepInput(batch, values))
        past = [p + n for p, n in zip(past, lengths, strict=True)]
    return b.case(tuple(steps), kv_type)


def named(types: Sequence[WeightType]) -> str:
    """The types' names, each once."""
    return "+".join(dict.fromkeys(type_.name for type_ in types))


def _rope_attrs(b: CaseBuilder, heads: int, dim: int) -> dict[str, AttrValue]:
    b.constants["rope"] = rope_table(inverse_frequencies(10000.0, dim), dim, POSITIONS)
    return {"heads": heads, "head_dim": dim, "rope": "rope"}


def _kv_attrs(b: CaseBuilder, kv_heads: int, dim: int) -> dict[str, AttrValue]:
    b.kv = KVSpec(1, kv_heads, dim)
    return {"kv_heads": kv_heads, "head_dim": dim, "layer": 0}
