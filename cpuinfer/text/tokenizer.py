"""Text to token ids and back, rebuilt from GGUF metadata on the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cpuinfer.text.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from cpuinfer.text.vocabulary import TokenizerError, TokenType, Vocabulary

if TYPE_CHECKING:
    import tokenizers

_SPACE = "▁"
_SPECIAL = frozenset((TokenType.CONTROL, TokenType.UNKNOWN))
_MERGEABLE = frozenset((TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED))

MAX_SPLIT_WORK = 1 << 28
"""Bound on the sum of squared token lengths of a SentencePiece vocabulary, whose merges are found by cutting every
token in two at every place. Real vocabularies need less than 2^25."""


class Tokenizer:
    """A byte-level or SentencePiece BPE tokenizer. Immutable, and safe to call from many threads.

    Where special tokens overlap in a text, the leftmost match is taken, and of those the longest.
    Characters which neither a token nor byte tokens cover are dropped, as the models' own tokenizers do.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build the tokenizer. Raises TokenizerError where the parts of the vocabulary do not fit each other."""
        self._vocabulary = vocabulary
        self._pre = _pre_tokenizer(vocabulary)
        self._add_bos = self._pre.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        for wanted, id_, name in (
            (self._add_bos, vocabulary.bos_id, "bos"),
            (vocabulary.add_eos, vocabulary.eos_id, "eos"),
        ):
            if wanted and id_ is None:
                raise TokenizerError(
                    f"prompts must carry a {name} token but tokenizer.ggml.{name}_token_id is missing; "
                    f"set it, or set tokenizer.ggml.add_{name}_token to false"
                )
        self._pieces: list[bytes | None] = [None] * len(vocabulary.tokens)
        special, always = _added_tokens(vocabulary)
        try:
            model = _model(vocabulary, self._pre)
            self._plain = _engine(model, vocabulary, self._pre, always)
            self._parsing = _engine(model, vocabulary, self._pre, special + always)
        except TokenizerError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"the vocabulary and its merges do not fit: {error}") from None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the `tokenizer.*` keys of a GGUF file. Raises TokenizerError if they are malformed or unknown."""
        return cls(Vocabulary.from_gguf(metadata))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        """The begin-of-sequence token, if the vocabulary has one."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token, if the vocabulary has one."""
        return self._vocabulary.eos_id

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation: EOS and every known end-of-turn token."""
        return self._vocabulary.eog_ids

    @property
    def add_bos(self) -> bool:
        """Whether encode begins with BOS by default."""
        return self._add_bos

    @property
    def strips_leading_space(self) -> bool:
        """Whether encode puts a space before the text, which decode takes away again."""
        return self._vocabulary.add_space_prefix

    def is_special(self, id: int) -> bool:
        """Whether the token is a control (or the unknown) token rather than text."""
        return self._vocabulary.types[self._checked(id)] in _SPECIAL

    def token(self, id: int) -> str:
        """The token as the vocabulary spells it."""
        return self._vocabulary.tokens[self._checked(id)]

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        add_special: add BOS and EOS where the model's convention is to have them.
        parse_special: read the names of control tokens in the text as those tokens; else they are plain text.
        Raises TokenizerError if text is not a string or holds a lone surrogate.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"text must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text holds a lone surrogate at index {error.start}, which has no UTF-8 form; "
                "decode the input with errors='replace' first"
            ) from None
        engine = self._parsing if parse_special else self._plain
        ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        if add_special:
            if self._add_bos and self.bos_id is not None:
                ids.insert(0, self.bos_id)
            if self._vocabulary.add_eos and self.eos_id is not None:
                ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD.

        The one space that encode puts before a text is taken away again. Raises TokenizerError for an id out of range.
        """
        data = b"".join(
            self.token_bytes(id) for id in ids if not (skip_special and self.is_special(id))
        )
        if self.strips_leading_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes which a token stands for: for a special token its name, for an unused one nothing."""
        piece = self._pieces[self._checked(id)]
        if piece is None:
            piece = self._pieces[id] = self._spell(id)
        return piece

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(
                f"token id {id} is outside the vocabulary of {self.vocab_size} tokens"
            )
        return id

    def _spell(self, id: int) -> bytes:
        token, type_ = self._vocabulary.tokens[id], self._vocabulary.types[id]
        if type_ in _SPECIAL or type_ == TokenType.USER_DEFINED:
            return token.encode()
        if type_ == TokenType.BYTE:
            return bytes((_byte_value(token),))
        if type_ != TokenType.NORMAL:
            return b""
        if self._vocabulary.family != "gpt2":
            return token.replace(_SPACE, " ").encode()
        try:
            return bytes(map(self._byte_of.__getitem__, token))
        except KeyError:  # not spelt in the byte alphabet, so it stands for itself
            return token.encode()

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on.

        Source: bytes_to_unicode in OpenAI's gpt-2/src/encoder.py.
        """
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        alphabet = {chr(byte): byte for byte in printable}
        rest = (byte for byte in range(256) if chr(byte) not in alphabet)
        return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


