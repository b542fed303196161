"""Random weights of every type as GGUF stores them: random codes, and scales that give the variance asked for.

Drawing blocks instead of quantising f32 makes a billion weights a matter of seconds. Layouts of blocks: ggml's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor, log2

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType

Bytes = NDArray[np.uint8]

_JITTER = 0.25
"""Scales differ by up to this share from their mean, so that a kernel which reads a neighbour's scale is seen."""
_JITTER_SQUARE = 1 + _JITTER**2 / 3
"""The mean square of uniform(1 - _JITTER, 1 + _JITTER)."""

_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64
)
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)


def random_blocks(rng: np.random.Generator, kind: WeightType, rows: int, columns: int) -> Bytes:
    """A matrix [rows, columns] of mean 0 and variance 1 / columns, as the bytes [rows, row bytes] of a GGUF file.

    Raises ValueError where rows are no whole number of blocks.
    """
    size, width = kind.block
    if columns % size:
        raise ValueError(f"{kind.name} has blocks of {size}, which {columns} columns do not fill")
    sigma = columns**-0.5
    if size == 1:
        return _floats(rng, kind, (rows, columns), sigma)
    count = rows * (columns // size)
    blocks = np.frombuffer(rng.bytes(count * width), np.uint8).reshape(count, width).copy()
    if kind is WeightType.MXFP4:
        blocks[:, 0] = _exponents(rng, count, sigma)
    else:
        _QUANTISED[kind](rng, blocks, sigma)
    return blocks.reshape(rows, -1)


def _floats(
    rng: np.random.Generator, kind: WeightType, shape: tuple[int, int], sigma: float
) -> Bytes:
    values = rng.standard_normal(shape, np.float32) * np.float32(sigma)
    if kind is WeightType.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind is WeightType.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)


def _scales(rng: np.random.Generator, count: int, mean: float) -> NDArray[np.float64]:
    """Scales [count] about mean. Half of them are negative, since the codes alone have no mean of 0."""
    signs = rng.integers(0, 2, count) * 2 - 1
    return signs * mean * rng.uniform(1 - _JITTER, 1 + _JITTER, count)


def _put(blocks: Bytes, at: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Store values as the f16 at byte `at` of every block; returns them as stored."""
    halves = values.astype(np.float16)
    blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
    return halves.astype(np.float64)


def _exponents(rng: np.random.Generator, count: int, sigma: float) -> Bytes:
    """MXFP4's scales 2^(e - 127): two neighbouring powers, mixed so that the variance comes out right."""
    wanted = sigma**2 / np.mean(_E2M1**2)
    low = floor(log2(wanted) / 2)
    share = (wanted / 4.0**low - 1) / 3
    return np.asarray(127 + low + (rng.random(count) < share), np.uint8)


def _scaled(at: int, square: float) -> Callable[[np.random.Generator, Bytes, float], None]:
    """Blocks of one f16 scale at byte `at`, whose values have mean square `square` where the scale is 1."""
    unit = (square * _JITTER_SQUARE) ** 0.5

    def fill(rng: np.random.Generator, blocks: Bytes, sigma: float) -> None:
        _put(blocks, at, _scales(rng, len(blocks), sigma / unit))

    return fill


def _centred(codes: int) -> Callable[[np.random.Generator, Bytes, float], None]:
    """Q4_1 and Q5_1: the min lies half the range of codes below 0."""
    unit = ((codes**2 - 1) / 12 * _JITTER_SQUARE) ** 0.5

    def fill(rng: np.random.Generator, blocks: Bytes, sigma: float) -> None:
        scales = _put(blocks, 0, _scales(rng, len(blocks), sigma / unit))
        _put(blocks, 2, scales * (1 - codes) / 2)

    return fill


def _k_centred(codes: int) -> Callable[[np.random.Generator, Bytes, float], None]:
    """Q4_K and Q5_K: six-bit scales and mins are equal, and the super-block's dmin centres the codes."""
    unit = (_square(64, 0) * (codes**2 - 1) / 12 * _JITTER_SQUARE) ** 0.5

    def fill(rng: np.random.Generator, blocks: Bytes, sigma: float) -> None:
        scales = _put(blocks, 0, _scales(rng, len(blocks), sigma / unit))
        _put(blocks, 2, scales * (codes - 1) / 2)
        packed = blocks[:, 4:16]  # 4 scales, 4 mins, 4 pairs of low nibbles; high bits in the first
        packed[:, 4:8] = packed[:, 0:4]
        packed[:, 8:12] = (packed[:, 8:12] & 15) * 17

    return fill


def _q2_k(rng: np.random.Generator, blocks: Bytes, sigma: float) -> None:
    """A nibble of scale and the same of min for each 16; codes 0 .. 3 about 1.5."""
    blocks[:, :16] = (blocks[:, :16] & 15) * 17
    unit = (_square(16, 0) * 1.25 * _JITTER_SQUARE) ** 0.5
    scales = _put(blocks, 80, _scales(rng, len(blocks), sigma / unit))
    _put(blocks, 82, scales * 1.5)


def _square(codes: int, offset: int) -> float:
    """The mean square of code - offset, every code of 0 .. codes-1 as likely."""
    return float(np.mean((np.arange(codes) - offset) ** 2.0))


_QUANTISED: dict[WeightType, Callable[[np.random.Generator, Bytes, float], None]] = {
    WeightType.Q4_0: _scaled(0, _square(16, 8)),
    WeightType.Q4_1: _centred(16),
    WeightType.Q5_0: _scaled(0, _square(32, 16)),
    WeightType.Q5_1: _centred(32),
    WeightType.Q8_0: _scaled(0, _square(256, 128)),
    WeightType.Q2_K: _q2_k,
    WeightType.Q3_K: _scaled(108, _square(64, 32) * _square(8, 4)),
    WeightType.Q4_K: _k_centred(16),
    WeightType.Q5_K: _k_centred(32),
    WeightType.Q6_K: _scaled(208, _square(256, 128) * _square(64, 32)),
    WeightType.IQ4_NL: _scaled(0, float(np.mean(_IQ4**2))),
    WeightType.IQ4_XS: _scaled(0, _square(64, 32) * float(np.mean(_IQ4**2))),
}
