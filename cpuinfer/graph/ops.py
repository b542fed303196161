"""The op table: every kind of op a Program may hold, each declared once.

A row says the operands and their shapes, the attributes, the formula and its source. From the row come the shape and
type check, the bytes that an op must move and the operations it must do. Devices, passes, display and tests read it.
Adding a kind: one row here, its function in devices/reference.py, its kernel, one line in the conformance table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.opspec import (
    Attr,
    AttrValue,
    Operand,
    OpSpec,
    StepSize,
    check_weight,
    op_error,
)

if TYPE_CHECKING:
    from cpuinfer.graph.program import Op, Program

__all__ = ["OPS", "AttrValue", "OpSpec", "StepSize", "check_program", "spec_of"]

ANY = (Activation.F32, Activation.BF16, Activation.Q8)

HEADS = {"heads": Attr(int, 1), "head_dim": Attr(int, 2)}
ROPE = HEADS | {"rope": Attr(str)}
KV = {"kv_heads": Attr(int, 1), "head_dim": Attr(int, 2), "layer": Attr(int)}

_Q = "rows heads*head_dim"
_KV = "T kv_heads*head_dim"


def _pairs(d: Mapping[str, int]) -> int:
    """Pairs of a query and a key it sees; with a window a bound, exact where no sequence is shorter than it."""
    return min(d["pairs"], d["T"] * d["window"]) if d["window"] else d["pairs"]


OPS: Mapping[str, OpSpec] = {
    spec.kind: spec
    for spec in (
        OpSpec(
            kind="embed",
            inputs=(),
            weights=(Operand("table", "V E"),),
            outputs=(Operand("y", "T E"),),
            attrs={},
            formula="y[t] = table[tokens[t]]",
            source="Bengio et al. 2003, A neural probabilistic language model",
            count=lambda d: 0,
            gathers=True,
        ),
        OpSpec(
            kind="rmsnorm",
            inputs=(Operand("x", "rows E"),),
            weights=(Operand("w", "E"),),
            outputs=(Operand("y", "rows E", ANY),),
            attrs={"eps": Attr(float)},
            formula="y = x / sqrt(mean(x^2) + eps) * w",
            source="Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4",
            count=lambda d: 4 * d["rows"] * d["E"],
        ),
        OpSpec(
            kind="quantize",
            inputs=(Operand("x", "rows K"),),
            weights=(),
            outputs=(Operand("y", "rows K", (Activation.BF16, Activation.Q8)),),
            attrs={},
            formula="q8: d = max|x| / 127, y = rne(x * (127 / max|x|)) per 32 values; bf16: y = rne(x)",
            source="Dettmers et al. 2022, arXiv:2208.07339, eq. 1 (absmax), per block of 32",
            count=lambda d: 3 * d["rows"] * d["K"],
        ),
        OpSpec(
            kind="matmul",
            inputs=(Operand("x", "rows K", ANY), Operand("residual", "rows N", optional=True)),
            weights=(Operand("w", "N K"),),
            outputs=(Operand("y", "rows N"),),
            attrs={},
            formula="y = x @ w^T (+ residual, added after the sum)",
            source="Vaswani et al. 2017, arXiv:1706.03762, section 3",
            count=lambda d: d["rows"] * d["N"] * (2 * d["K"] + d["inputs"] - 1),
        ),
        OpSpec(
            kind="matmul_swiglu",
            inputs=(Operand("x", "rows K", ANY),),
            weights=(Operand("gate", "N K"), Operand("up", "N K")),
            outputs=(Operand("y", "rows N", ANY),),
            attrs={},
            formula="y = silu(x @ gate^T) * (x @ up^T)",
            source="Shazeer 2020, arXiv:2002.05202, eq. 6",
            count=lambda d: d["rows"] * d["N"] * (4 * d["K"] + 5),
        ),
        OpSpec(
            kind="matmul_qkv_rope",
            inputs=(Operand("x", "T K", ANY),),
            weights=(
                Operand("wq", "heads*head_dim K"),
                Operand("wk", "kv_heads*head_dim K"),
                Operand("wv", "kv_heads*head_dim K"),
            ),
            outputs=(Operand("q", "T heads*head_dim"),),
            attrs=ROPE | KV,
            formula="q = rope(x @ wq^T); pages of layer <- rope(x @ wk^T), x @ wv^T",
            source="Su et al. 2021, arXiv:2104.09864, eq. 34",
            count=lambda d: (
                d["T"] * d["head_dim"] * (d["heads"] + d["kv_heads"]) * (2 * d["K"] + 3)
                + 2 * d["T"] * d["head_dim"] * d["kv_heads"] * d["K"]
            ),
            kv="write",
        ),
        OpSpec(
            kind="rope",
            inputs=(Operand("x", "T heads*head_dim"),),
            weights=(),
            outputs=(Operand("y", "T heads*head_dim"),),
            attrs=ROPE,
            formula="y[i] = x[i] * cos[p, i] + x[i^1] * (i odd ? sin[p, i] : -sin[p, i]) per head, at position p",
            source="Su et al. 2021, arXiv:2104.09864, eq. 34",
            count=lambda d: 3 * d["T"] * d["heads"] * d["head_dim"],
        ),
        OpSpec(
            kind="kv_write",
            inputs=(Operand("k", _KV), Operand("v", _KV)),
            weights=(),
            outputs=(),
            attrs=KV,
            formula="pages of layer at each token's position <- k, v",
            source="Kwon et al. 2023, arXiv:2309.06180, section 4.1",
            count=lambda d: 0,
            kv="write",
        ),
        OpSpec(
            kind="attention",
            inputs=(Operand("q", "T heads*head_dim"),),
            weights=(Operand("sinks", "heads", optional=True),),
            outputs=(Operand("y", "T heads*head_dim", ANY),),
            attrs=HEADS
            | KV
            | {
                "scale": Attr(float),
                "window": Attr(int, optional=True),
                "softcap": Attr(float, optional=True),
            },
            formula="y = softmax(s, causal) @ V with s = scale * q @ K^T, query head h with KV head "
            "h / (heads / kv_heads); window > 0: keys of the last `window` positions only; softcap c > 0: "
            "s = c * tanh(s / c); sinks: a logit per head in the softmax, its value zero",
            source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Ainslie et al. 2023, arXiv:2305.13245; window: Jiang "
            "et al. 2023, arXiv:2310.06825; softcap: Gemma team 2024, arXiv:2408.00118; sinks: OpenAI 2025, "
            "arXiv:2508.10925",
            count=lambda d: _pairs(d) * d["heads"] * (4 * d["head_dim"] + 5),
            kv="read",
        ),
        OpSpec(
            kind="add",
            inputs=(Operand("a", "rows E"), Operand("b", "rows E")),
            weights=(),
            outputs=(Operand("y", "rows E"),),
            attrs={},
            formula="y = a + b",
            source="He et al. 2015, arXiv:1512.03385, eq. 1",
            count=lambda d: d["rows"] * d["E"],
        ),
        OpSpec(
            kind="swiglu",
            inputs=(Operand("gate", "rows F"), Operand("up", "rows F")),
            weights=(),
            outputs=(Operand("y", "rows F", ANY),),
            attrs={},
            formula="y = gate / (1 + exp(-gate)) * up",
            source="Shazeer 2020, arXiv:2002.05202, eq. 6",
            count=lambda d: 5 * d["rows"] * d["F"],
        ),
        OpSpec(
            kind="take_rows",
            inputs=(Operand("x", "T E"),),
            weights=(),
            outputs=(Operand("y", "R E"),),
            attrs={},
            formula="y[r] = x[logit_rows[r]]",
            source="the last positions only, as in causal language modelling",
            count=lambda d: 0,
            gathers=True,
        ),
    )
}


def spec_of(op: Op) -> OpSpec:
    """The op's row. Raises ValueError for a kind that the table lacks."""
    if op.kind not in OPS:
        raise op_error(op, "the kind is not in the op table", f"kinds are {', '.join(OPS)}")
    return OPS[op.kind]


