"""Random packed weights, and a Llama small enough for tests: GGUF's metadata and names, no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quant_blocks import random_blocks

from cpuinfer.devices.base import Batch
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.r16k4 import pack
from cpuinfer.graph.weights import Weight

NATIVE_TYPES = tuple(type_ for type_ in WeightType if type_.is_native)

METADATA: Mapping[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": 97,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 10000.0,
}

WIDE = 256
"""Width of the model where a type has blocks of 256: its heads are then of 64."""


def shapes(width: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors; the feed-forward's width is 128 or 256."""
    ffn = max(128, width)
    layer = {
        "attn_norm": (width,),
        "attn_q": (width, width),
        "attn_k": (width // 2, width),
        "attn_v": (width // 2, width),
        "attn_output": (width, width),
        "ffn_norm": (width,),
        "ffn_gate": (ffn, width),
        "ffn_up": (ffn, width),
        "ffn_down": (width, ffn),
    }
    return {
        "token_embd.weight": (97, width),
        "output_norm.weight": (width,),
        **{f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()},
    }


SHAPES: Mapping[str, tuple[int, ...]] = shapes()


def width_of(types: Mapping[str, WeightType]) -> int:
    """The least width of the model that the types' blocks fit."""
    return WIDE if any(type_.block[0] > 64 for type_ in types.values()) else 64


def metadata(types: Mapping[str, WeightType]) -> dict[str, Any]:
    """METADATA of a model of weights of these types."""
    width = width_of(types)
    return dict(METADATA) | {
        "llama.embedding_length": width,
        "llama.feed_forward_length": max(128, width),
        "llama.rope.dimension_count": width // 4,
    }


def weight_types(matrix: WeightType, **others: WeightType) -> dict[str, WeightType]:
    """The type of each tensor: `matrix` for matrices but those whose last name part (attn_v, ...) is in `others`."""
    return {
        name: WeightType.F32 if len(shape) == 1 else others.get(name.split(".")[-2], matrix)
        for name, shape in SHAPES.items()
    }


def weights(types: Mapping[str, WeightType], seed: int = 0) -> dict[str, Weight]:
    """Random packed weights of the tiny model: matrices of variance 1/K, norms about 1."""
    rng = np.random.default_rng(seed)
    own = shapes(width_of(types))
    return {name: random_weight(name, types[name], shape, rng) for name, shape in own.items()}


def random_weight(
    name: str, type_: WeightType, shape: tuple[int, ...], rng: np.random.Generator
) -> Weight:
    """A packed matrix of variance 1/K (see random_blocks); or a vector about 1."""
    if len(shape) == 1:
        vector = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        return Weight(name, type_, shape, aligned(vector.view(np.uint8)))
    blocks = random_blocks(rng, type_, *shape, rms=shape[1] ** -0.5)
    return Weight(name, type_, shape, pack(type_, *shape, blocks))


def aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy that starts 64-byte aligned."""
    room = np.empty(data.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + data.size] = data
    return room[start : start + data.size]


def batch(
    tokens: list[list[int]],
    past: list[int],
    tables: list[list[int]],
    rows: list[int] | None = None,
) -> Batch:
    """A Batch: per sequence its new tokens, how many came before, and its pages; `rows`: default each last token."""
    ends = np.cumsum([len(own) for own in tokens])
    width = max(map(len, tables))
    return Batch(
        tokens=np.array([token for own in tokens for token in own], np.int32),
        positions=np.concatenate(
            [np.arange(p, p + len(own)) for own, p in zip(tokens, past, strict=True)]
        ).astype(np.int32),
        q_indptr=np.array([0, *ends], np.int32),
        block_tables=np.array([t + [-1] * (width - len(t)) for t in tables], np.int32),
        logit_rows=np.array(ends - 1 if rows is None else rows, np.int32),
    )


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of the softmax of each row of logits."""
    shifted = [x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (p, q)]
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in shifted)
    result: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return result
