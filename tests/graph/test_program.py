"""The op table's checks: a Program with any one thing wrong is refused, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import tiny

from cpuinfer.graph.dtypes import Activation, KVType, WeightType
from cpuinfer.graph.ops import OPS, StepSize, spec_of
from cpuinfer.graph.passes import optimise
from cpuinfer.graph.program import Buffer, Op, Program, WeightSpec
from cpuinfer.models import build_program


def program() -> Program:
    return build_program(tiny.METADATA, tiny.weight_types(WeightType.Q8_0), max_positions=64)


def with_op(p: Program, kind: str, /, **changes: Any) -> Program:
    """The Program with its first op of a kind changed."""
    at = next(i for i, op in enumerate(p.ops) if op.kind == kind)
    ops = list(p.ops)
    ops[at] = dataclasses.replace(ops[at], **changes)
    return dataclasses.replace(p, ops=tuple(ops))


def with_attr(p: Program, kind: str, **attrs: Any) -> Program:
    op = next(op for op in p.ops if op.kind == kind)
    return with_op(p, kind, attrs={**op.attrs, **attrs})


def with_buffer(p: Program, name: str, **changes: Any) -> Program:
    return dataclasses.replace(
        p, buffers={**p.buffers, name: dataclasses.replace(p.buffers[name], **changes)}
    )


def with_weight(p: Program, name: str, *shape: int) -> Program:
    spec = WeightSpec(name, shape, p.weights[name].type)
    return dataclasses.replace(p, weights={**p.weights, name: spec})


WRONG: dict[str, tuple[Callable[[Program], Program], str]] = {
    "unknown kind": (lambda p: with_op(p, "add", kind="sub"), "not in the op table"),
    "input missing": (
        lambda p: with_op(p, "add", inputs=("token_embd",)),
        r"inputs \(a, b\), got 1",
    ),
    "unknown buffer": (lambda p: with_op(p, "rope", inputs=("nowhere",)), "'nowhere' is not in"),
    "unknown weight": (lambda p: with_op(p, "embed", weights=("w",)), "'w' is not in"),
    "attribute missing": (lambda p: with_op(p, "rmsnorm", attrs={}), "attributes"),
    "attribute type": (lambda p: with_attr(p, "rmsnorm", eps=1), "is a float"),
    "attribute bool": (lambda p: with_attr(p, "attention", layer=True), "is a int"),
    "attribute nan": (lambda p: with_attr(p, "rmsnorm", eps=float("nan")), "finite"),
    "layer negative": (lambda p: with_attr(p, "attention", layer=-1), "at least 0"),
    "layer too large": (lambda p: with_attr(p, "kv_write", layer=2), "Program's KV"),
    "layer unwritten": (lambda p: with_attr(p, "attention", layer=1), "before it is written"),
    "heads not a multiple": (lambda p: with_attr(p, "attention", heads=3), "multiple"),
    "heads against width": (lambda p: with_attr(p, "rope", heads=5), r"heads\*head_dim is 80"),
    "rope table": (lambda p: with_attr(p, "rope", rope="none"), "constant 'none'"),
    "rope table short": (lambda p: dataclasses.replace(p, max_positions=65), "RoPE table"),
    "width": (lambda p: with_buffer(p, "blk.0.attn_q", width=63), "63"),
    "width zero": (lambda p: with_buffer(p, "token_embd", width=0), "positive"),
    "q8 width": (
        lambda p: with_buffer(p, "blk.0.attn_norm", width=40, dtype=Activation.Q8),
        "blocks of 32",
    ),
    "rows": (lambda p: with_buffer(p, "blk.0.attn_q", rows="R"), "is R here|is T here"),
    "dtype": (lambda p: with_buffer(p, "token_embd", dtype=Activation.BF16), "must be f32"),
    "matmul input type": (
        lambda p: with_buffer(p, "blk.0.attn_norm", dtype=Activation.BF16),
        "its input blk.0.attn_norm is bf16",
    ),
    "weight shape": (lambda p: with_weight(p, "blk.0.attn_q.weight", 64, 96), "96"),
    "weight zero": (lambda p: with_weight(p, "blk.0.attn_q.weight", 64, 0), "positive int32"),
    "weight huge": (lambda p: with_weight(p, "blk.0.attn_q.weight", 1 << 31, 64), "int32"),
    "weight partial block": (
        lambda p: with_weight(p, "blk.0.attn_q.weight", 64, 65),
        "blocks of 32",
    ),
    "weight rank": (lambda p: with_weight(p, "blk.0.attn_q.weight", 64), r"\[N K\]"),
    "order": (lambda p: dataclasses.replace(p, ops=p.ops[::-1]), "before any op wrote it"),
    "written twice": (lambda p: dataclasses.replace(p, ops=(p.ops[0], *p.ops)), "again"),
    "unused buffer": (
        lambda p: dataclasses.replace(p, buffers={**p.buffers, "x": Buffer("x", "T", 1)}),
        "x declared but not used",
    ),
    "output": (lambda p: dataclasses.replace(p, output="token_embd"), "output 'token_embd'"),
    "vocabulary": (lambda p: dataclasses.replace(p, vocab_size=98), r"f32 \[R, 98\]"),
    "input": (lambda p: dataclasses.replace(p, inputs=("x",)), "input 'x'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_programs_are_refused(what: str) -> None:
    change, message = WRONG[what]
    right = program()
    right.check()
    with pytest.raises(ValueError, match=message):
        change(right).check()


def test_every_row_states_formula_and_source() -> None:
    for kind, spec in OPS.items():
        assert spec.kind == kind and spec.formula and spec.source


def test_bytes_and_operations_of_a_matmul() -> None:
    p = program()
    op = next(op for op in p.ops if op.label == "blk.0.ffn_down")
    size = StepSize.of_sequence(3, 1, 10)
    weight = 64 // 16 * (128 // 64) * 1088
    assert spec_of(op).bytes(op, p, size) == weight + 3 * 4 * (128 + 64)
    assert spec_of(op).operations(op, p, size) == 2 * 3 * 64 * 128
    lowered = optimise(p)
    fused = next(op for op in lowered.ops if op.label == "blk.0.ffn_down")
    assert spec_of(fused).operations(fused, lowered, size) == 3 * 64 * (2 * 128 + 1)


def test_bytes_of_gathers_and_pages() -> None:
    p = program()
    size = StepSize.of_sequence(3, 1, 10, KVType.F32)
    by_kind = {op.kind: spec_of(op).bytes(op, p, size) for op in p.ops}
    assert by_kind["take_rows"] == 2 * 4 * 64  # one row read, one written
    assert by_kind["kv_write"] == 2 * 3 * 4 * 32 + 3 * 2 * 32 * 4
    assert by_kind["attention"] == 2 * 3 * 4 * 64 + 10 * 2 * 32 * 4
    table = -(-97 // 16) * 1088
    assert by_kind["embed"] == table * 3 // 97 + 3 * 4 * 64


def test_bytes_and_operations_of_a_window_and_of_int8_pages() -> None:
    p = program()
    op = next(op for op in p.ops if op.kind == "attention")
    windowed = dataclasses.replace(op, attrs={**op.attrs, "window": 4})
    size = StepSize.of_sequence(1, 1, 10, KVType.INT8)
    token = 2 * 32 + 2 * 2 * 4  # K and V of 2 heads of 16, and their scales
    assert spec_of(op).bytes(op, p, size) == 2 * 4 * 64 + 10 * token
    assert spec_of(op).bytes(windowed, p, size) == 2 * 4 * 64 + 4 * token
    for one, pairs in ((op, 10), (windowed, 4)):
        assert spec_of(one).operations(one, p, size) == pairs * 4 * (4 * 16 + 5)


def test_fusion_moves_fewer_bytes() -> None:
    p, size = program(), StepSize.of_sequence(16, 16, 16)
    assert optimise(p).bytes(size) < p.bytes(size)


def test_step_sizes_add_up() -> None:
    one = StepSize.of_sequence(3, 3, 5)
    assert one.pairs == 3 + 4 + 5
    batch = StepSize.of_batch([0, 3, 4], [2, 3, 4, 9], rows=2)
    assert (batch.tokens, batch.rows, batch.context, batch.pairs) == (4, 2, 15, 12 + 10)
    with pytest.raises(ValueError, match="context"):
        StepSize.of_sequence(3, 1, 2)


def test_an_op_without_an_output_can_be_named_in_errors() -> None:
    op = Op("kv_write", "here", ("a", "b"), attrs={"kv_heads": 1, "head_dim": 2, "layer": 0})
    with pytest.raises(ValueError, match="op here"):
        spec_of(op).check(op, program())