def _byte_value(token: str) -> int:
    try:
        if len(token) != 6 or token[:3] != "<0x" or token[5] != ">":
            raise ValueError
        return int(token[3:5], 16)
    except ValueError:
        raise TokenizerError(f"byte token {token!r} is not of the form <0xHH>") from None


def _pre_tokenizer(vocabulary: Vocabulary) -> PreTokenizer:
    if vocabulary.family != "gpt2":
        return PreTokenizer((), add_bos=True)
    try:
        return PRE_TOKENIZERS[vocabulary.pre]
    except KeyError:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {vocabulary.pre!r}, which is not a known pre-tokenizer; "
            f"known are {', '.join(sorted(PRE_TOKENIZERS))}"
        ) from None


def _added_tokens(
    vocabulary: Vocabulary,
) -> tuple[list[tokenizers.AddedToken], list[tokenizers.AddedToken]]:
    """Tokens matched in the text before any merging: those for parse_special, and those matched always."""
    from tokenizers import AddedToken

    special: list[tokenizers.AddedToken] = []
    always: list[tokenizers.AddedToken] = []
    plain_ends = ("<unk>", "<s>", "<|endoftext|>")
    for token, type_ in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if type_ in _SPECIAL or type_ == TokenType.USER_DEFINED:
            rstrip = vocabulary.strips_after_special and token not in plain_ends
            added = AddedToken(token, rstrip=rstrip, normalized=False, special=type_ in _SPECIAL)
            (special if type_ in _SPECIAL else always).append(added)
    return special, always


def _score_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges of a SentencePiece BPE vocabulary: every way to make a token of two others, highest score first.

    Control, unknown and byte tokens take no part, so no plain text can turn into one. Among tokens of equal score the
    lower id goes first everywhere in a text, where SentencePiece goes from left to right; trained vocabularies have
    equal scores only for runs of spaces, where both agree.
    """
    pieces = {
        token: score
        for token, score, type_ in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if type_ in _MERGEABLE
    }
    work = sum(len(token) ** 2 for token in pieces)
    if work > MAX_SPLIT_WORK:
        raise TokenizerError(
            f"the tokens are too long for a SentencePiece vocabulary: squared lengths add up to {work}, "
            f"more than {MAX_SPLIT_WORK}"
        )
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(pieces, key=pieces.__getitem__, reverse=True)
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return merges


def _model(vocabulary: Vocabulary, pre: PreTokenizer) -> tokenizers.models.BPE:
    from tokenizers.models import BPE

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    if vocabulary.family == "gpt2":
        return BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=pre.ignore_merges)
    merges = vocabulary.merges or _score_merges(vocabulary)
    unknown = None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id]
    return BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=False, byte_fallback=True)


def _engine(
    model: tokenizers.models.BPE,
    vocabulary: Vocabulary,
    pre: PreTokenizer,
    added: list[tokenizers.AddedToken],
) -> tokenizers.Tokenizer:
    """The library's tokenizer around a shared model, matching the given added tokens."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

    engine = Tokenizer(model)
    if vocabulary.family == "gpt2":
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(steps)
    else:
        escape: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
        if vocabulary.add_space_prefix:
            escape.insert(0, normalizers.Prepend(_SPACE))
        engine.normalizer = normalizers.Sequence(escape)
        if vocabulary.family == "gemma4":
            engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    if added:
        engine.add_tokens(added)
    return engine
