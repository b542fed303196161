"""What comes out: text as it grows, and the finished results of a request."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol


class Detokenizer(Protocol):
    """Turns tokens into text one at a time.

    What cannot be text yet (half a character) is held back.
    """

    def push(self, token: int, /) -> str:
        """Text that the token completes."""
        ...

    def flush(self) -> str:
        """Text of what is still held back."""
        ...

    def fork(self) -> Detokenizer:
        """Another that goes on from here by itself."""
        ...


class TextStream:
    """The text of a completion, ended by the stop string that is complete first.

    `text` only grows and never holds part of a stop string: characters which may begin one are held
    back until they do not. Of stop strings that end at the same character the longest counts, so
    the result does not depend on how characters fall into tokens. A stop string itself is left out
    unless `include_stop`.
    """

    def __init__(
        self, detokenizer: Detokenizer | None, stop: Sequence[str], include_stop: bool
    ) -> None:
        self.text = ""
        self._detokenizer = detokenizer
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""

    def fork(self) -> TextStream:
        """Another that goes on from here by itself."""
        made = copy(self)
        made._detokenizer = self._detokenizer and self._detokenizer.fork()
        return made

    def push(self, token: int, search: bool = True) -> str | None:
        """Add a token; returns the stop string that its text completes, if any.

        `search` False looks for none.
        """
        if self._detokenizer is None:
            return None
        return self._add(self._detokenizer.push(token), search)

    def finish(self, search: bool = True) -> str | None:
        """Let go of everything held back; returns the stop string that this completes, if any."""
        stop = self._add(self._detokenizer.flush(), search) if self._detokenizer else None
        self.text += self._held
        self._held = ""
        return stop

    def _add(self, text: str, search: bool) -> str | None:
        text = self._held + text
        if not self._stop or not search:
            self.text += text
            self._held = ""
            return None
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            end, begin, stop = min(found)
            self.text += text[: end if self._include_stop else begin]
            self._held = ""
            return stop
        held = max(_overlap(text, stop) for stop in self._stop)
        self.text += text[: len(text) - held]
        self._held = text[len(text) - held :]
        return None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself apart."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )


@dataclass(frozen=True)
class Logprob:
    """vLLM's: natural log-probability, rank (1: the most likely) and text of a token."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One completion.

    token_ids include the token that ended it; text leaves it out. logprobs: for each token the
    reported ones by id (None if not asked for). cumulative_logprob: the sum over token_ids (None
    where neither logprobs nor best_of ask for it).
    finish_reason: "stop", "length", "abort", "timeout", or "error" where structured output cannot go on (its grammar met a limit).
    stop_reason: the stop string or stop token id that ended it, or the error; None for the model's own end and for
    that of a grammar.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    cumulative_logprob: float | None
    finish_reason: str | None
    stop_reason: str | int | None


@dataclass(frozen=True)
class Timings:
    """Seconds and speeds of a request, from when it was given to the engine.

    load_s: of the model, once. queue_s: until its first step. ttft_s: until the first token.
    prefill_tok_s: prompt tokens that were not cached, over first step to first token. decode_tok_s: tokens after the
    first, over the time after it (0 if there are none); of n completions together. total_s: until
    the last token.
    """

    load_s: float
    queue_s: float
    ttft_s: float
    prefill_tok_s: float
    decode_tok_s: float
    total_s: float


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    prompt is None where token ids were given. prompt_logprobs[0] is None: nothing comes before it.
    num_cached_tokens: of the prompt, those whose keys and values an earlier request had left.
    seed is the one used: with it, the same prompt and parameters give the same completions.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    num_cached_tokens: int
    seed: int
    timings: Timings


@dataclass(frozen=True)
class StreamChunk:
    """What a stream adds to completion `index`: text (perhaps none yet) and tokens, several where the reader is slower
    than the engine; in the completion's last chunk, why it ended; in the request's last chunk, all of it.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    index: int = 0
    output: RequestOutput | None = None
