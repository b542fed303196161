"""How far a kernel's result may be from the reference: bounds derived from norms, counts of roundings and epsilon.

u = 2^-24 is the unit roundoff of f32. A sum of n products by FMA in any order errs by at most n u sum|a b| to first
order (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1); SAFETY covers the second order and
the reference's own rounding of its stored result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import Batch
from cpuinfer.graph.dtypes import Activation
from cpuinfer.graph.program import Op, Program
from cpuinfer.graph.r16k4 import unpack, unpack_terms
from cpuinfer.graph.weights import Weight

F64 = NDArray[np.float64]

U = 2.0**-24
EXP = 2.0**-22  # relative error of the kernels' exp (simd/scalar/vmath.h)
CLAMP = 6.1e-39  # exp(-88), the least that 1 / (1 + exp(-x)) becomes
TINY = 2.0**-120  # what flushed denormals can amount to
SAFETY = 1.01


class Known:
    """What a bound is derived from: the op, its exact inputs, and the reference's f32 result."""

    def __init__(
        self,
        program: Program,
        op: Op,
        weights: Mapping[str, Weight],
        batch: Batch,
        values: Mapping[str, F64],
        past: Mapping[str, list[F64]],
    ) -> None:
        self.program, self.op, self.batch, self.values = program, op, batch, values
        self.inputs = [values[name] for name in op.inputs]
        self.result = values[op.outputs[0]]
        self.weights = [weights[name] for name in op.weights]
        self.past = past  # per sequence, the keys and values of all positions so far

    def product(self, index: int) -> tuple[F64, F64]:
        """x @ w^T of the op's weight, and its error bound."""
        x, weight = self.inputs[0], self.weights[index]
        w = unpack(weight).astype(np.float64)
        size = np.abs(w)
        roundings = w.shape[1]
        if weight.type.activation is Activation.Q8:
            # one FMA a block, and the rounding of the scales' product; where there are mins, as much again, and the
            # rounding of w = code * scale + min, which the kernel sums apart
            product, low = scaled_codes(weight)
            size = np.abs(product) + np.abs(low)
            roundings = w.shape[1] // 32 * (1 + low.any()) + 1 + low.any()
        return x @ w.T, roundings * U * (np.abs(x) @ size.T) + U * np.abs(x @ w.T)


def scaled_codes(weight: Weight) -> tuple[F64, F64]:
    """A quantised matrix [N, K] as code * scale, which is exact, and min, zero for a type without mins."""
    terms = unpack_terms(weight)
    with np.errstate(invalid="ignore", over="ignore"):
        product = terms.codes * terms.scales
    low = np.zeros_like(product) + (0 if terms.mins is None else terms.mins)
    return tuple(x.reshape(len(x), -1).astype(np.float64) for x in (product, low))


def error_bound(known: Known) -> F64:
    """The largest |kernel - reference| per element if the output is f32."""
    bound = _BOUNDS[known.op.kind](known)
    return SAFETY * (bound + 2 * U * np.abs(known.result)) + TINY if bound.any() else bound


def quantized_bound(bound: F64, result: F64, dtype: Activation) -> F64:
    """The bound of a result stored as bf16 or q8: half a step more."""
    if dtype is Activation.BF16:
        return bound + 2.0**-8 * (np.abs(result) + bound) + TINY
    if dtype is Activation.Q8:
        largest = (np.abs(result) + bound).reshape(len(result), -1, 32).max(axis=2)
        half_step = largest / 127 * (0.5 + 127 * 4 * U)
        return bound + np.repeat(half_step, 32, axis=1) + TINY
    return bound


def _exact(known: Known) -> F64:
    return np.zeros_like(known.result)


def _rmsnorm(known: Known) -> F64:
    # a sum of squares errs by (terms) u relatively, its root by half of that; then sqrt, division, products
    terms = known.inputs[0].shape[1]
    return (terms / 2 + 5) * U * np.abs(known.result)


