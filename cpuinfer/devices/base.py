"""What a device is: something that compiles a Program and runs batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.kv_memory import KVMemory
from cpuinfer.devices.sampling import Sampler
from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import KVSpec, Program
from cpuinfer.graph.r16k4 import packed_nbytes
from cpuinfer.graph.weights import Weight

PAGE_TOKENS = 16
"""Tokens in a KV page: the lanes of a vf16, so that a page of keys is one vector per head dimension."""


def page_bytes(kv: KVSpec, kv_type: KVType) -> int:
    """Bytes of one page of PAGE_TOKENS tokens, keys and values of all layers."""
    return kv.n_layers * PAGE_TOKENS * kv_type.token_bytes(kv.n_kv_heads, kv.head_dim)


class Batch(NamedTuple):
    """One step of ragged work, built whole. Sequence s owns tokens q_indptr[s]:q_indptr[s+1].

    tokens, positions [T] i32; q_indptr [S+1] i32; block_tables [S, max_blocks] i32, the page of each 16 positions
    (entries past the sequence's end are ignored); logit_rows [R] i32, the tokens whose logits are wanted.
    Positions of one sequence's tokens are consecutive; every page they and their past need is in the table.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    q_indptr: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int32]


@dataclass(frozen=True)
class Limits:
    """What an Executable allocates for, once: tokens and logit rows of a step, pages of KV, positions of a sequence."""

    max_tokens: int
    max_rows: int
    n_pages: int
    max_context: int
    kv_type: KVType = KVType.F16


class Executable(Protocol):
    """A compiled Program with its memory. Not thread-safe: one caller at a time.

    sampler: chooses tokens from what `run` returned; None where the device leaves that to the engine.
    kv: its KV pages as bytes.
    """

    kv: KVMemory

    @property
    def sampler(self) -> Sampler | None:
        """See the class."""
        ...

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [R, V], a view valid until the next run. The same batch may come again with other numbers in its arrays.

        Raises ValueError if the batch breaks a limit or its own invariants (checked before anything runs).
        """
        ...

    def read(self, buffer: str) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Rows of a buffer after a run: f32 [rows, width], or raw bytes [rows, row_bytes] for q8 and bf16.

        Only buffers whose memory no later op reuses are still intact, and not those that a device computes in another
        place or not at all because of the step's size; the output always is.
        """
        ...

    def write(self, buffer: str, values: NDArray[np.float32]) -> None:
        """Set the first rows of a buffer of Program.inputs, f32 [rows, width], for the runs to come.

        Models have no such buffers; single ops under test do. Raises ValueError for another buffer, width or dtype,
        or too many rows.
        """
        ...

    def op_seconds(self) -> NDArray[np.float64]:
        """Seconds spent in each op of the compiled program since the last call (zeros where not measured)."""
        ...


class Device(Protocol):
    """A way to run Programs."""

    name: str

    def compile(
        self, program: Program, weights: Mapping[str, Weight], limits: Limits
    ) -> Executable:
        """Check every weight against the program, allocate everything, return what runs it.

        Raises ValueError for a missing or mismatched weight, and for an op or a type which the device lacks.
        """
        ...


def check_weights(program: Program, weights: Mapping[str, Weight]) -> None:
    """Raise ValueError for a weight of the Program that is missing, or differs in type, shape or bytes."""
    for name, spec in program.weights.items():
        weight = weights.get(name)
        if weight is None:
            raise ValueError(f"weight {name} is missing; program {program.name} needs it")
        if (weight.type, weight.shape) != (spec.type, spec.shape):
            raise ValueError(
                f"weight {name} is {weight.type.name} {weight.shape}; "
                f"program {program.name} needs {spec.type.name} {spec.shape}"
            )
        nbytes = (
            4 * spec.shape[0] if len(spec.shape) == 1 else packed_nbytes(spec.type, *spec.shape)
        )
        if weight.data.dtype != np.uint8 or weight.data.shape != (nbytes,):
            raise ValueError(
                f"weight {name} has {weight.data.dtype} data of shape {weight.data.shape}; "
                f"a packed {spec.type.name} {spec.shape} is {nbytes} bytes of uint8"
            )


def check_limits(program: Program, limits: Limits) -> None:
    """Raise ValueError for limits that are not positive, or longer than the Program's positions."""
    sizes = (limits.max_tokens, limits.max_rows, limits.n_pages, limits.max_context)
    if min(sizes) < 1 or max(sizes) >= 1 << 31 or limits.max_rows > limits.max_tokens:
        raise ValueError(f"{limits}: each must be positive, and max_rows at most max_tokens")
    if limits.max_context > program.max_positions:
        raise ValueError(
            f"max_context {limits.max_context} is more than the {program.max_positions} positions "
            f"of program {program.name}; build it with more, or lower max_context"
        )
