"""What the executables of compiled kernels share: one arena for a Program's buffers, as the memory plan lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.arena import Allocator
from cpuinfer.devices.base import Limits
from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.passes import memory
from cpuinfer.graph.program import Program
from cpuinfer.graph.weights import Weight


class ArenaExecutable:
    """A Program with its memory. `program` is the one that runs: after the passes."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Weight],
        limits: Limits,
        allocator: Allocator,
    ) -> None:
        self.program = program
        self.limits = limits
        self._memory = memory.plan(program, limits.max_tokens, limits.max_rows)
        self._arena = allocator(self._memory.nbytes)
        # Kernels hold bare addresses: what they point to lives as long as this object.
        self._constants = {
            name: np.ascontiguousarray(table, np.float32)
            for name, table in program.constants.items()
        }
        self._weights = {name: weights[name] for name in program.weights}
        self._rows = {"T": 0, "R": 0}

    def read(self, buffer: str) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Rows of a buffer after a run, as Executable.read says. Raises ValueError for an unknown buffer."""
        if buffer not in self.program.buffers:
            raise ValueError(f"no buffer {buffer!r}; there are {', '.join(self.program.buffers)}")
        return self._view(buffer, self._rows[self.program.buffers[buffer].rows])

    def write(self, buffer: str, values: NDArray[np.float32]) -> None:
        """Set the first rows of an input of the Program, as Executable.write says."""
        if buffer not in self.program.inputs:
            raise ValueError(f"{buffer!r} is not an input of the program: {self.program.inputs}")
        spec = self.program.buffers[buffer]
        most = self.limits.max_tokens if spec.rows == "T" else self.limits.max_rows
        fits = values.ndim == 2 and values.shape[0] <= most and values.shape[1] == spec.width
        if values.dtype != np.float32 or not fits:
            raise ValueError(
                f"input {buffer}: expected f32 of at most {most} rows of {spec.width}, "
                f"got {values.dtype} {values.shape}"
            )
        self._view(buffer, values.shape[0])[:] = values

    def _view(self, buffer: str, rows: int) -> NDArray[Any]:
        spec = self.program.buffers[buffer]
        row_bytes = spec.dtype.row_bytes(spec.width)
        begin = self._memory.offsets[buffer]
        data = self._arena[begin : begin + rows * row_bytes].reshape(rows, row_bytes)
        return data.view(np.float32) if spec.dtype is Activation.F32 else data
