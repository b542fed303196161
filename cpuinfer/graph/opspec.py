"""What a row of the op table is, and what follows from it: checks, bytes, operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cpuinfer.graph.dtypes import Activation, KVType, WeightType
from cpuinfer.graph.r16k4 import packed_nbytes

if TYPE_CHECKING:
    from cpuinfer.graph.program import Buffer, Op, Program, WeightSpec

AttrValue = int | float | str
"""An attribute's value; a str names a constant of the Program."""

F32 = (Activation.F32,)


@dataclass(frozen=True)
class Operand:
    """One operand. `shape` is dimensions parted by blanks.

    T and R are the Program's row symbols, `rows` is either of them (the same for all operands of the op). A dimension
    made of attributes ("heads*head_dim") is their product; any other name is bound by the first operand that has it.
    `dtypes` are the element types a buffer may have; weights state their own.
    """

    name: str
    shape: str
    dtypes: tuple[Activation, ...] = F32
    optional: bool = False


@dataclass(frozen=True)
class Attr:
    """An attribute: its type, and its least value where it is a number. A str names a constant of the Program. An
    optional one that an op leaves out is 0.
    """

    type: type[int] | type[float] | type[str]
    least: float = 0
    optional: bool = False


@dataclass(frozen=True)
class StepSize:
    """What a step's cost depends on: T tokens, R logit rows, `context` keys in the pages of all its sequences
    together (this step's own included), `pairs` of a query and a key it may see, and the KV element type."""

    tokens: int
    rows: int
    context: int
    pairs: int
    kv_type: KVType = KVType.F16

    @staticmethod
    def of_sequence(tokens: int, rows: int, context: int, kv_type: KVType = KVType.F16) -> StepSize:
        """One sequence whose last `tokens` of `context` positions are computed. Raises ValueError if they exceed it."""
        if not 0 < tokens <= context or not 0 <= rows <= tokens:
            raise ValueError(
                f"a step of {tokens} tokens and {rows} logit rows with a context of {context}: "
                "need 0 < tokens <= context and 0 <= rows <= tokens"
            )
        return StepSize(
            tokens, rows, context, tokens * context - tokens * (tokens - 1) // 2, kv_type
        )

    @staticmethod
    def of_batch(
        q_indptr: Sequence[int],
        positions: Sequence[int],
        rows: int,
        kv_type: KVType = KVType.F16,
    ) -> StepSize:
        """A ragged batch: sequence s has tokens q_indptr[s]:q_indptr[s+1] at consecutive `positions`."""
        context = pairs = 0
        for begin, end in zip(q_indptr[:-1], q_indptr[1:], strict=True):
            if end > begin:
                one = StepSize.of_sequence(int(end - begin), 0, int(positions[end - 1]) + 1)
                context, pairs = context + one.context, pairs + one.pairs
        return StepSize(int(q_indptr[-1]), rows, context, pairs, kv_type)


Dims = Mapping[str, int]