def _matmul(known: Known) -> F64:
    product, bound = known.product(0)
    return bound + (U * np.abs(known.result) if len(known.inputs) == 2 else 0 * product)


def _silu(x: F64) -> F64:
    with np.errstate(over="ignore"):
        y: F64 = x / (1 + np.exp(-x))
    return y


def _swiglu_error(gate: F64, up: F64) -> F64:
    clamped = CLAMP * np.abs(gate * up)  # a gate below -88 leaves gate * exp(-88) instead of less
    return (EXP + 4 * U) * np.abs(_silu(gate) * up) + clamped


def _swiglu(known: Known) -> F64:
    return _swiglu_error(*known.inputs)


def _matmul_swiglu(known: Known) -> F64:
    (gate, gate_error), (up, up_error) = known.product(0), known.product(1)
    through = 1.1 * gate_error  # |silu'| < 1.1
    spread = np.abs(up) + up_error
    return through * spread + np.abs(_silu(gate)) * up_error + _swiglu_error(gate, spread)


def _rotated(known: Known, x: F64) -> F64:
    """|x| * |cos| + |swapped x| * |sin|: what errors in x become, and what rounding is relative to."""
    attrs = known.op.attrs
    table = np.abs(known.program.constants[attrs["rope"]][known.batch.positions].astype(np.float64))
    heads = np.abs(x).reshape(len(x), -1, attrs["head_dim"])
    pairs = heads.reshape(*heads.shape[:2], -1, 2)[..., ::-1].reshape(heads.shape)
    rotated: F64 = (heads * table[:, 0, None] + pairs * table[:, 1, None]).reshape(x.shape)
    return rotated


def _rope(known: Known) -> F64:
    return 2 * U * _rotated(known, known.inputs[0])


def _matmul_qkv_rope(known: Known) -> F64:
    product, bound = known.product(0)
    return _rotated(known, bound) + 2 * U * _rotated(known, product)


def _attention(known: Known) -> F64:
    """Errors of the scores, of exp, and of the sums, each relative to sum p |v|."""
    a, batch = known.op.attrs, known.batch
    heads, group = a["heads"], a["heads"] // a["kv_heads"]
    q = known.inputs[0].reshape(-1, heads, a["head_dim"])
    bound = np.zeros_like(q)
    for s, (begin, end) in enumerate(zip(batch.q_indptr[:-1], batch.q_indptr[1:], strict=True)):
        k, v = (
            known.past[name][s].reshape(-1, a["kv_heads"], a["head_dim"]) for name in ("k", "v")
        )
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        context = len(k)
        hidden = np.arange(context) > batch.positions[begin:end, None]
        scores = a["scale"] * np.einsum("thd,chd->htc", q[begin:end], k)
        scores[:, hidden] = -np.inf
        p = np.exp(scores - scores.max(axis=2, keepdims=True))
        p /= p.sum(axis=2, keepdims=True)
        sizes = a["scale"] * np.einsum("thd,chd->htc", np.abs(q[begin:end]), np.abs(k))
        score_error = (a["head_dim"] + 4) * U * sizes.max(axis=2)  # [heads, T]
        updates = context / 64 + context / 256 + 2  # each rescales by one exp
        error = 2 * score_error + 2 * EXP * (1 + updates) + 2 * (context + 4) * U
        spread = np.einsum("htc,chd->thd", p, np.abs(v))
        bound[begin:end] = error.T[:, :, None] * spread
    return bound.reshape(len(bound), -1)


_BOUNDS: Mapping[str, Callable[[Known], F64]] = {
    "embed": _exact,
    "quantize": _exact,
    "take_rows": _exact,
    "add": _exact,
    "rmsnorm": _rmsnorm,
    "matmul": _matmul,
    "swiglu": _swiglu,
    "matmul_swiglu": _matmul_swiglu,
    "rope": _rope,
    "matmul_qkv_rope": _matmul_qkv_rope,
    "attention": _attention,
}
