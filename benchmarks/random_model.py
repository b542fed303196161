"""Writes GGUF models of real shapes with random weights, for speed where no trained file is at hand.

Activations stay of order 1 (matrices of variance 1 / K, norms about 1), so that time is what a trained model takes; the
text that such a model writes means nothing. The same arguments give the same bytes. Memory stays below a few hundred MB.

    python benchmarks/random_model.py llama-3.2-1b Q4_K_M rand1b-Q4_K_M.gguf [--seed 0] [--pure]

TYPE is a weight type, or a mix of llama.cpp's: Q4_K_M, Q5_K_M. As `llama-quantize` does (llama-quant.cpp), the output
matrix is Q6_K under all but Q8_0, MXFP4 (Q8_0) and floats; --pure keeps the one type. Types whose blocks do not fill a row
give way to those that llama-quantize falls back to.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from random_blocks import random_blocks

from cpuinfer.graph.dtypes import WeightType

SLAB_ELEMENTS = 1 << 24
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shape:
    """The sizes of one model; embeddings are tied. rope_factor: Llama 3's scaling of frequencies, 0 for none."""

    architecture: str
    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context: int
    rope_base: float
    eps: float
    pre: str
    rope_factor: float = 0.0


PRESETS = {
    "llama-3.2-1b": Shape(
        "llama",
        "random Llama-3.2-1B",
        *(16, 2048, 32, 8, 64, 8192, 128256, 131072),
        *(500000.0, 1e-5, "llama-bpe", 32.0),
    ),
    "llama-3.2-3b": Shape(
        "llama",
        "random Llama-3.2-3B",
        *(28, 3072, 24, 8, 128, 8192, 128256, 131072),
        *(500000.0, 1e-5, "llama-bpe", 32.0),
    ),
    "qwen3-0.6b": Shape(
        "qwen3",
        "random Qwen3-0.6B",
        *(28, 1024, 16, 8, 128, 3072, 151936, 40960),
        *(1e6, 1e-6, "qwen2"),
    ),
    "smollm2-135m": Shape(
        "llama",
        "random SmolLM2-135M",
        *(30, 576, 9, 3, 64, 1536, 49152, 8192),
        *(100000.0, 1e-5, "smollm"),
    ),
}
"""Sizes as in the models' own config.json."""

MIXES = {"Q4_K_M": WeightType.Q4_K, "Q5_K_M": WeightType.Q5_K}
TYPES = [*(kind.name for kind in WeightType), *MIXES]
FLOATS = (WeightType.F32, WeightType.F16, WeightType.BF16)
FALLBACK = {
    WeightType.IQ4_XS: WeightType.IQ4_NL,
    WeightType.Q2_K: WeightType.Q4_0,
    WeightType.Q3_K: WeightType.Q4_0,
    WeightType.Q4_K: WeightType.Q5_0,
    WeightType.Q5_K: WeightType.Q5_1,
    WeightType.Q6_K: WeightType.Q8_0,
}
"""llama-quantize's types for rows that are no multiple of 256."""


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: shape row-major, [N, K] or [N]."""

    name: str
    shape: tuple[int, ...]
    kind: WeightType


def tensors(shape: Shape, asked: str, pure: bool = False) -> Iterator[Tensor]:
    """Every tensor of the model in the order of the file."""
    width, heads, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield _matrix(shape, "token_embd", -1, (shape.vocabulary, width), asked, pure)
    yield Tensor("output_norm.weight", (width,), WeightType.F32)
    if shape.rope_factor:
        yield Tensor("rope_freqs.weight", (shape.head_dim // 2,), WeightType.F32)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            yield Tensor(f"{block}.{norm}.weight", (width,), WeightType.F32)
        if shape.architecture == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                yield Tensor(f"{block}.{norm}.weight", (shape.head_dim,), WeightType.F32)
        for part, size in {
            "attn_q": (heads, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, heads),
            "ffn_gate": (shape.feed_forward, width),
            "ffn_up": (shape.feed_forward, width),
            "ffn_down": (width, shape.feed_forward),
        }.items():
            yield _matrix(shape, part, layer, size, asked, pure)


def _matrix(
    shape: Shape, part: str, layer: int, size: tuple[int, int], asked: str, pure: bool
) -> Tensor:
    name = f"{part}.weight" if layer < 0 else f"blk.{layer}.{part}.weight"
    kind = _kind(shape, part, layer, asked, pure)
    while size[1] % kind.block[0]:
        if kind not in FALLBACK:
            raise ValueError(f"{name} has rows of {size[1]}, no multiple of {kind.name}'s blocks")
        kind = FALLBACK[kind]
    return Tensor(name, size, kind)


def _kind(shape: Shape, part: str, layer: int, asked: str, pure: bool) -> WeightType:
    """The type of a matrix: llama-quantize's llama_tensor_get_type_impl for the types and mixes of TYPES."""
    base = MIXES[asked] if asked in MIXES else WeightType[asked]
    if pure or base in FLOATS:
        return base
    if part == "token_embd":
        keep = base in (WeightType.Q8_0, WeightType.MXFP4)
        return WeightType.Q8_0 if keep else WeightType.Q6_K
    eighth = shape.layers // 8
    more_bits = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
    if asked in MIXES and part in ("attn_v", "ffn_down") and more_bits:
        return WeightType.Q6_K
    return base


def vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: special tokens, bytes, then words of two, three, ... letters.

    Raises ValueError for a size that has no room for the bytes.
    """
    tokens = [*SPECIAL, *_byte_letters()]
    if size < len(tokens):
        raise ValueError(f"a vocabulary has at least {len(tokens)} tokens, {size} asked for")
    merges: list[str] = []
    stems = list(LETTERS)
    while len(tokens) < size:
        pairs = [(stem, letter) for stem in stems for letter in LETTERS][: size - len(tokens)]
        merges += [f"{stem} {letter}" for stem, letter in pairs]
        stems = [stem + letter for stem, letter in pairs]
        tokens += stems
    return tokens, merges


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte (Radford et al. 2019, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def rope_factors(shape: Shape) -> NDArray[np.float32]:
    """Divisors [head_dim / 2] of RoPE's frequencies: Llama 3's rule (Llama team 2024, arXiv:2407.21783), for models
    that were trained on 8192 positions first, with low and high frequency factors 1 and 4."""
    half = shape.head_dim // 2
    wavelengths = 2 * pi * shape.rope_base ** (np.arange(half) / half)
    turns = 8192 / wavelengths
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    return (1 / ((1 - smooth) / shape.rope_factor + smooth)).astype(np.float32)


def write(path: Path, shape: Shape, asked: str, seed: int = 0, pure: bool = False) -> None:
    """Write the model, a slab of each tensor at a time."""
    every = list(tensors(shape, asked, pure))
    writer = gguf.GGUFWriter(path, shape.architecture)
    _add_metadata(writer, shape)
    _add_tokenizer(writer, shape)
    for tensor in every:
        raw = gguf.GGMLQuantizationType(int(tensor.kind))
        writer.add_tensor_info(
            tensor.name, _stored(tensor), np.dtype(np.uint8), _nbytes(tensor), raw
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout or ()
    writer.write_padding(file, file.tell())
    for tensor in every:
        for slab in _slabs(tensor, shape, seed):
            file.write(slab.data)
        writer.write_padding(file, _nbytes(tensor))
    writer.close()


def _stored(tensor: Tensor) -> tuple[int, ...]:
    """The shape as GGUFWriter wants it for raw bytes: the last dimension in bytes."""
    elements, size = tensor.kind.block
    return (*tensor.shape[:-1], tensor.shape[-1] // elements * size)


def _nbytes(tensor: Tensor) -> int:
    return int(np.prod(_stored(tensor), dtype=np.int64))


def _slabs(tensor: Tensor, shape: Shape, seed: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    if tensor.name == "rope_freqs.weight":
        yield rope_factors(shape).view(np.uint8)
    elif len(tensor.shape) == 1:
        yield (1 + 0.1 * rng.standard_normal(tensor.shape, np.float32)).view(np.uint8)
    else:
        rows, columns = tensor.shape
        most = max(1, SLAB_ELEMENTS // columns)
        for begin in range(0, rows, most):
            yield random_blocks(rng, tensor.kind, min(most, rows - begin), columns)


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(shape.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    tokens, merges = vocabulary(shape.vocabulary)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre)
    writer.add_token_list(tokens)
    writer.add_token_types([control if i < len(SPECIAL) else normal for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("type", choices=TYPES, metavar=f"TYPE ({', '.join(TYPES)})")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pure", action="store_true", help="one type for every matrix")
    args = parser.parse_args()
    try:
        write(args.path, PRESETS[args.preset], args.type, args.seed, args.pure)
    except (ValueError, OSError) as error:
        sys.exit(f"random_model.py: {error}")
    print(f"{args.path}: {args.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
