"""A request and its sequences: tokens and counters; the rest is derived."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import BeamSearchParams, SamplingParams
from cpuinfer.devices.base import PAGE_TOKENS
from cpuinfer.engine.adjust import Adjustment
from cpuinfer.engine.beam import BeamSearch
from cpuinfer.engine.blocks import NO_PREFIX
from cpuinfer.engine.grammar import Grammar, GrammarError, Grammars
from cpuinfer.engine.numerics import MAX_VOCAB
from cpuinfer.engine.outputs import Detokenizer, TextStream
from cpuinfer.engine.sampler import TokenLogprob

TokenLogprobs = tuple[TokenLogprob, ...]


def pages_of(n_tokens: int) -> int:
    """Pages that hold so many tokens of one sequence."""
    return -(-n_tokens // PAGE_TOKENS)


def shared_pages(n_prompt: int) -> int:
    """Pages that all sequences of one prompt share from beginning to end: each computes the prompt's last token."""
    return (n_prompt - 1) // PAGE_TOKENS


def most_pages(n_prompt: int, n_tokens: int, width: int) -> int:
    """Most pages that `width` sequences of one prompt hold together, of at most n_tokens computed tokens each."""
    shared = shared_pages(n_prompt)
    return shared + width * (pages_of(n_tokens) - shared)


