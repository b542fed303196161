"""A tokenizer's vocabulary, read from GGUF metadata and checked: whatever the file holds is hostile until then."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_TOKENS = 1 << 22
"""Most tokens of a vocabulary: 16 times the largest in use (262,144); bounds the work of building one."""

MAX_TOKEN_CHARS = 4096
"""Longest token in characters; the longest in use are runs of a few hundred spaces or dashes."""

_PREFIX = "tokenizer.ggml."
_FAMILIES = ("gpt2", "llama", "gemma4")

_END_OF_GENERATION = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    ]
)
# Fill-in-the-middle marks which some files carry as normal tokens.
_CONTROL_NAMES = _END_OF_GENERATION | frozenset(
    [
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
    ]
)
_HARMONY_PARTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


class TokenizerError(ValueError):
    """A vocabulary that is malformed or unsupported, or text or ids that the tokenizer cannot take."""


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and what the file says of them; V = len(tokens).

    family: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE) or "gemma4" (SentencePiece alphabet, explicit merges).
    types [V] TokenType; scores [V] (empty unless family is "llama"); merges, pairs in order of priority.
    Ids are None where the file names none. eog_ids: tokens that end a generation.
    """

    family: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool | None
    add_eos: bool
    add_space_prefix: bool
    strips_after_special: bool

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Read and check the `tokenizer.*` keys. Raises TokenizerError for missing or malformed ones."""
        family = _family(metadata)
        tokens = _tokens(metadata)
        types = _types(metadata, len(tokens))
        spm = family == "llama"
        defaults = (1, 2, 0) if spm else (None, None, None)
        bos, eos, unk = (
            _token_id(metadata, name, len(tokens), default)
            for name, default in zip(("bos", "eos", "unknown"), defaults, strict=True)
        )
        turn_ends = {_token_id(metadata, name, len(tokens), None) for name in ("eot", "eom")} | {
            eos
        }
        eog_ids = _mark_control_tokens(tokens, types, {i for i in turn_ends if i is not None})
        name = metadata.get("general.name", "")
        return cls(
            family=family,
            pre=_string(metadata, _PREFIX + "pre", "default"),
            tokens=tokens,
            types=types,
            scores=_scores(metadata, len(tokens)) if spm else [],
            merges=[] if spm else _merges(metadata),
            bos_id=bos,
            eos_id=eos,
            unk_id=unk,
            eog_ids=frozenset(eog_ids),
            add_bos=_flag(metadata, "add_bos_token", True if family != "gpt2" else None),
            add_eos=bool(_flag(metadata, "add_eos_token", False)),
            add_space_prefix=bool(_flag(metadata, "add_space_prefix", spm)),
            # Phi-3's special tokens swallow the white space after them; GGUF files say so by the model's name alone.
            strips_after_special=isinstance(name, str)
            and any(mark in name.lower() for mark in ("phi-3", "phi3")),
        )


def _family(metadata: Mapping[str, Any]) -> str:
    family = _string(metadata, _PREFIX + "model", "")
    if family not in _FAMILIES:
        got = f"is {family!r}" if family else "is missing"
        raise TokenizerError(
            f"{_PREFIX}model {got}; supported are {', '.join(_FAMILIES)} (byte-level BPE and SentencePiece BPE)"
        )
    return family


def _string(metadata: Mapping[str, Any], key: str, default: str) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise TokenizerError(f"{key} must be a string, got {type(value).__name__}")
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool | None) -> bool | None:
    value = metadata.get(_PREFIX + name)
    if value is None:
        return default
    if type(value).__name__ not in ("bool", "bool_"):
        raise TokenizerError(f"{_PREFIX}{name} must be true or false, got {type(value).__name__}")
    return bool(value)


def _list(metadata: Mapping[str, Any], name: str, kinds: Collection[type]) -> list[Any]:
    """The array under a key as a list whose items are all of the given types. [] where the key is missing."""
    value = metadata.get(_PREFIX + name)
    if value is None:
        return []
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, (list, tuple)):
        raise TokenizerError(f"{_PREFIX}{name} must be an array, got {type(value).__name__}")
    wrong = set(map(type, items)) - set(kinds)
    if wrong:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TokenizerError(f"{_PREFIX}{name} must hold {wanted}, found {wrong.pop().__name__}")
    return list(items)


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens: list[str] = _list(metadata, "tokens", (str,))
    if not tokens:
        raise TokenizerError(f"{_PREFIX}tokens is missing or empty: the file carries no vocabulary")
    if len(tokens) > MAX_TOKENS:
        raise TokenizerError(f"{_PREFIX}tokens has {len(tokens)} entries, more than {MAX_TOKENS}")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        raise TokenizerError(f"a token of {longest} characters is longer than {MAX_TOKEN_CHARS}")
    if "" in tokens:  # unused slots of some files; they need distinct names
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        first = {token: i for i, token in reversed(list(enumerate(tokens)))}
        twice = next(token for i, token in enumerate(tokens) if first[token] != i)
        raise TokenizerError(f"token {twice!r} appears more than once in {_PREFIX}tokens")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{_PREFIX}tokens holds text that is not Unicode: {error.reason}"
        ) from None
    return tokens


def _same_length(name: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise TokenizerError(f"{_PREFIX}{name} has {got} entries for {wanted} tokens")


def _types(metadata: Mapping[str, Any], n_tokens: int) -> list[int]:
    types: list[int] = _list(metadata, "token_type", (int,))
    if not types:
        return [int(TokenType.NORMAL)] * n_tokens
    _same_length("token_type", len(types), n_tokens)
    unknown = set(types) - set(TokenType)
    if unknown:
        raise TokenizerError(f"{_PREFIX}token_type holds {unknown.pop()}; known types are 0 to 6")
    return types


def _scores(metadata: Mapping[str, Any], n_tokens: int) -> list[float]:
    scores: list[float] = _list(metadata, "scores", (float, int))
    _same_length("scores", len(scores), n_tokens)
    if not all(map(math.isfinite, scores)):
        raise TokenizerError(f"{_PREFIX}scores holds a value that is not finite")
    return scores


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges: list[str] = _list(metadata, "merges", (str,))
    if not merges:
        raise TokenizerError(f"{_PREFIX}merges is missing or empty; a BPE vocabulary needs it")
    if len(merges) > MAX_TOKENS:
        raise TokenizerError(f"{_PREFIX}merges has {len(merges)} entries, more than {MAX_TOKENS}")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not left or not right:
            cut = merge.find(" ", 1)  # the left half may itself begin with a space
            left, right = merge[: max(cut, 0)], merge[cut + 1 :]
            if not left or not right:
                raise TokenizerError(
                    f"{_PREFIX}merges holds {merge!r}, which is not a pair of tokens"
                )
        pairs.append((left, right))
    return pairs


def _token_id(
    metadata: Mapping[str, Any], name: str, n_tokens: int, default: int | None
) -> int | None:
    key = f"{_PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return default if default is not None and default < n_tokens else None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TokenizerError(f"{key} must be an integer, got {type(value).__name__}")
    if not 0 <= int(value) < n_tokens:
        raise TokenizerError(f"{key} is {int(value)}, outside the vocabulary of {n_tokens} tokens")
    return int(value)


def _mark_control_tokens(tokens: list[str], types: list[int], turn_ends: set[int]) -> set[int]:
    """Set the types of tokens whose names say more than their types, in place; return the end-of-generation ids.

    The names, and the exceptions for OpenAI's harmony format and for vocabularies in which </s> is an HTML tag, are
    those of llama.cpp's src/llama-vocab.cpp.
    """
    ids = {token: i for i, token in enumerate(tokens) if token in _CONTROL_NAMES}
    for i in ids.values():
        types[i] = TokenType.CONTROL
    eog = turn_ends | {ids[name] for name in ids.keys() & _END_OF_GENERATION}
    harmony = {token: i for i, token in enumerate(tokens) if token in _HARMONY_PARTS}
    for i in harmony.values():
        types[i] = TokenType.USER_DEFINED
    if "<|end|>" in ids and ({"<|return|>", "<|call|>"} <= ids.keys() or "<|flush|>" in ids):
        eog.discard(ids["<|end|>"])
        types[ids["<|end|>"]] = TokenType.USER_DEFINED
    if "<|tool_response>" in ids and "</s>" in ids:
        eog.discard(ids["</s>"])
        types[ids["</s>"]] = TokenType.NORMAL
    return eog
