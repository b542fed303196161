"""Where each buffer lies in one arena: buffers whose lives do not meet share bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.program import Buffer, Op, Program

ALIGNMENT = 64
"""Bytes that every offset is a multiple of: one cache line, one zmm register."""

IN_PLACE: Mapping[str, tuple[int, ...]] = {"add": (0, 1), "swiglu": (0, 1), "matmul": (1,)}
"""Inputs whose bytes the output may take over: each element is read, then written, by the same thread."""


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets and sizes in bytes, by buffer name, in an arena of `nbytes` that starts 64-byte aligned."""

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]
    nbytes: int

    def overlap(self, a: str, b: str) -> bool:
        """Whether two buffers share bytes: then an op that writes one must wait for those that use the other."""
        return (
            self.offsets[a] < self.offsets[b] + self.sizes[b]
            and self.offsets[b] < self.offsets[a] + self.sizes[a]
        )


def plan(program: Program, max_tokens: int, max_rows: int) -> MemoryPlan:
    """Place every buffer for steps of at most `max_tokens` tokens and `max_rows` logit rows.

    Inputs live from before the first op, and the output, inputs and buffers that nobody reads to the end. Raises
    ValueError unless 0 < max_rows <= max_tokens.
    """
    if not 0 < max_rows <= max_tokens:
        raise ValueError(f"{max_rows} rows of {max_tokens} tokens; need 0 < rows <= tokens")
    sizes = {name: _size(buffer, max_tokens, max_rows) for name, buffer in program.buffers.items()}
    last_use = _last_uses(program)
    offsets: dict[str, int] = {}
    live: list[str] = []
    nbytes = 0

    def place(name: str) -> None:
        nonlocal nbytes
        offsets[name] = _first_gap(sizes[name], sorted((offsets[b], sizes[b]) for b in live))
        nbytes = max(nbytes, offsets[name] + sizes[name])
        live.append(name)

    for name in program.inputs:
        place(name)
    for index, op in enumerate(program.ops):
        taken_over = _in_place(op, index, program, last_use)
        for name in op.outputs:
            if taken_over:
                offsets[name] = offsets[taken_over]
                live[live.index(taken_over)] = name
            else:
                place(name)
        live = [name for name in live if last_use[name] > index]
    return MemoryPlan(offsets, sizes, nbytes)


def _size(buffer: Buffer, max_tokens: int, max_rows: int) -> int:
    rows = max_tokens if buffer.rows == "T" else max_rows
    return -(-rows * buffer.dtype.row_bytes(buffer.width) // ALIGNMENT) * ALIGNMENT


def _last_uses(program: Program) -> dict[str, int]:
    """The index of the last op that needs each buffer; len(ops) where it must outlive the run."""
    last: dict[str, int] = {}
    for index, op in enumerate(program.ops):
        last.update(dict.fromkeys(op.inputs, index))
    end = len(program.ops)
    for name in program.buffers:
        last.setdefault(name, end)
    last.update(dict.fromkeys((program.output, *program.inputs), end))
    return last


def _in_place(op: Op, index: int, program: Program, last_use: Mapping[str, int]) -> str | None:
    """An input that dies here and whose bytes the op may write its output over."""
    if op.kind not in IN_PLACE or program.buffers[op.outputs[0]].dtype is not Activation.F32:
        return None
    for position in IN_PLACE[op.kind]:
        if position < len(op.inputs):
            name = op.inputs[position]
            if last_use[name] == index and op.inputs.count(name) == 1:
                return name
    return None


def _first_gap(size: int, taken: list[tuple[int, int]]) -> int:
    """The least offset at which `size` bytes fit between the (offset, size) ranges, sorted by offset."""
    offset = 0
    for begin, length in taken:
        if begin - offset >= size:
            break
        offset = max(offset, begin + length)
    return offset
