"""The form of a completion: which tokens may come next, by grammars that llguidance compiles."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import StructuredOutputsParams

CACHED = 16
"""Compiled grammars that are kept, those used last."""
# What one grammar may cost, below llguidance's own limits: a step is shared, and waits for the slowest of its masks
# (0.2 s for repetitions of repetitions of thousands). Of memory, a lexer state takes about 2 KB.
_LIMITS: dict[str, Any] = {
    "max_lexer_states": 10_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_grammar_size": 100_000,
    "max_items_in_row": 1_000,
    "verbose_errors": False,
}
_MESSAGE = 400  # characters of an error that are shown


class GrammarError(RuntimeError):
    """A grammar that cannot go on: it met a limit, or no token of the vocabulary can follow."""


class TokenTable(Protocol):
    """What a grammar must know of a tokenizer (text.tokenizer.Tokenizer has it)."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def bos_id(self) -> int | None:
        """The begin-of-sequence token, if there is one."""

    @property
    def eog_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""

    def is_special(self, id: int, /) -> bool:
        """Whether the token is no text."""

    def token_bytes(self, id: int, /) -> bytes:
        """The bytes that a token stands for."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text."""


class Grammar:
    """Where one completion stands in its grammar. Not thread-safe."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        """matcher: llguidance's LLMatcher, without an error."""
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Grammar:
        """Another completion that stands where this one does."""
        return Grammar(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens can come next, [V]; of end tokens all or none. Raises GrammarError where nothing can be said."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._error()
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed."""
        if not self._matcher.consume_token(token):
            raise self._error()

    @property
    def ended(self) -> bool:
        """Whether nothing but an end token can follow."""
        ended: bool = self._matcher.is_stopped()
        return ended

    def _error(self) -> GrammarError:
        error = self._matcher.get_error()
        if error.startswith("NoExtension"):
            return GrammarError("no token of the vocabulary can follow before the text is complete")
        return GrammarError(error[:_MESSAGE])


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the last of them. Thread-safe."""

    def __init__(self, tokens: TokenTable) -> None:
        """Nothing is loaded or compiled before the first grammar."""
        self._tokens = tokens
        self._tokenizer: Any = None
        self._compiled: OrderedDict[tuple[str, str, bool], Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def grammar(self, params: StructuredOutputsParams) -> Grammar:
        """The grammar at its beginning.

        Raises ValueError where llguidance is missing, the grammar is malformed or no text keeps it, and where it costs
        more than one may.
        """
        key = params.kind, params.text, params.disable_any_whitespace
        with self._lock:
            made = self._compiled.pop(key, None) or self._compile(params)
            self._compiled[key] = made
            if len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
            return made.copy()

    def _compile(self, params: StructuredOutputsParams) -> Grammar:
        try:
            import llguidance
        except ImportError as error:
            raise ValueError(
                "structured_outputs need the extra: pip install 'cpuinfer[structured]'"
            ) from error
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(llguidance, self._tokens)
        try:
            matcher = llguidance.LLMatcher(
                self._tokenizer,
                _source(llguidance, params),
                log_level=0,
                limits=llguidance.LLParserLimits(**_LIMITS),
            )
            if matcher.is_error():
                raise GrammarError(matcher.get_error()[:_MESSAGE])
            made = Grammar(matcher, self._tokens.vocab_size)
            made.allowed()  # so that what fails at once fails here
        except (ValueError, GrammarError) as error:
            raise ValueError(f"{params.kind}: {error}") from None
        return made


def _source(llguidance: Any, params: StructuredOutputsParams) -> str:
    """The grammar in llguidance's own form. Raises ValueError for one that it cannot read."""
    if params.kind in ("json", "json_object"):
        options = {"whitespace_flexible": False} if params.disable_any_whitespace else None
        source = llguidance.LLMatcher.grammar_from_json_schema(params.text, overrides=options)
    elif params.kind == "choice":
        # Lark's strings are JSON's.
        choices = (json.dumps(choice, ensure_ascii=False) for choice in params.choice or ())
        source = llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(choices))
    else:
        source = llguidance.grammar_from(params.kind, params.text)
    return str(source)


def _tokenizer(llguidance: Any, tokens: TokenTable) -> Any:
    if not tokens.eog_ids:
        raise ValueError("structured_outputs: the model's vocabulary has no end token")
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Tokens(tokens)), eos_token=sorted(tokens.eog_ids)
    )


class _Tokens:
    """A TokenTable under the names that llguidance.TokenizerWrapper reads."""

    def __init__(self, tokens: TokenTable) -> None:
        ids = range(tokens.vocab_size)
        self._encode = tokens.encode
        self.eos_token_id = min(tokens.eog_ids)
        self.bos_token_id = tokens.bos_id
        self.tokens = [tokens.token_bytes(id) for id in ids]
        self.special_token_ids = [id for id in ids if tokens.is_special(id) or id in tokens.eog_ids]

    def __call__(self, text: str) -> list[int]:
        return self._encode(text, add_special=False, parse_special=False)
