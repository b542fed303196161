"""Tables of rotary position embeddings, the same bits on every machine.

Only decimal arithmetic and float64 +, -, * are used: the sin, cos and pow of C libraries differ in their last bit.
"""

from __future__ import annotations

import decimal

import numpy as np
from numpy.typing import NDArray

MAX_POSITIONS = 1 << 20
"""Positions a table may have: the range reduction's first product is exact below 2^20 quarter turns."""

# pi/2 in three parts: the first two have 33 bits, so that their products with k < 2^20 are exact (Cody and Waite).
_PI_2 = (
    float.fromhex("0x1.921fb544p+0"),
    float.fromhex("0x1.0b4611a6p-34"),
    float.fromhex("0x1.3198a2e037073p-69"),
)
# Taylor coefficients (1/n!): on |r| <= pi/4 the terms left out are below 2^-57.
_SIN = tuple((-1.0) ** (n // 2) / f for n, f in ((3, 6), (5, 120), (7, 5040), (9, 362880)))
_SIN += (-1 / 39916800, 1 / 6227020800, -1 / 1307674368000)
_COS = tuple((-1.0) ** (n // 2) / f for n, f in ((2, 2), (4, 24), (6, 720), (8, 40320)))
_COS += (-1 / 3628800, 1 / 479001600, -1 / 87178291200, 1 / 20922789888000)


def inverse_frequencies(base: float, dims: int) -> NDArray[np.float64]:
    """base ** (-2i / dims) for i in [0, dims/2), each rounded once from 28 digits. f64 [dims/2].

    Su et al. 2021, arXiv:2104.09864, section 3.2.2. Raises ValueError for an odd `dims` or a base not above 0.
    """
    if dims < 2 or dims % 2 or not base > 0:
        raise ValueError(f"RoPE of {dims} dimensions, base {base}; dims must be even, base above 0")
    context = decimal.Context(prec=28)
    logarithm = context.ln(decimal.Decimal(base))
    exponents = (context.divide(decimal.Decimal(-2 * i), dims) for i in range(dims // 2))
    return np.array([float(context.exp(context.multiply(e, logarithm))) for e in exponents])


def sin_cos(angles: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sine and cosine of angles in [0, 2^20), error below 2^-50: reduction to [-pi/4, pi/4], then Taylor series."""
    quarter = np.rint(angles * (2 / np.pi))
    r = angles - quarter * _PI_2[0]
    r -= quarter * _PI_2[1]
    r -= quarter * _PI_2[2]
    z = r * r
    sin = _horner(_SIN, z)
    sin *= z
    sin *= r
    sin += r
    cos = _horner(_COS, z)
    cos *= z
    cos += 1.0
    turn = quarter.astype(np.int64) & 3
    odd = (turn & 1).astype(bool)
    signed_sin, signed_cos = np.where(odd, cos, sin), np.where(odd, sin, cos)
    np.negative(signed_sin, out=signed_sin, where=turn >= 2)
    np.negative(signed_cos, out=signed_cos, where=(turn == 1) | (turn == 2))
    return signed_sin, signed_cos


def _horner(coefficients: tuple[float, ...], z: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= z
        total += coefficient
    return total


def rope_table(
    frequencies: NDArray[np.float64], head_dim: int, max_positions: int
) -> NDArray[np.float32]:
    """The constant that rope ops read: f32 [max_positions, 2, head_dim].

    [p, 0] holds cos(p * f[i]) twice per pair (2i, 2i+1), [p, 1] holds -sin, +sin. Pairs past `frequencies`, [<=
    head_dim/2] f64, are not rotated. Raises ValueError for sizes out of range.
    """
    pairs = len(frequencies)
    if not 1 <= max_positions <= MAX_POSITIONS or not 2 * pairs <= head_dim:
        raise ValueError(
            f"RoPE table of {max_positions} positions, {pairs} pairs in heads of {head_dim}; "
            f"need 1 to {MAX_POSITIONS} positions and at most head_dim/2 pairs"
        )
    if not (frequencies >= 0).all() or not (frequencies <= 1).all():
        raise ValueError("RoPE frequencies must lie in [0, 1] radians per position")
    table = np.zeros((max_positions, 2, head_dim), np.float32)
    table[:, 0, 2 * pairs :] = 1.0
    for begin in range(
        0, max_positions, 1024
    ):  # the intermediates of 1024 positions stay in the L2 cache
        positions = np.arange(begin, min(begin + 1024, max_positions), dtype=np.float64)
        sin, cos = sin_cos(positions[:, None] * frequencies)
        rows = table[begin : begin + 1024, :, : 2 * pairs]
        rows[:, 0, 0::2] = rows[:, 0, 1::2] = cos
        rows[:, 1, 1::2] = sin
        np.negative(rows[:, 1, 1::2], out=rows[:, 1, 0::2])
    return table
