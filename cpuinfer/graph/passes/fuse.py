"""Fusions. Each does the same operations in the same order as the ops it replaces, so the bits stay the same."""

from __future__ import annotations

import dataclasses

from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.passes.rewrite import Uses, replace
from cpuinfer.graph.program import Op, Program


def fuse_qkv(program: Program) -> Program:
    """q, k, v matmuls of one input, rope of q and k, kv_write -> matmul_qkv_rope.

    Heads must be whole vectors of 16, so that a pair and its head lie inside the 16 rows of a weight panel.
    """
    uses = Uses(program)
    at: dict[int, list[Op]] = {}
    removed: set[int] = set()
    for attention_at, attention in enumerate(program.ops):
        if attention.kind == "attention":
            group = _qkv_group(uses, attention_at)
            if group:
                at[min(group)] = [_qkv_op(program, group)]
                removed.update(group)
    return replace(program, at, removed)


def _qkv_group(uses: Uses, attention_at: int) -> list[int]:
    """Indices of (matmul q, k, v, rope q, rope k, kv_write) that feed the attention; empty if it does not fit."""
    ops = uses.program.ops
    attention = ops[attention_at]
    writes = [
        index
        for index, op in enumerate(ops[:attention_at])
        if op.kind == "kv_write" and op.attrs["layer"] == attention.attrs["layer"]
    ]
    if len(writes) != 1 or attention.attrs["head_dim"] % 16:
        return []
    k, v = ops[writes[0]].inputs
    rope_q = uses.written_by(attention.inputs[0], "rope")
    rope_k = uses.written_by(k, "rope")
    if rope_q is None or rope_k is None:
        return []
    q_at = uses.written_by(ops[rope_q].inputs[0], "matmul")
    k_at = uses.written_by(ops[rope_k].inputs[0], "matmul")
    v_at = uses.written_by(v, "matmul")
    if q_at is None or k_at is None or v_at is None:
        return []
    same_input = len({ops[i].inputs for i in (q_at, k_at, v_at)}) == 1
    same_table = ops[rope_q].attrs["rope"] == ops[rope_k].attrs["rope"]
    plain = len(ops[q_at].inputs) == 1 and uses.program.buffers[v].rows == "T"
    if not (same_input and same_table and plain):
        return []
    return [q_at, k_at, v_at, rope_q, rope_k, writes[0]]


def _qkv_op(program: Program, group: list[int]) -> Op:
    q, k, v, rope_q, _, write = (program.ops[index] for index in group)
    return Op(
        "matmul_qkv_rope",
        f"{q.label}kv",
        q.inputs,
        rope_q.outputs,
        q.weights + k.weights + v.weights,
        {**rope_q.attrs, **write.attrs},
    )


def fuse_swiglu(program: Program) -> Program:
    """gate and up matmuls of one input, then swiglu -> matmul_swiglu."""
    uses = Uses(program)
    at: dict[int, list[Op]] = {}
    removed: set[int] = set()
    for index, op in enumerate(program.ops):
        if op.kind != "swiglu":
            continue
        gate_at, up_at = (uses.written_by(name, "matmul") for name in op.inputs)
        if gate_at is None or up_at is None or gate_at == up_at:
            continue
        gate, up = program.ops[gate_at], program.ops[up_at]
        if gate.inputs == up.inputs and len(gate.inputs) == 1:
            weights = gate.weights + up.weights
            at[index] = [Op("matmul_swiglu", op.label, gate.inputs, op.outputs, weights)]
            removed.update((gate_at, up_at))
    return replace(program, at, removed)


def fuse_residual(program: Program) -> Program:
    """add(residual, matmul(x)) -> matmul(x, residual)."""
    uses = Uses(program)
    at: dict[int, list[Op]] = {}
    removed: set[int] = set()
    for index, op in enumerate(program.ops):
        if op.kind != "add" or op.inputs[0] == op.inputs[1]:
            continue
        for residual, product in (op.inputs, op.inputs[::-1]):
            matmul_at = uses.written_by(product, "matmul")
            if matmul_at is None or len(program.ops[matmul_at].inputs) > 1:
                continue
            matmul = program.ops[matmul_at]
            inputs = (matmul.inputs[0], residual)
            at[index] = [dataclasses.replace(matmul, inputs=inputs, outputs=op.outputs)]
            removed.add(matmul_at)
            break
    return replace(program, at, removed)


def fuse_quantize(program: Program) -> Program:
    """A rmsnorm, swiglu, matmul_swiglu or attention that only a quantize reads writes q8 or bf16 itself.

    Attention writes q8 only where a head is whole blocks of 32, so that no block is shared between heads.
    """
    uses = Uses(program)
    at: dict[int, list[Op]] = {}
    removed: set[int] = set()
    for index, op in enumerate(program.ops):
        if op.kind not in ("rmsnorm", "swiglu", "matmul_swiglu", "attention"):
            continue
        quantize_at = uses.only_reader(op.outputs[0])
        if quantize_at is None or program.ops[quantize_at].kind != "quantize":
            continue
        quantized = program.ops[quantize_at].outputs
        q8 = program.buffers[quantized[0]].dtype is Activation.Q8
        if op.kind == "attention" and q8 and op.attrs["head_dim"] % 32:
            continue
        at[index] = [dataclasses.replace(op, outputs=quantized)]
        removed.add(quantize_at)
    return replace(program, at, removed)