@dataclass(eq=False, slots=True)
class Sequence:
    """One completion on its way.

    tokens: prompt, then generated. limit: most tokens, prompt included. end_ids: tokens that end
    it. computed: tokens whose keys and values are in `pages` (int32 page numbers, one per 16
    positions), of which the first `known` are in the pool's index as the prefix of number `prefix`.
    cached: prompt tokens that were found there, or shared with another completion, instead of
    being computed. logits: where the row of every prompt token goes, f32 [n_prompt, V], for a
    sequence that generates nothing. prompt_logprobs: None where not wanted. n_logprobs: params'.
    adjustment: of the logits, None where they stay as they are. grammar: what form the completion must have, and where
    it stands in it. search: the one that it is a beam of.
    """

    params: SamplingParams
    tokens: list[int]
    n_prompt: int
    limit: int
    end_ids: frozenset[int]
    seed: int
    choice: int
    stream: TextStream
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    logits: NDArray[np.float32] | None = None
    grammar: Grammar | None = None
    search: BeamSearch | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    pages: array[int] = field(default_factory=lambda: array("i"))
    computed: int = 0
    known: int = 0
    prefix: int = NO_PREFIX
    cached: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    adjustment: Adjustment | None = field(init=False)
    n_logprobs: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.adjustment = Adjustment.of(self.params, self.end_ids)
        self.n_logprobs = self.params.n_logprobs

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens."""
        return self.tokens[: self.n_prompt]

    @property
    def generated(self) -> list[int]:
        """The completion's tokens."""
        return self.tokens[self.n_prompt :]

    @property
    def cumulative_logprob(self) -> float:
        """Of the completion's tokens, by the model itself; 0 where they were not asked for."""
        return sum(listed[0].logprob for listed in self.logprobs)

    @property
    def was_cut_off(self) -> bool:
        """Whether it has ended otherwise than by its own end or its most tokens."""
        return self.finish_reason not in ("stop", "length")

    @property
    def remaining(self) -> int:
        """Tokens not yet computed: 1 when decoding."""
        return len(self.tokens) - self.computed

    @property
    def most_computed(self) -> int:
        """Tokens that may ever be computed: a generated one is when the next is wanted, the last never."""
        return max(self.n_prompt, self.limit - 1)

    @property
    def pages_missing(self) -> int:
        """Pages that the tokens need beyond those held."""
        return -(-len(self.tokens) // PAGE_TOKENS) - len(self.pages)

    @property
    def written_page(self) -> int:
        """The page that the next token's keys and values go to. It must be held: `computed` is inside of it."""
        return self.pages[self.computed // PAGE_TOKENS]

    @property
    def first_row(self) -> int:
        """The first position whose logits are still wanted; those of all later ones are, too."""
        if self.logits is not None:
            return 0
        if self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.n_prompt:
            return len(self.prompt_logprobs) - 1
        return len(self.tokens) - 1

    def fork(self, choice: int) -> Sequence:
        """Another completion with the same text so far, and no pages. Scheduler.fork shares those."""
        return replace(
            self,
            choice=choice,
            tokens=self.tokens.copy(),
            stream=self.stream.fork(),
            grammar=self.grammar and self.grammar.copy(),
            prompt_logprobs=None,
            logprobs=self.logprobs.copy(),
            pages=array("i"),
            computed=0,
            known=0,
            prefix=NO_PREFIX,
        )

    def would_end(self, token: int) -> bool:
        """Whether `append` of the token would end it; for beams, which have no grammar."""
        if token in self.end_ids or len(self.tokens) + 1 >= self.limit:
            return True
        if not self.params.stop_strings:
            return False
        return self.stream.fork().push(token) is not None

    def append(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Take a sampled token, with its text, and end where it, its text or the limit says so."""
        n = len(self.tokens) - self.n_prompt + 1
        self.tokens.append(token)
        self.first_token = self.first_token or perf_counter()
        if logprobs is not None:
            self.logprobs.append(logprobs)
        params, grammar = self.params, self.grammar
        search = n > params.min_tokens
        if grammar is not None and token not in self.end_ids:
            try:
                grammar.accept(token)
            except GrammarError as error:
                self.finish("error", str(error))
                return
        if token in self.end_ids:
            if params.include_stop_str_in_output:
                self.stream.push(token, search=False)
            self.finish("stop", token if token in params.stop_ids else None)
        elif stop := self.stream.push(token, search):
            self.finish("stop", stop)
        elif (ended := grammar is not None and grammar.ended) or len(self.tokens) >= self.limit:
            stop = self.stream.finish(search)
            self.finish("stop" if stop or ended else "length", stop)

    def finish(self, reason: str, stop_reason: str | int | None = None) -> None:
        """End with that reason; text that was held back is let go, except behind a stop string."""
        if reason != "stop" or not isinstance(stop_reason, str):
            self.stream.finish(search=False)
        self.finish_reason = reason
        self.stop_reason = stop_reason
        self.finished = perf_counter()


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt's sequences: one per completion, all of the same prompt; or the first beam of a search.

    priority: lower ones come first. timeout_s: seconds from `created` until what is unfinished ends with
    finish_reason "timeout"; None: never. width: most sequences at once where they fork while they run; None: those here.
    """

    request_id: str
    sequences: tuple[Sequence, ...]
    created: float = field(default_factory=perf_counter)
    priority: int = 0
    timeout_s: float | None = None
    width: int | None = None

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        if search := self.sequences[0].search:
            return search.done
        return all(sequence.finish_reason for sequence in self.sequences)

    @property
    def completions(self) -> list[Sequence]:
        """What is returned of a request that is done, in that order: all, the n of best_of, or a search's."""
        first = self.sequences[0]
        if first.search is not None:
            return first.search.completions
        if first.params.best_of is None:
            return list(self.sequences)
        ranked = sorted(self.sequences, key=lambda s: (s.was_cut_off, -s.cumulative_logprob))
        return ranked[: first.params.n]


@dataclass(frozen=True)
class Bounds:
    """What requests of an engine must keep, checked before any is admitted.

    kv_tokens: tokens that the KV pages hold, less pinned_tokens, which pinned prompts keep. end_ids: the model's
    end-of-generation tokens. grammars: compiles those of structured outputs; None where there is no tokenizer.
    """

    vocab_size: int
    max_context: int
    kv_tokens: int
    end_ids: frozenset[int]
    default_max_tokens: int
    grammars: Grammars | None = None
    pinned_tokens: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size > MAX_VOCAB:
            raise ValueError(f"a vocabulary of {self.vocab_size} tokens; at most {MAX_VOCAB} work")

    def check_prompt(self, prompt: list[int], room: int) -> None:
        """Raises ValueError unless the prompt is of known tokens and it and `room` more fit."""
        if not prompt:
            raise ValueError(
                "prompt: no tokens; give at least one (the tokenizer may add none by itself)"
            )
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            bad = next(token for token in prompt if not 0 <= token < self.vocab_size)
            raise ValueError(
                f"prompt: token id {bad} is outside the vocabulary of {self.vocab_size}"
            )
        if len(prompt) + room > self.max_context:
            raise ValueError(
                f"prompt: {len(prompt)} tokens do not fit the context of {self.max_context}"
                f"{' with one token to generate' if room else ''}; shorten it or raise max_context"
            )
        if len(prompt) > self.kv_tokens:
            pinned = f" ({self.pinned_tokens} more are pinned)" if self.pinned_tokens else ""
            raise ValueError(
                f"prompt: {len(prompt)} tokens do not fit the KV pages for {self.kv_tokens} tokens{pinned};"
                " shorten it or raise kv_memory_bytes"
            )

    def request(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams | BeamSearchParams,
        detokenizer: Callable[[], Detokenizer] | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        width: int | None = None,
    ) -> Request:
        """A request for the completions of params; `detokenizer` makes one for each. priority, timeout_s, width: Request's.

        Raises ValueError if the prompt does not fit, by itself or for n completions at once, if a token that params
        name is outside the vocabulary, if their grammar is malformed, or if priority or timeout_s are no such numbers.
        """
        beams = params if isinstance(params, BeamSearchParams) else None
        if isinstance(params, BeamSearchParams):
            params = params.sampling
        _check_schedule(priority, timeout_s)
        self.check_prompt(prompt, room=1)
        for name, ids in (
            ("stop_token_ids", params.stop_ids),
            ("logit_bias", params.logit_bias or {}),
        ):
            if ids and max(ids) >= self.vocab_size:
                raise ValueError(
                    f"{name}: token id {max(ids)} is outside the vocabulary of {self.vocab_size}"
                )
        if params.stop_strings and detokenizer is None:
            raise ValueError("stop: strings need a tokenizer; use stop_token_ids")
        form = None
        if params.structured_outputs is not None:
            if self.grammars is None:
                raise ValueError("structured_outputs: they need a tokenizer")
            form = self.grammars.grammar(params.structured_outputs)
        wanted = params.max_tokens or self.default_max_tokens
        # The last token is never computed, so it needs no page.
        width = beams.beam_width if beams else width
        name = "beam_width" if beams else "n" if params.best_of is None else "best_of"
        room = self._room(len(prompt), max(params.n_drawn, width or 0), name) + 1
        limit = min(len(prompt) + wanted, self.max_context, room)
        end_ids = params.stop_ids | (frozenset() if params.ignore_eos else self.end_ids)
        seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed

        def sequence(choice: int) -> Sequence:
            wants_prompt = params.prompt_logprobs is not None and choice == 0
            made = detokenizer() if detokenizer else None
            return Sequence(
                params,
                list(prompt),
                len(prompt),
                limit,
                end_ids,
                seed,
                choice,
                TextStream(made, params.stop_strings, params.include_stop_str_in_output),
                prompt_logprobs=[None] if wants_prompt else None,
                grammar=form and form.copy(),
            )

        sequences = tuple(sequence(choice) for choice in range(params.n_drawn))
        if beams is not None:
            sequences[0].search = BeamSearch(sequences[0], beams)
        return Request(
            request_id,
            sequences,
            priority=priority,
            timeout_s=timeout_s,
            width=width,
        )

    def _room(self, n_prompt: int, width: int, name: str) -> int:
        """Most tokens of each of `width` sequences that share a prompt: all fit the KV pages at once.

        Raises ValueError if not even the prompt and a page of each its own do.
        """
        pages = self.kv_tokens // PAGE_TOKENS
        wanted = most_pages(n_prompt, n_prompt, width)
        if wanted > pages:
            raise ValueError(
                f"{name}: {width} completions of a prompt of {n_prompt} tokens need {wanted} KV pages of {PAGE_TOKENS}"
                f" tokens, there are {pages}; lower {name}, shorten the prompt or raise kv_memory_bytes"
            )
        shared = shared_pages(n_prompt)
        return (shared + (pages - shared) // width) * PAGE_TOKENS

    def scoring_request(self, request_id: str, prompt: list[int]) -> Request:
        """A request for the logits of every token of the prompt.

        Raises ValueError if it does not fit.
        """
        self.check_prompt(prompt, room=0)
        logits = np.empty((len(prompt), self.vocab_size), np.float32)
        params = SamplingParams(temperature=0)
        stream = TextStream(None, (), False)
        n = len(prompt)
        return Request(
            request_id,
            (Sequence(params, list(prompt), n, n, frozenset(), 0, 0, stream, logits=logits),),
        )


def _check_schedule(priority: int, timeout_s: float | None) -> None:
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise ValueError(f"priority: expected an integer, lower ones come first; got {priority!r}")
    if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and timeout_s >= 0):
        raise ValueError(f"timeout_s: expected seconds >= 0 or None, got {timeout_s!r}")
