"""A builder of Programs in which a model reads like its paper: `x = x + attention(norm(x))`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.ops import AttrValue
from cpuinfer.graph.program import Buffer, KVSpec, Op, Program, Rows, WeightSpec


@dataclass(frozen=True)
class Tensor:
    """A buffer while a model is being written: f32 [rows, width]. `a + b` adds an op."""

    name: str
    rows: Rows
    width: int
    builder: Builder

    def __add__(self, other: Tensor) -> Tensor:
        return self.builder.add(self, other)


class Builder:
    """Collects ops, buffers and weights; `program` checks them and makes the Program.

    Weights are declared by the ops that use them: `w` names the tensor "<w>.weight" of the model file, whose type is
    looked up in `weight_types` and whose shape follows from the op. An op's label and buffer are named alike.
    """

    def __init__(
        self, name: str, weight_types: Mapping[str, WeightType], kv: KVSpec, max_positions: int
    ) -> None:
        self.name = name
        self.kv = kv
        self.max_positions = max_positions
        self._weight_types = weight_types
        self._ops: list[Op] = []
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, WeightSpec] = {}
        self._constants: dict[str, NDArray[np.float32]] = {}

    def constant(self, name: str, table: NDArray[np.float32]) -> str:
        """Add an f32 table; returns its name."""
        self._constants[name] = table
        return name

    def embed(self, w: str, vocab_size: int, width: int) -> Tensor:
        """Rows of the table [vocab_size, width] of the step's tokens."""
        return self._op("embed", w, (), "T", width, (self._weight(w, vocab_size, width),))

    def rmsnorm(self, x: Tensor, w: str, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * w."""
        return self._op(
            "rmsnorm", w, (x,), x.rows, x.width, (self._weight(w, x.width),), {"eps": eps}
        )

    def matmul(self, x: Tensor, w: str, width: int, label: str = "") -> Tensor:
        """x @ w^T with w [width, x.width]; `label` tells two uses of one weight apart."""
        weight = self._weight(w, width, x.width)
        return self._op("matmul", label or w, (x,), x.rows, width, (weight,))

    def rope(self, x: Tensor, table: str, head_dim: int) -> Tensor:
        """Rotate the pairs of each head by the token's position."""
        attrs: dict[str, AttrValue] = {
            "heads": x.width // head_dim,
            "head_dim": head_dim,
            "rope": table,
        }
        return self._op("rope", f"{x.name}.rope", (x,), x.rows, x.width, attrs=attrs)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        scale: float,
        label: str,
        *,
        window: int = 0,
        softcap: float = 0.0,
        sinks: str = "",
    ) -> Tensor:
        """Write k and v to the KV pages of the layer, then attend to all of them up to the token's own position.

        window: how many positions a token sees, its own included; 0 is all. softcap: c > 0 makes a score s
        c * tanh(s / c). sinks: names a vector of one logit per head that takes part in the softmax.
        """
        kv: dict[str, AttrValue] = {
            "kv_heads": self.kv.n_kv_heads,
            "head_dim": self.kv.head_dim,
            "layer": layer,
        }
        self._ops.append(Op("kv_write", f"{label}.kv_write", (k.name, v.name), attrs=kv))
        heads = q.width // self.kv.head_dim
        attrs = kv | {"heads": heads, "scale": scale}
        if window:
            attrs["window"] = window
        if softcap:
            attrs["softcap"] = softcap
        weights = (self._weight(sinks, heads),) if sinks else ()
        return self._op("attention", label, (q,), q.rows, q.width, weights, attrs)

    def swiglu(self, gate: Tensor, up: Tensor, label: str) -> Tensor:
        """silu(gate) * up."""
        return self._op("swiglu", label, (gate, up), gate.rows, gate.width)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b."""
        return self._op("add", f"{b.name}.add", (a, b), a.rows, a.width)

    def take_rows(self, x: Tensor) -> Tensor:
        """The rows that need logits."""
        return self._op("take_rows", f"{x.name}.rows", (x,), "R", x.width)

    def program(self, output: Tensor) -> Program:
        """The Program whose logits are `output`, checked. Raises ValueError."""
        program = Program(
            self.name,
            tuple(self._ops),
            self._buffers,
            self._weights,
            self._constants,
            self.kv,
            output.width,
            self.max_positions,
            output.name,
        )
        program.check()
        return program

    def _weight(self, w: str, *shape: int) -> str:
        name = f"{w}.weight"
        if name not in self._weight_types:
            raise ValueError(f"the model has no tensor {name}; a {self.name} model needs it")
        spec = WeightSpec(name, shape, self._weight_types[name])
        if self._weights.setdefault(name, spec) != spec:
            raise ValueError(f"tensor {name} is used both as {self._weights[name]} and as {spec}")
        return name

    def _op(
        self,
        kind: str,
        label: str,
        inputs: tuple[Tensor, ...],
        rows: Rows,
        width: int,
        weights: tuple[str, ...] = (),
        attrs: Mapping[str, AttrValue] | None = None,
    ) -> Tensor:
        if label in self._buffers:
            raise ValueError(f"two ops are labelled {label!r}; labels must differ")
        names = tuple(x.name for x in inputs)
        self._ops.append(Op(kind, label, names, (label,), weights, attrs or {}))
        self._buffers[label] = Buffer(label, rows, width)
        return Tensor(label, rows, width, self)
