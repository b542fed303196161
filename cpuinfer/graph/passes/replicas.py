"""Buffers that are cheaper computed by every thread for itself than shared: no barrier follows their op."""

from __future__ import annotations

from collections.abc import Mapping

from cpuinfer.graph.passes.rewrite import Uses
from cpuinfer.graph.program import Program

REPLICABLE = frozenset({"rmsnorm", "quantize", "take_rows"})
"""Ops of a few operations per value."""


def replicas(program: Program) -> Mapping[str, int]:
    """Slots, from 1 up, of the buffers that each thread may keep a copy of its own of.

    Such a buffer is written by an op of REPLICABLE and read by matrix products only, or by ops that write such a
    buffer. Two buffers share a slot only if one is dead before the other is written.
    """
    uses = Uses(program)
    found: set[str] = set()
    for op in reversed(program.ops):
        if op.kind in REPLICABLE and op.outputs[0] != program.output:
            readers = [program.ops[index] for index in uses.readers[op.outputs[0]]]
            if readers and all(
                reader.kind.startswith("matmul") or found.intersection(reader.outputs)
                for reader in readers
            ):
                found.add(op.outputs[0])
    slots: dict[str, int] = {}
    last: dict[int, int] = {}  # a slot to the last op that reads it
    for index, op in enumerate(program.ops):
        for name in op.outputs:
            if name in found:
                free = (slot for slot, read in last.items() if read < index)
                slots[name] = slot = next(free, len(last) + 1)
                last[slot] = uses.readers[name][-1]
    return slots
