"""From what a model says to what kernels take: logit rows early, and matmul inputs in the type of the weight."""

from __future__ import annotations

import dataclasses

from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.program import Buffer, Op, Program

ROW_WISE = frozenset({"rmsnorm", "matmul", "add", "swiglu"})


def hoist_rows(program: Program) -> Program:
    """Take the rows that need logits as early as possible: take_rows(f(x)) = f(take_rows(x)) for row-wise ops f.

    In a model's last layer everything after attention then runs over the R rows alone.
    """
    narrow = _needed_in_rows_only(program)
    buffers = dict(program.buffers)
    for name in narrow:
        buffers[name] = dataclasses.replace(buffers[name], rows="R")
    rows_of = {name: name for name in narrow}  # a buffer to the buffer that holds its R rows
    renamed: dict[str, str] = {}
    ops: list[Op] = []
    for op in program.ops:
        inputs = [renamed.get(name, name) for name in op.inputs]
        if op.kind == "take_rows" and inputs[0] in rows_of:
            renamed[op.outputs[0]] = rows_of[inputs[0]]
            continue
        if op.kind == "take_rows":
            rows_of[inputs[0]] = op.outputs[0]
        elif narrow.intersection(op.outputs):
            for name in inputs:
                if name not in rows_of:
                    taken = rows_of[name] = f"{name}.rows"
                    buffers[taken] = dataclasses.replace(buffers[name], name=taken, rows="R")
                    ops.append(Op("take_rows", taken, (name,), (taken,)))
            inputs = [rows_of[name] for name in inputs]
        ops.append(dataclasses.replace(op, inputs=tuple(inputs)))
    return dataclasses.replace(
        program,
        ops=tuple(ops),
        buffers={name: buffer for name, buffer in buffers.items() if name not in renamed},
        output=renamed.get(program.output, program.output),
    )


def _needed_in_rows_only(program: Program) -> set[str]:
    """The T buffers written by row-wise ops of which, in the end, only the logit rows are used."""
    full: set[str] = set()
    used: set[str] = set()
    narrow: set[str] = set()
    for op in reversed(program.ops):
        out = op.outputs[0] if op.outputs else ""
        if (
            op.kind in ROW_WISE
            and program.buffers[out].rows == "T"
            and out in used - full
            and out != program.output
        ):
            narrow.add(out)
        elif op.kind != "take_rows":
            full.update(op.inputs)
        used.update(op.inputs)
    return narrow


def lower(program: Program) -> Program:
    """Quantise each matmul's input to what its weight takes (WeightType.activation); one quantize per input and type.

    Raises ValueError for a weight type without a native kernel.
    """
    ops: list[Op] = []
    buffers = dict(program.buffers)
    for op in program.ops:
        if op.kind in ("matmul", "matmul_swiglu", "matmul_qkv_rope"):
            activation = _activation(op, program)
            source = buffers[op.inputs[0]]
            if source.dtype is not activation:
                name = f"{source.name}.{activation}"
                if name not in buffers:
                    buffers[name] = Buffer(name, source.rows, source.width, activation)
                    ops.append(Op("quantize", name, (source.name,), (name,)))
                op = dataclasses.replace(op, inputs=(name, *op.inputs[1:]))
        ops.append(op)
    return dataclasses.replace(program, ops=tuple(ops), buffers=buffers)


def _activation(op: Op, program: Program) -> Activation:
    types = [program.weights[name].type for name in op.weights]
    for name, type_ in zip(op.weights, types, strict=True):
        if not type_.is_native:
            raise ValueError(
                f"op {op.label}: no kernel reads {name} as {type_.name}; expand it to F32 at load"
            )
    activations = {type_.activation for type_ in types}
    if len(activations) > 1:
        raise ValueError(f"op {op.label}: its weights take {sorted(activations)}; split the op")
    return activations.pop()
