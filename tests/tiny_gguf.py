"""A whole model small enough for tests: random weights, a byte-level BPE vocabulary, and a chat template."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, CONTEXT = 2, 64, 4, 2, 16, 96, 256
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte (Radford et al. 2019, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def vocabulary() -> list[str]:
    """Tokens in order of their ids: special ones, bytes, merges."""
    return [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]


def write_tiny(
    path: Path,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
    vocabulary_only: bool = False,
    seed: int = 0,
) -> Path:
    """Write the model with matrices of the given type, or its metadata alone."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    _add_tokenizer(writer)
    if not vocabulary_only:
        _add_tensors(writer, kind, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _add_tensors(
    writer: gguf.GGUFWriter, kind: gguf.GGMLQuantizationType, random: np.random.Generator
) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)

    def vector(name: str) -> None:
        values = 1 + 0.1 * random.standard_normal(WIDTH)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    matrix("token_embd", len(vocabulary()), WIDTH)
    vector("output_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm")
        vector(f"{block}.ffn_norm")
        matrix(f"{block}.attn_q", HEADS * HEAD_DIM, WIDTH)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(f"{block}.attn_output", WIDTH, HEADS * HEAD_DIM)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
