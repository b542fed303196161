"""What a device is: something that compiles a Program and runs batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import KVType
from cpuinfer.graph.program import Program
from cpuinfer.graph.r16k4 import packed_nbytes
from cpuinfer.graph.weights import Weight

PAGE_TOKENS = 16
"""Tokens in a KV page: the lanes of a vf16, so that a page of keys is one vector per head dimension."""


@dataclass(frozen=True)
class Batch:
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
    """A compiled Program with its memory. Not thread-safe: one caller at a time."""

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits [R, V], a view valid until the next run.

        Raises ValueError if the batch breaks a limit or its own invariants (checked before anything runs).
        """
        ...

    def read(self, buffer: str) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Rows of a buffer after a run: f32 [rows, width], or raw bytes [rows, row_bytes] for q8 and bf16.

        Only buffers whose memory no later op reuses are still intact; the output always is.
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


def check_batch(batch: Batch, program: Program, limits: Limits) -> None:
    """Raise ValueError if the batch breaks a limit or its own invariants; afterwards every index in it is in range."""
    arrays = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    for name, array in arrays.items():
        if array.dtype != np.int32 or array.ndim != 1 + (name == "block_tables"):
            raise ValueError(f"batch: {name} is {array.dtype} of shape {array.shape}; see Batch")
        if not array.flags.c_contiguous:
            raise ValueError(f"batch: {name} is not contiguous; copy it")
    n_tokens, n_seqs = len(batch.tokens), len(batch.q_indptr) - 1
    if not 0 < n_tokens <= limits.max_tokens or len(batch.logit_rows) > limits.max_rows:
        raise ValueError(
            f"batch of {n_tokens} tokens and {len(batch.logit_rows)} logit rows; "
            f"this executable takes 1 to {limits.max_tokens} and at most {limits.max_rows}"
        )
    if len(batch.positions) != n_tokens or n_seqs < 1 or len(batch.block_tables) != n_seqs:
        raise ValueError(
            f"batch: {n_tokens} tokens, {len(batch.positions)} positions, {n_seqs} sequences, "
            f"{len(batch.block_tables)} block tables; the counts must agree"
        )
    begin, end = batch.q_indptr[:-1], batch.q_indptr[1:]
    if begin[0] != 0 or end[-1] != n_tokens or (end <= begin).any():
        raise ValueError(f"batch: q_indptr must rise from 0 to {n_tokens}; got {batch.q_indptr}")
    _check_range("token", batch.tokens, program.vocab_size)
    _check_range("logit row", batch.logit_rows, n_tokens)
    last = batch.positions[end - 1]
    _check_range("position", batch.positions, limits.max_context)
    if (last - batch.positions[begin] != end - begin - 1).any() or (
        np.delete(np.diff(batch.positions), begin[1:] - 1) != 1
    ).any():
        raise ValueError("batch: the positions of a sequence's tokens must be consecutive")
    blocks = batch.block_tables.shape[1]
    needed = last // PAGE_TOKENS + 1
    if needed.max() > blocks:
        raise ValueError(f"batch: a sequence needs {needed.max()} blocks, its table has {blocks}")
    used = batch.block_tables[np.arange(blocks) < needed[:, None]]
    _check_range("page", used, limits.n_pages)


def _check_range(what: str, values: NDArray[np.int32], end: int) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < end:
        raise ValueError(
            f"batch: {what}s from {values.min()} to {values.max()}; they must be in 0..{end - 1}"
        )
