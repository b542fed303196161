"""A Program as text: one line per op, with bytes and operations of a given step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cpuinfer.graph.ops import StepSize, spec_of
from cpuinfer.graph.program import Op, Program


def format_program(program: Program, size: StepSize) -> str:
    """A table of the ops: label, kind, what each reads and writes, bytes, operations; then totals."""
    rows = [("op", "kind", "reads", "weights", "writes", "bytes", "operations")]
    for op in program.ops:
        spec = spec_of(op)
        rows.append(
            (
                op.label,
                op.kind,
                ", ".join(_buffer(program, name) for name in op.inputs),
                ", ".join(_weight(program, name) for name in op.weights),
                ", ".join([*(_buffer(program, name) for name in op.outputs), *_pages(op)]),
                _count(spec.bytes(op, program, size)),
                _count(spec.operations(op, program, size)),
            )
        )
    title = (
        f"program {program.name}: {len(program.ops)} ops, {len(program.buffers)} buffers; "
        f"T = {size.tokens}, R = {size.rows}, {size.context} keys of {size.kv_type} KV"
    )
    totals = (
        f"total: {_count(program.bytes(size))} bytes, {_count(program.operations(size))} operations"
    )
    return "\n".join([title, *_columns(rows), totals])


def _buffer(program: Program, name: str) -> str:
    buffer = program.buffers[name]
    return f"{name} {buffer.dtype}[{buffer.rows},{buffer.width}]"


def _weight(program: Program, name: str) -> str:
    weight = program.weights[name]
    short = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return f"{short} {weight.type.name}{list(weight.shape)}".replace(", ", ",")


def _pages(op: Op) -> list[str]:
    return [f"KV pages of layer {op.attrs['layer']}"] if spec_of(op).kv == "write" else []


def _count(n: int) -> str:
    """A count with three digits and k, M, G or T of 1000."""
    value = float(n)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:-2], widths[:-2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True)]
        yield "  ".join(left + right).rstrip()
