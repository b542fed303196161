"""What rewriting a Program takes: who writes and reads each buffer, and replacing groups of ops by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from cpuinfer.graph.program import Buffer, Op, Program


class Uses:
    """Who writes and who reads each buffer, by index into the Program's ops."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.writer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {name: [] for name in program.buffers}
        for index, op in enumerate(program.ops):
            for name in op.outputs:
                self.writer[name] = index
            for name in dict.fromkeys(op.inputs):
                self.readers[name].append(index)

    def only_reader(self, buffer: str) -> int | None:
        """The one op that reads the buffer; None where several do, none does, or it is the Program's output."""
        readers = self.readers[buffer]
        return readers[0] if len(readers) == 1 and buffer != self.program.output else None

    def written_by(self, buffer: str, kind: str) -> int | None:
        """The op that writes the buffer, if it is of this kind and nothing else reads the buffer but one op."""
        index = self.writer.get(buffer)
        if index is None or self.only_reader(buffer) is None:
            return None
        return index if self.program.ops[index].kind == kind else None


def replace(
    program: Program,
    at: Mapping[int, list[Op]],
    removed: Collection[int] = (),
    buffers: Mapping[str, Buffer] | None = None,
) -> Program:
    """The Program with the ops at the indices of `at` replaced by the given ones, those of `removed` left out.

    `buffers` adds or redeclares buffers; those that no op and no input uses any more are dropped.
    """
    ops: list[Op] = []
    for index, op in enumerate(program.ops):
        if index in at:
            ops.extend(at[index])
        elif index not in removed:
            ops.append(op)
    kept = {name for op in ops for name in op.inputs + op.outputs} | set(program.inputs)
    every = {**program.buffers, **(buffers or {})}
    return dataclasses.replace(
        program,
        ops=tuple(ops),
        buffers={name: buffer for name, buffer in every.items() if name in kept},
    )
