"""Where a team of threads must meet: between ops whose memory crosses threads, and nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cpuinfer.graph.ops import spec_of
from cpuinfer.graph.passes.memory import MemoryPlan
from cpuinfer.graph.program import Program

Range = tuple[str, int, int]
"""(space, begin, end): bytes of the arena, or a thing of which there is one per name, such as a layer's KV."""


@dataclass(frozen=True)
class Access:
    """What one op reads and writes."""

    reads: tuple[Range, ...]
    writes: tuple[Range, ...]


def barriers(program: Program, memory: MemoryPlan, private: Collection[str] = ()) -> list[bool]:
    """Per op: whether the team must meet before it. `private`: buffers of which each thread makes its own.

    It must where the op touches what another op wrote, or writes what another op read, since the team last met: any
    thread may have done that, and any other may do this.
    """
    meet: list[bool] = []
    reads: set[Range] = set()
    writes: set[Range] = set()
    for access in accesses(program, memory, private):
        clash = _meets(access.reads, writes) or _meets(access.writes, reads | writes)
        if clash:
            reads, writes = set(), set()
        reads.update(access.reads)
        writes.update(access.writes)
        meet.append(clash)
    return meet


def accesses(program: Program, memory: MemoryPlan, private: Collection[str] = ()) -> list[Access]:
    """What each op reads and writes of what the team shares, in order; `private` buffers it does not share."""

    def places(names: Iterable[str]) -> list[Range]:
        return [
            ("arena", memory.offsets[name], memory.offsets[name] + memory.sizes[name])
            for name in names
            if name not in private
        ]

    found = []
    for op in program.ops:
        reads, writes = places(op.inputs), places(op.outputs)
        kv = spec_of(op).kv
        if kv:
            (reads if kv == "read" else writes).append((f"kv{op.attrs['layer']}", 0, 1))
        if op.kind == "attention":
            writes.append(("shared workspace", 0, 1))
        found.append(Access(tuple(reads), tuple(writes)))
    return found


def _meets(some: Iterable[Range], others: Iterable[Range]) -> bool:
    others = tuple(others)
    return any(
        space == other and begin < other_end and other_begin < end
        for space, begin, end in some
        for other, other_begin, other_end in others
    )
