from __future__ import annotations

import collections
import dataclasses

import pytest
import tiny

from cpuinfer.graph import dtypes
from cpuinfer.graph.display import format_program
from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.graph.ops import StepSize
from cpuinfer.graph.passes import LOWERING, PASSES, optimise, stages
from cpuinfer.graph.passes.fuse import fuse_qkv, fuse_quantize, fuse_residual, fuse_swiglu
from cpuinfer.graph.passes.lower import hoist_rows, lower
from cpuinfer.graph.passes.memory import plan
from cpuinfer.graph.program import Program
from cpuinfer.models import build_program


def model(matrix: WeightType = WeightType.Q4_1, **others: WeightType) -> Program:
    types = tiny.weight_types(matrix, **others)
    return build_program(tiny.metadata(types), types, max_positions=64)


def kinds(program: Program) -> dict[str, int]:
    return dict(collections.Counter(op.kind for op in program.ops))


@pytest.mark.parametrize("matrix", tiny.NATIVE_TYPES)
def test_every_stage_checks(matrix: WeightType) -> None:
    names = []
    for name, program in stages(model(matrix)):
        program.check()
        names.append(name)
    assert names == ["model", *PASSES]


def test_rows_are_taken_before_the_last_feed_forward() -> None:
    program = hoist_rows(model())
    program.check()
    rows = {name: buffer.rows for name, buffer in program.buffers.items()}
    assert rows["blk.0.ffn_down"] == rows["blk.1.attn"] == "T"
    assert all(rows[f"blk.1.{name}"] == "R" for name in ("attn_output", "ffn_up", "ffn_down"))
    assert [op.inputs for op in program.ops if op.kind == "take_rows"] == [
        ("blk.1.attn",),
        ("blk.0.ffn_down.add",),
    ]


def test_hoisting_twice_changes_nothing() -> None:
    once = hoist_rows(model())
    assert hoist_rows(once).ops == once.ops


def test_one_quantize_per_input_and_type() -> None:
    program = lower(model(attn_v=WeightType.BF16))
    quantized = [op.inputs[0] for op in program.ops if op.kind == "quantize"]
    # q and k share one, v takes bf16
    assert quantized[:2] == ["blk.0.attn_norm", "blk.0.attn_norm"]
    assert len(quantized) == 2 * (2 + 1 + 1 + 1) + 1
    assert kinds(lower(model(WeightType.F32))).get("quantize", 0) == 0


def test_lower_refuses_types_without_a_kernel(monkeypatch) -> None:
    monkeypatch.delitem(dtypes._ACTIVATIONS, WeightType.Q5_1)
    spec_types = tiny.weight_types(WeightType.F32)
    program = build_program(tiny.METADATA, spec_types, max_positions=64)
    name = "blk.1.ffn_up.weight"
    weights = {
        **program.weights,
        name: dataclasses.replace(program.weights[name], type=WeightType.Q5_1),
    }
    with pytest.raises(ValueError, match="no kernel reads blk.1.ffn_up.weight as Q5_1; expand it"):
        lower(dataclasses.replace(program, weights=weights))


def test_all_fusions_of_a_layer() -> None:
    counts = kinds(optimise(model()))
    assert counts == {
        "embed": 1,
        "rmsnorm": 5,
        "matmul_qkv_rope": 2,
        "attention": 2,
        "quantize": 2,  # heads of 16 share q8 blocks, so attention does not quantise
        "matmul_swiglu": 2,
        "matmul": 5,
        "take_rows": 2,
    }


def test_attention_quantizes_itself_for_whole_blocks() -> None:
    metadata = {
        **tiny.METADATA,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
    }
    metadata["llama.rope.dimension_count"] = 32
    program = optimise(
        build_program(metadata, tiny.weight_types(WeightType.Q4_1), max_positions=64)
    )
    first = next(op for op in program.ops if op.kind == "attention")
    assert program.buffers[first.outputs[0]].dtype is Activation.Q8


def test_qkv_stays_apart_for_differing_activations() -> None:
    counts = kinds(optimise(model(attn_v=WeightType.F16)))
    assert "matmul_qkv_rope" not in counts and counts["kv_write"] == 2


def test_qkv_stays_apart_for_heads_of_partial_vectors() -> None:
    metadata = {
        **tiny.METADATA,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
    }
    metadata["llama.rope.dimension_count"] = 8
    program = optimise(
        build_program(metadata, tiny.weight_types(WeightType.Q8_0), max_positions=64)
    )
    assert "matmul_qkv_rope" not in kinds(program)


def test_a_buffer_with_another_reader_is_not_fused_away() -> None:
    program = lower(model())
    # make the residual add read the gate's product as well: it must stay
    ops = list(program.ops)
    at = next(i for i, op in enumerate(ops) if op.label == "blk.0.ffn_down.add")
    gate_like = "blk.0.attn_output"
    ops[at] = dataclasses.replace(ops[at], inputs=(gate_like, ops[at].inputs[1]))
    changed = dataclasses.replace(program, ops=tuple(ops))
    fused = fuse_residual(changed)
    assert any(op.outputs == (gate_like,) for op in fused.ops)
    fused.check()


@pytest.mark.parametrize("rewrite", [fuse_qkv, fuse_swiglu, fuse_residual, fuse_quantize])
def test_each_fusion_alone_is_right_and_idempotent(rewrite: object) -> None:
    assert callable(rewrite)
    once = rewrite(optimise(model(), LOWERING))
    once.check()
    assert rewrite(once).ops == once.ops


@pytest.mark.parametrize("fused", [False, True])
def test_plan_never_shares_live_bytes(fused: bool) -> None:
    program = optimise(model(), PASSES if fused else LOWERING)
    memory = plan(program, 33, 7)
    last = {name: i for i, op in enumerate(program.ops) for name in op.inputs}
    born = {name: i for i, op in enumerate(program.ops) for name in op.outputs}
    shared = 0
    for a in program.buffers:
        assert memory.offsets[a] % 64 == 0
        assert memory.offsets[a] + memory.sizes[a] <= memory.nbytes
        rows = 33 if program.buffers[a].rows == "T" else 7
        buffer = program.buffers[a]
        assert memory.sizes[a] >= rows * buffer.dtype.row_bytes(buffer.width)
        for b in program.buffers:
            if a == b or not memory.overlap(a, b) or born[a] > born[b]:
                continue
            shared += 1
            end = last.get(a, len(program.ops))
            assert end <= born[b]
            if end == born[b]:  # in place: same bytes, an elementwise op
                assert memory.offsets[a] == memory.offsets[b]
                writer = program.ops[born[b]]
                assert writer.kind in ("add", "swiglu", "matmul")
                assert writer.kind != "matmul" or writer.inputs[1] == a
    assert shared > 0
    assert memory.nbytes < sum(memory.sizes.values()) / 2


def test_plan_refuses_more_rows_than_tokens() -> None:
    for tokens, rows in ((1, 2), (0, 0), (4, 0)):
        with pytest.raises(ValueError, match="0 < rows <= tokens"):
            plan(model(), tokens, rows)


def test_a_program_prints_each_op_and_totals() -> None:
    program, size = optimise(model()), StepSize.of_sequence(4, 1, 9)
    lines = format_program(program, size).splitlines()
    assert len(lines) == len(program.ops) + 3
    assert "T = 4, R = 1, 9 keys of f16 KV" in lines[0]
    for op, line in zip(program.ops, lines[2:], strict=False):
        assert line.split()[:2] == [op.label, op.kind]
    assert lines[-1].startswith("total: ")
