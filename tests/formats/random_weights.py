"""Bytes of weights for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType


def random_blocks(kind: WeightType, elements: int, seed: int) -> NDArray[np.uint8]:
    """Bytes of `elements` values: every code as likely, every f16 of a block (its scales) below 2
    and finite.

    Random bytes would do for the codes, but NaN scales would hide wrong codes.
    """
    rng = np.random.default_rng(seed)
    block_elements, block_bytes = kind.block
    blocks = rng.integers(0, 256, (elements // block_elements, block_bytes), np.uint8)
    if kind is WeightType.F32:
        return rng.standard_normal(elements).astype("<f4").view(np.uint8)
    for at in _F16_AT[kind]:
        blocks[:, at + 1] &= 0xBF  # the high exponent bit of a little-endian half or bfloat16
    if kind is WeightType.MXFP4:
        blocks[:, 0] &= 0xBF  # an exponent of up to 2^63
    return blocks.reshape(-1)


# Where each block has a half (or is one): the offset of its first byte.
_F16_AT: dict[WeightType, tuple[int, ...]] = {
    WeightType.F16: (0,),
    WeightType.BF16: (0,),
    WeightType.Q4_0: (0,),
    WeightType.Q4_1: (0, 2),
    WeightType.Q5_0: (0,),
    WeightType.Q5_1: (0, 2),
    WeightType.Q8_0: (0,),
    WeightType.Q2_K: (80, 82),
    WeightType.Q3_K: (108,),
    WeightType.Q4_K: (0, 2),
    WeightType.Q5_K: (0, 2),
    WeightType.Q6_K: (208,),
    WeightType.IQ4_NL: (0,),
    WeightType.IQ4_XS: (0,),
    WeightType.MXFP4: (),
}