@dataclass(frozen=True)
class OpSpec:
    """A row of the op table.

    `gathers`: the op reads only as many rows of its first operand as it writes. `kv`: what it does to the KV pages of
    its layer. `count` gives the operations from the resolved dimensions (a multiplication and an addition are two).
    """

    kind: str
    inputs: tuple[Operand, ...]
    weights: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    attrs: Mapping[str, Attr]
    formula: str
    source: str
    count: Callable[[Dims], int]
    gathers: bool = False
    kv: Literal["", "read", "write"] = ""

    def check(self, op: Op, program: Program) -> None:
        """Check one op against the Program's buffers, weights and constants.

        Raises ValueError naming the op's label, what is wrong, what was found, and the remedy.
        """
        self.resolve(op, program)

    def resolve(self, op: Op, program: Program) -> dict[str, int | str]:
        """The op's dimensions by name (row symbols stay "T" or "R"). Raises as `check` does."""
        dims: dict[str, int | str] = {}
        self._check_attrs(op, program, dims)
        buffers, weights = program.buffers, program.weights
        for what, operands, names in (
            ("input", self.inputs, op.inputs),
            ("output", self.outputs, op.outputs),
            ("weight", self.weights, op.weights),
        ):
            needed = sum(not operand.optional for operand in operands)
            if not needed <= len(names) <= len(operands):
                wanted = ", ".join(operand.name + "?" * operand.optional for operand in operands)
                raise op_error(
                    op, f"takes {what}s ({wanted}), got {len(names)}", "give each operand"
                )
            for operand, name in zip(operands, names, strict=False):
                if what == "weight":
                    spec = _find(op, name, weights, "weight")
                    _bind(op, operand, [str(n) for n in spec.shape], dims)
                else:
                    buffer = _find(op, name, buffers, "buffer")
                    _check_dtype(op, operand, buffer)
                    _bind(op, operand, [buffer.rows, str(buffer.width)], dims)
        self._check_weight_types(op, program)
        return dims

    def _check_attrs(self, op: Op, program: Program, dims: dict[str, int | str]) -> None:
        needed = {name for name, attr in self.attrs.items() if not attr.optional}
        if not needed <= set(op.attrs) <= set(self.attrs):
            raise op_error(
                op, f"takes attributes {sorted(self.attrs)}, got {sorted(op.attrs)}", "set each"
            )
        for name, attr in self.attrs.items():
            value: Any = op.attrs.get(name, attr.type(0) if attr.optional else None)
            if not isinstance(value, attr.type) or isinstance(value, bool):
                raise op_error(
                    op,
                    f"attribute {name} is a {attr.type.__name__}, got {value!r}",
                    "convert it",
                )
            if not isinstance(value, str) and not attr.least <= value < math.inf:
                raise op_error(
                    op,
                    f"attribute {name} is {value}",
                    f"it must be finite and at least {attr.least}",
                )
            if isinstance(value, int):
                dims[name] = value
        if {"heads", "kv_heads"} <= self.attrs.keys() and op.attrs["heads"] % op.attrs["kv_heads"]:
            raise op_error(
                op,
                f"{op.attrs['heads']} query heads over {op.attrs['kv_heads']} KV heads",
                "the first must be a multiple of the second",
            )
        if self.kv:
            kv = program.kv
            got = (op.attrs["kv_heads"], op.attrs["head_dim"])
            if got != (kv.n_kv_heads, kv.head_dim) or op.attrs["layer"] >= kv.n_layers:
                raise op_error(
                    op,
                    f"layer {op.attrs['layer']} with (kv_heads, head_dim) {got}",
                    f"the Program's KV is {kv}",
                )
        if "rope" in self.attrs:
            table = _find(op, op.attrs["rope"], program.constants, "constant")
            wanted = (program.max_positions, 2, op.attrs["head_dim"])
            if table.shape != wanted or table.dtype.name != "float32":
                raise op_error(
                    op, f"RoPE table {table.dtype} {table.shape}", f"it must be f32 {wanted}"
                )

    def _check_weight_types(self, op: Op, program: Program) -> None:
        for operand, name in zip(self.weights, op.weights, strict=False):
            weight = program.weights[name]
            if len(weight.shape) == 1 and weight.type is not WeightType.F32:
                raise op_error(op, f"vector {name} is {weight.type.name}", "vectors are F32")
            if not op.kind.startswith("matmul"):
                continue
            got = program.buffers[op.inputs[0]].dtype
            if got is not Activation.F32 and (
                not weight.type.is_native or got is not weight.type.activation
            ):
                raise op_error(
                    op,
                    f"{operand.name} {name} is {weight.type.name} but its input {op.inputs[0]} is {got}",
                    "give it f32, or what WeightType.activation says",
                )

    def dims(self, op: Op, program: Program, size: StepSize) -> dict[str, int]:
        """The op's dimensions for a step, its `inputs`, and the step's T, R, pairs. Raises as `check` does."""
        rows = {"T": size.tokens, "R": size.rows}
        dims = {
            name: value if isinstance(value, int) else rows[value]
            for name, value in self.resolve(op, program).items()
        }
        return dims | {
            "T": size.tokens,
            "R": size.rows,
            "pairs": size.pairs,
            "inputs": len(op.inputs),
        }

    def operations(self, op: Op, program: Program, size: StepSize) -> int:
        """Operations of the op in a step."""
        return self.count(self.dims(op, program, size))

    def bytes(self, op: Op, program: Program, size: StepSize) -> int:
        """Bytes the op must move in a step if each operand is read or written once: weights (packed), buffers, KV."""
        rows = {"T": size.tokens, "R": size.rows}
        buffers = [program.buffers[name] for name in op.inputs + op.outputs]
        sizes = [rows[b.rows] * b.dtype.row_bytes(b.width) for b in buffers]
        weights = [program.weights[name] for name in op.weights]
        total = sum(_weight_bytes(weight) for weight in weights)
        if self.gathers and op.weights:
            written = rows[program.buffers[op.outputs[0]].rows]
            total = total * min(written, weights[0].shape[0]) // weights[0].shape[0]
        elif self.gathers:
            sizes[0] = sizes[-1]
        if self.kv:
            kv_row = size.kv_type.token_bytes(program.kv.n_kv_heads, program.kv.head_dim)
            read = min(size.context, size.tokens * (op.attrs.get("window") or size.context))
            total += kv_row * (read if self.kv == "read" else size.tokens)
        return total + sum(sizes)


