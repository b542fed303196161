"""What a caller gets: the results of requests, whole and as they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from cpuinfer.engine.outputs import (
    CompletionOutput,
    Logprob,
    RequestOutput,
    StreamChunk,
    Timings,
)
from cpuinfer.engine.runner import Ticket
from cpuinfer.engine.sequence import Request, Sequence, TokenLogprobs

Decode = Callable[[int], str]
"""The text of a token alone, special ones included."""


class Reader:
    """Reads what a followed ticket's request adds, by any one thread while the engine goes on."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._read = list(ticket.marks)

    def chunks(self, whole: Callable[[], RequestOutput]) -> Iterator[StreamChunk]:
        """What is new of every completion; where that is the end, with `whole`(). Raises what ended the request."""
        ticket = self._ticket
        ticket.told = False
        done = ticket.done  # before the marks, which are final if it is set
        marks = list(ticket.marks)
        if not done and all(now.finish_reason is not None for now in marks):
            return  # the engine is about to set `done` and to tell: whoever took the last news now would miss the end
        fresh = [
            (i, before, now)
            for i, (before, now) in enumerate(zip(self._read, marks, strict=True))
            if before != now
        ]
        if done and ticket.error is not None:
            raise ticket.error
        for i, before, now in fresh:
            self._read[i] = now
            sequence = ticket.request.sequences[i]
            chunk = StreamChunk(
                sequence.stream.text[before.n_characters : now.n_characters],
                sequence.tokens[before.n_tokens : now.n_tokens],
                now.finish_reason,
                now.stop_reason,
                i,
            )
            last = done and i == fresh[-1][0]
            yield replace(chunk, output=whole()) if last else chunk


def request_output(
    request: Request, prompt: str | None, load_s: float, decode: Decode
) -> RequestOutput:
    """The results of a request that is done."""
    first = request.sequences[0]
    prompt_logprobs = first.prompt_logprobs
    return RequestOutput(
        request_id=request.request_id,
        prompt=prompt,
        prompt_token_ids=first.prompt,
        prompt_logprobs=None
        if prompt_logprobs is None
        else [_logprobs(entry, decode) if entry else None for entry in prompt_logprobs],
        outputs=[_completion(i, s, decode) for i, s in enumerate(request.completions)],
        num_cached_tokens=first.cached,
        seed=first.seed,
        timings=timings(request, load_s),
    )


def timings(request: Request, load_s: float) -> Timings:
    """What a request took. Its sequences run side by side: the first to start and the last to end
    count.
    """
    sequences = request.completions
    last = max(s.finished or request.created for s in sequences)
    started = min((s.started for s in sequences if s.started), default=last)
    first = min((s.first_token for s in sequences if s.first_token), default=last)
    computed = sequences[0].n_prompt - sequences[0].cached
    later = sum(max(0, len(s.tokens) - s.n_prompt - 1) for s in sequences)
    return Timings(
        load_s=load_s,
        queue_s=started - request.created,
        ttft_s=first - request.created,
        prefill_tok_s=computed / (first - started) if first > started else 0.0,
        decode_tok_s=later / (last - first) if last > first else 0.0,
        total_s=last - request.created,
    )


def _completion(index: int, sequence: Sequence, decode: Decode) -> CompletionOutput:
    listed = sequence.logprobs if sequence.params.logprobs is not None else None
    return CompletionOutput(
        index=index,
        text=sequence.stream.text,
        token_ids=sequence.generated,
        logprobs=None if listed is None else [_logprobs(entry, decode) for entry in listed],
        cumulative_logprob=sequence.cumulative_logprob if sequence.logprobs else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )


def _logprobs(entries: TokenLogprobs, decode: Decode) -> dict[int, Logprob]:
    return {e.token: Logprob(e.logprob, e.rank, decode(e.token)) for e in entries}
