"""Model families: each file builds the Program of one architecture from the metadata of a model file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.program import Program
from cpuinfer.models import llama

FAMILIES: Mapping[str, Callable[..., Program]] = {"llama": llama.build}
"""GGUF's general.architecture to the function that builds it."""


def build_program(
    metadata: Mapping[str, Any],
    weight_types: Mapping[str, WeightType],
    *,
    max_positions: int | None = None,
    rope_factors: NDArray[np.float32] | None = None,
) -> Program:
    """The Program of a model: `metadata` as in its GGUF file, `weight_types` the type of each tensor as it is loaded.

    `max_positions`: how long a sequence may become (default: the model's context length, at most 8192).
    `rope_factors`: the values of the tensor rope_freqs.weight where the model has one.
    Raises ValueError for an architecture or a feature that is not supported, and for metadata out of range.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise ValueError(
            f"architecture {architecture!r} is not supported; supported are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture](
        metadata, weight_types, max_positions=max_positions, rope_factors=rope_factors
    )
