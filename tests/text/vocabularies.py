"""Small vocabularies for the tests, as GGUF metadata."""

from __future__ import annotations

from typing import Any

from cpuinfer.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_alphabet() -> list[str]:
    """The 256 symbols of byte-level BPE, from the library that defines them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def bpe(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Byte-level BPE: 256 bytes, a few words, <s>, </s>, a user-defined <tool> and an unused slot."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "1 2", "12 3"]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = [*byte_alphabet(), *words, "<s>", "</s>", "<tool>", "<hole>"]
    types = [NORMAL] * (256 + len(words)) + [CONTROL, CONTROL, USER, UNUSED]
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos_token_id": tokens.index("<s>"),
        "eos_token_id": tokens.index("</s>"),
    }
    return _prefixed(metadata, changes)


def spm(**changes: Any) -> dict[str, Any]:
    """SentencePiece BPE: <unk>, <s>, </s>, the bytes, then words with scores, and a user-defined <tool>."""
    pieces = {"▁": -1.0, "h": -2.0, "e": -3.0, "l": -4.0, "o": -5.0, "he": -6.0, "ll": -7.0}
    pieces |= {"hell": -8.0, "hello": -9.0, "▁hello": -10.0, "s": -11.0, "<": -12.0, ">": -13.0}
    pieces |= {"</": -14.0, "s>": -15.0, "▁▁": -16.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, "<tool>"]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + list(pieces.values()) + [0.0],
        "token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + [USER],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _prefixed(metadata, changes)


def names(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The tokens as the vocabulary spells them."""
    return [tokenizer.token(id) for id in ids]


def _prefixed(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**metadata, **changes}
    return {f"tokenizer.ggml.{k}": v for k, v in merged.items() if v is not None}