def check_program(program: Program) -> None:
    """Check a whole Program: every op against its row; every buffer written once, before it is read; KV pages of a
    layer written once before they are read; every weight shape sane; nothing declared that no op uses.

    Raises ValueError naming what is wrong.
    """
    written: set[str] = set(program.inputs)
    layers: set[int] = set()
    used_weights: set[str] = set()
    for weight in program.weights.values():
        check_weight(weight)
    for name in program.inputs:
        if name not in program.buffers or program.buffers[name].dtype is not Activation.F32:
            raise ValueError(f"program {program.name}: input {name!r} must be an f32 buffer")
    for op in program.ops:
        spec = spec_of(op)
        spec.check(op, program)
        for name in op.inputs:
            if name not in written:
                raise op_error(op, f"reads buffer {name} before any op wrote it", "reorder the ops")
        for name in op.outputs:
            if name in written:
                raise op_error(op, f"writes buffer {name} again", "give each op its own buffer")
            written.add(name)
        used_weights.update(op.weights)
        layer = op.attrs.get("layer", -1)
        if spec.kv == "write" and layer in layers:
            raise op_error(op, f"writes the KV of layer {layer} again", "write each layer's once")
        if spec.kv == "write":
            layers.add(layer)
        if spec.kv == "read" and layer not in layers:
            raise op_error(op, f"reads the KV of layer {layer} before it is written", "reorder")
    unused = sorted((program.buffers.keys() - written) | (program.weights.keys() - used_weights))
    if unused:
        raise ValueError(
            f"program {program.name}: {', '.join(unused[:5])} declared but not used; remove them"
        )
    output = program.buffers.get(program.output)
    if output is None or (output.rows, output.width, output.dtype) != (
        "R",
        program.vocab_size,
        Activation.F32,
    ):
        raise ValueError(
            f"program {program.name}: output {program.output!r} is {output}; "
            f"it must be a buffer of f32 [R, {program.vocab_size}]"
        )
