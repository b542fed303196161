"""Llama 1-3, and what shares its architecture: SmolLM2, Mistral, TinyLlama.

Touvron et al. 2023, arXiv:2302.13971; Llama team 2024, arXiv:2407.21783 (RoPE factors); Jiang et al. 2023,
arXiv:2310.06825 (Mistral). Names of tensors and metadata are GGUF's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpuinfer.graph.builder import Builder, Tensor
from cpuinfer.graph.dtypes import WeightType
from cpuinfer.graph.program import KVSpec, Program
from cpuinfer.graph.rope import MAX_POSITIONS, inverse_frequencies, rope_table
from cpuinfer.models.metadata import Metadata, short

DEFAULT_POSITIONS = 8192
"""Positions made ready where the caller states none: the RoPE table's memory must not follow a file's claim."""

MAX_HEAD_DIM = 256
"""The largest head that every device's attention takes."""

LAYOUT = "Meta AI original pth"
ROPE_FACTORS = "rope_freqs.weight"

KNOWN = frozenset(
    [
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
        "attention.key_length",
        "attention.value_length",
        "attention.scale",
        "attention.causal",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    ]
)


@dataclass(frozen=True)
class Config:
    """The numbers of one model. Sizes are counts of floats or heads; `rope_scale` divides every frequency."""

    vocab_size: int
    context_length: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dims: int
    rope_base: float
    rope_scale: float
    eps: float
    scale: float
    window: int
    """Positions that a token sees, its own included (Mistral); 0: all."""

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any]) -> Config:
        """Read and check the metadata. Raises ValueError for what is missing, out of range or not supported."""
        m = Metadata(metadata, "llama")
        m.refuse_unknown(KNOWN)
        width = m.integer("embedding_length", 1, 1 << 17)
        heads = m.integer("attention.head_count", 1, 1 << 12)
        kv_heads = m.integer("attention.head_count_kv", 1, 1 << 12, heads)
        if heads % kv_heads:
            raise ValueError(
                f"metadata llama.attention.head_count = {heads} is not a multiple of head_count_kv = {kv_heads}"
            )
        if width % heads and not m.has("attention.key_length"):
            raise ValueError(
                f"metadata llama.embedding_length = {width} is not a multiple of head_count = {heads}, "
                "and attention.key_length does not give the head size"
            )
        head_dim = m.integer("attention.key_length", 2, MAX_HEAD_DIM, width // heads)
        value_dim = m.integer("attention.value_length", 1, MAX_HEAD_DIM, head_dim)
        rope_dims = m.integer("rope.dimension_count", 2, head_dim, head_dim - head_dim % 2)
        if value_dim != head_dim or head_dim % 2 or rope_dims % 2:
            raise ValueError(
                f"heads of {head_dim} for keys, {value_dim} for values, {rope_dims} rotated: "
                "keys and values must have one even size, and the rotated part must be even"
            )
        tokens = metadata.get("tokenizer.ggml.tokens", ())
        n_tokens = len(tokens) if isinstance(tokens, (list, tuple, np.ndarray)) else 0
        return Config(
            vocab_size=m.integer("vocab_size", 1, 1 << 24, n_tokens or None),
            context_length=m.integer("context_length", 1, 1 << 30),
            layers=m.integer("block_count", 1, 1024),
            width=width,
            feed_forward=m.integer("feed_forward_length", 1, 1 << 20),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope_dims=rope_dims,
            rope_base=m.number("rope.freq_base", 1.0, 1e15, 10000.0),
            rope_scale=_rope_scale(m),
            eps=m.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            scale=m.number("attention.scale", 0.0, 1e3, 0.0) or 1.0 / math.sqrt(head_dim),
            window=m.integer("attention.sliding_window", 0, 1 << 30, 0),
        )


def _rope_scale(m: Metadata) -> float:
    """The factor of linear RoPE scaling (Chen et al. 2023, arXiv:2306.15595), 1 where there is none."""
    scaling = m.values.get("llama.rope.scaling.type", "none")
    if not isinstance(scaling, str) or scaling not in ("none", "linear"):
        raise ValueError(
            f"metadata llama.rope.scaling.type = {short(scaling)} is not supported; supported are "
            f"none, linear, and llama3 as the tensor {ROPE_FACTORS}"
        )
    if scaling == "none" and m.has("rope.scaling.type"):
        return 1.0
    key = "rope.scaling.factor" if m.has("rope.scaling.factor") else "rope.scale_linear"
    return m.number(key, 0.0, 1e6, 1.0) or 1.0  # 0 stands for none


def build(
    metadata: Mapping[str, Any],
    weight_types: Mapping[str, WeightType],
    *,
    max_positions: int | None = None,
    rope_factors: NDArray[np.float32] | None = None,
) -> Program:
    """The Program of a GGUF model of architecture "llama"; arguments and errors as of models.build_program."""
    c = Config.from_metadata(metadata)
    _check_features(metadata, weight_types, rope_factors)
    positions = _positions(c, max_positions)
    b = Builder("llama", weight_types, KVSpec(c.layers, c.kv_heads, c.head_dim), positions)
    rope = b.constant("rope", rope_table(_frequencies(c, rope_factors), c.head_dim, positions))

    h = b.embed("token_embd", c.vocab_size, c.width)
    for layer in range(c.layers):
        block = f"blk.{layer}"
        h = h + attention(b, c, b.rmsnorm(h, f"{block}.attn_norm", c.eps), rope, layer)
        h = h + feed_forward(b, c, b.rmsnorm(h, f"{block}.ffn_norm", c.eps), block)
    h = b.rmsnorm(b.take_rows(h), "output_norm", c.eps)
    tied = "output.weight" not in weight_types
    logits = b.matmul(h, "token_embd" if tied else "output", c.vocab_size, "output")
    program = b.program(logits)
    _check_all_used(program, weight_types)
    return program


def attention(b: Builder, c: Config, x: Tensor, rope: str, layer: int) -> Tensor:
    """Causal grouped-query attention: o(softmax(scale * rope(q) @ rope(k)^T) @ v)."""
    name = f"blk.{layer}.attn"
    q = b.matmul(x, f"{name}_q", c.heads * c.head_dim)
    k = b.matmul(x, f"{name}_k", c.kv_heads * c.head_dim)
    v = b.matmul(x, f"{name}_v", c.kv_heads * c.head_dim)
    q, k = b.rope(q, rope, c.head_dim), b.rope(k, rope, c.head_dim)
    y = b.attention(q, k, v, layer, c.scale, name, window=c.window)
    return b.matmul(y, f"{name}_output", c.width)


def feed_forward(b: Builder, c: Config, x: Tensor, block: str) -> Tensor:
    """down(silu(gate(x)) * up(x))."""
    gate = b.matmul(x, f"{block}.ffn_gate", c.feed_forward)
    up = b.matmul(x, f"{block}.ffn_up", c.feed_forward)
    return b.matmul(b.swiglu(gate, up, f"{block}.ffn"), f"{block}.ffn_down", c.width)


def _frequencies(c: Config, factors: NDArray[np.float32] | None) -> NDArray[np.float64]:
    frequencies = inverse_frequencies(c.rope_base, c.rope_dims) / c.rope_scale
    if factors is None:
        return frequencies
    if factors.shape != frequencies.shape or not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(
            f"tensor {ROPE_FACTORS} has shape {factors.shape}; "
            f"it must be {frequencies.shape}, all values finite and above 0"
        )
    return np.asarray(frequencies / factors.astype(np.float64), np.float64)


def _positions(c: Config, asked: int | None) -> int:
    most = min(c.context_length, MAX_POSITIONS)
    positions = min(most, DEFAULT_POSITIONS) if asked is None else asked
    if not 1 <= positions <= most:
        raise ValueError(f"{positions} positions asked for; this model has 1 to {most}")
    return positions


def _check_features(
    metadata: Mapping[str, Any],
    weight_types: Mapping[str, WeightType],
    rope_factors: NDArray[np.float32] | None,
) -> None:
    if metadata.get("llama.attention.causal", True) is not True:
        raise ValueError("metadata llama.attention.causal must be true; others are not supported")
    layout = metadata.get("llama.tensor_data_layout", LAYOUT)
    if not isinstance(layout, str) or layout != LAYOUT:
        raise ValueError(
            f"metadata llama.tensor_data_layout must be {LAYOUT!r} (pairs of RoPE adjacent); "
            "convert the model anew"
        )
    if (ROPE_FACTORS in weight_types) != (rope_factors is not None):
        raise ValueError(
            f"the model {'has' if rope_factors is None else 'has no'} tensor {ROPE_FACTORS}; "
            f"pass rope_factors exactly where it has one"
        )


def _check_all_used(program: Program, weight_types: Mapping[str, WeightType]) -> None:
    unused = sorted(weight_types.keys() - program.weights.keys() - {ROPE_FACTORS})
    if unused:
        raise ValueError(
            f"tensors {', '.join(name[:60] for name in unused[:4])} ({len(unused)} in all) belong to features of "
            "llama models that are not supported (biases, experts, extra norms)"
        )
