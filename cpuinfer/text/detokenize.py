"""Token ids to text as they come, never splitting a UTF-8 character."""

from __future__ import annotations

import codecs
from copy import copy

from cpuinfer.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of token ids into text: the pushes and the flush together are exactly Tokenizer.decode's text."""

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continues: bool = False
    ) -> None:
        """skip_special: leave control tokens out of the text.

        continues: the ids go on from other text (a prompt), so a leading space belongs to the text. Only
        vocabularies that put a space before every text (SentencePiece) know a difference.
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.strips_leading_space and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that this token completes; incomplete characters wait for the next token.

        Raises TokenizerError for an id out of range.
        """
        if self._skip_special and self._tokenizer.is_special(id):
            return ""
        data = self._tokenizer.token_bytes(id)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The text still held back, incomplete characters as U+FFFD. Afterwards the stream may go on."""
        return self._decoder.decode(b"", final=True)

    def fork(self) -> Detokenizer:
        """Another that goes on from here by itself."""
        made = copy(self)
        made._decoder = copy(self._decoder)
        return made