def _weight_bytes(weight: WeightSpec) -> int:
    """Bytes of a weight in memory; a type that no kernel reads packed is there as the F32 it is expanded to."""
    if len(weight.shape) == 1:
        return 4 * weight.shape[0]
    return packed_nbytes(weight.type if weight.type.is_native else WeightType.F32, *weight.shape)


def op_error(op: Op, what: str, remedy: str) -> ValueError:
    """The error that a check of an op raises."""
    return ValueError(f"op {op.label} ({op.kind}): {what}; {remedy}")


def _find(op: Op, name: str, table: Mapping[str, Any], what: str) -> Any:
    if name not in table:
        raise op_error(op, f"{what} {name!r} is not in the Program", f"declare the {what}")
    return table[name]


def _check_dtype(op: Op, operand: Operand, buffer: Buffer) -> None:
    if buffer.dtype not in operand.dtypes:
        wanted = "|".join(operand.dtypes)
        raise op_error(
            op,
            f"{operand.name} {buffer.name} is {buffer.dtype}",
            f"{operand.name} must be {wanted}",
        )
    if buffer.width < 1 or (buffer.dtype is Activation.Q8 and buffer.width % 32):
        raise op_error(
            op,
            f"{operand.name} {buffer.name} is {buffer.dtype} of width {buffer.width}",
            "widths are positive, and whole blocks of 32 where the type is q8",
        )


def _bind(op: Op, operand: Operand, got: list[str], dims: dict[str, int | str]) -> None:
    """Match one operand's shape against its pattern, binding what is still free."""
    pattern = operand.shape.split()
    for name, value in zip(pattern, got, strict=False):
        if "*" in name or name in op.attrs:
            expected = str(math.prod(int(dims[factor]) for factor in name.split("*")))
        elif name in ("T", "R"):
            expected = name
        else:
            expected = str(dims.setdefault(name, int(value) if value.isdecimal() else value))
        if value != expected:
            raise op_error(
                op,
                f"{operand.name} is {got}",
                f"its shape is [{operand.shape}], where {name} is {expected} here",
            )
    if len(pattern) != len(got):
        raise op_error(op, f"{operand.name} is {got}", f"its shape is [{operand.shape}]")


def check_weight(weight: WeightSpec) -> None:
    """Raise ValueError for a shape that cannot be, or that the type's blocks do not fit."""
    if len(weight.shape) not in (1, 2) or any(n < 1 or n >= 2**31 for n in weight.shape):
        raise ValueError(
            f"weight {weight.name} has shape {weight.shape}; it must be (n,) or (N, K) of positive int32"
        )
    block = weight.type.block[0]
    if weight.shape[-1] % block:
        raise ValueError(
            f"weight {weight.name} is {weight.type.name} {weight.shape}; "
            f"its last dimension must be whole blocks of {block}"
        )
