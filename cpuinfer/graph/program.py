"""A Program: a flat list of ops over named buffers whose row counts are symbolic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import Activation, WeightType
from cpuinfer.graph.ops import StepSize, check_program, spec_of

Rows = Literal["T", "R"]
"""T: the tokens of the step. R: the rows of the step that need logits."""


@dataclass(frozen=True)
class Buffer:
    """An activation buffer [rows, width]; each is written by exactly one op."""

    name: str
    rows: Rows
    width: int
    dtype: Activation = Activation.F32


@dataclass(frozen=True)
class WeightSpec:
    """A weight that the Program reads: a matrix (N, K) of `type`, or a vector (n,), always F32."""

    name: str
    shape: tuple[int, ...]
    type: WeightType


@dataclass(frozen=True)
class Op:
    """One operation: `kind` names a row of the op table; operands are names of buffers and weights.

    `attrs` holds the attributes which the op table lists for the kind. `label` says where in the model it stands.
    """

    kind: str
    label: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KVSpec:
    """What one token's keys and values take: `n_layers` times `n_kv_heads` heads of `head_dim`, twice."""

    n_layers: int
    n_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Program:
    """A model as a device sees it. `output` names the logits buffer [R, V]; ops are in execution order.

    `constants` are f32 tables made by the builder (rope: [max_positions, 2, head_dim]: the cosine of each pair's angle
    twice, then its sine as -sin, +sin; pairs are adjacent dimensions). `inputs` are f32 buffers that no op writes and
    Executable.write sets: none in a model.
    """

    name: str
    ops: tuple[Op, ...]
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, WeightSpec]
    constants: Mapping[str, NDArray[np.float32]]
    kv: KVSpec
    vocab_size: int
    max_positions: int
    output: str
    inputs: tuple[str, ...] = ()

    def check(self) -> None:
        """Check every op against the op table and the whole for order and completeness. Raises ValueError."""
        check_program(self)

    def bytes(self, size: StepSize) -> int:
        """Bytes that a step must move: what a device limited by memory alone would take its time for."""
        return sum(spec_of(op).bytes(op, self, size) for op in self.ops)

    def operations(self, size: StepSize) -> int:
        """Operations of a step."""
        return sum(spec_of(op).operations(op, self, size) for op in self.ops)
