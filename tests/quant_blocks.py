"""Random matrices as GGUF stores them, of a given size, for every weight type."""

from __future__ import annotations

import functools

import gguf
import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4_types import LAYOUTS

# m / d where codes and sub-scales are uniform and the mean of the weights is zero
_MINS = {
    WeightType.Q4_1: -7.5,
    WeightType.Q5_1: -15.5,
    WeightType.Q2_K: 1.5,
    WeightType.Q4_K: 7.5,
    WeightType.Q5_K: 15.5,
}


def random_blocks(
    rng: np.random.Generator, type_: WeightType, n: int, k: int, rms: float = 1.0
) -> NDArray[np.uint8]:
    """The bytes [n, row bytes] of a matrix of about that root mean square: floats are normal; of quantised types every
    code and sub-scale is as likely, scales of blocks differ by up to three times and, without mins, in sign."""
    if type_.block[0] == 1:
        values = (rng.normal(size=(n, k)) * rms).astype(np.float32)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType(int(type_))).view(np.uint8)
    blocks = _uniform(rng, type_, n, k)
    if type_ is WeightType.MXFP4:
        middle = 128 + round(np.log2(rms / _size(type_)))
        blocks["d"] = rng.integers(middle - 1, middle + 2, blocks.shape)
    else:
        signs = 1 if type_ in _MINS else rng.choice([-1, 1], blocks.shape)
        blocks["d"] = signs * rng.uniform(0.5, 1.5, blocks.shape) * rms / _size(type_)
    if type_ in _MINS:
        blocks["m"] = blocks["d"] * np.float32(_MINS[type_])
    return blocks.view(np.uint8).reshape(n, -1)


def _uniform(rng: np.random.Generator, type_: WeightType, n: int, k: int) -> NDArray[np.void]:
    """Random bytes as GGUF's blocks [n, k / elements]."""
    elements, nbytes = type_.block
    raw = rng.integers(0, 256, (n, k // elements * nbytes), dtype=np.uint8)
    return raw.view(LAYOUTS[type_].block)


@functools.cache
def _size(type_: WeightType) -> float:
    """The root mean square of a type's weights where d is 1."""
    blocks = _uniform(np.random.default_rng(0), type_, 64, 256)
    blocks["d"] = 128 if type_ is WeightType.MXFP4 else 1
    if type_ in _MINS:
        blocks["m"] = _MINS[type_]
    raw = blocks.view(np.uint8).reshape(-1)
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(type_)))
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
