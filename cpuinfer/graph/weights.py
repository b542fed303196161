"""A weight in memory: the bytes of its packed form and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType


@dataclass(frozen=True)
class Weight:
    """A matrix [N, K] in the r16k4 layout of `type`, or a vector of f32 (shape (n,), type F32, plain bytes).

    `data` is uint8, one-dimensional, 64-byte aligned, usually a view of a mapped file: read-only.
    """

    name: str
    type: WeightType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
