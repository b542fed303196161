"""The loop: schedule, run, sample, commit."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.base import Executable, Limits
from cpuinfer.engine.sampler import logprobs, sample
from cpuinfer.engine.scheduler import Chunk, Scheduler, Step
from cpuinfer.engine.sequence import Request, Sequence, TokenLogprobs


@dataclass(frozen=True)
class Sampled:
    """What a chunk's rows gave: log-probabilities of prompt tokens, perhaps the next token."""

    prompt_logprobs: list[TokenLogprobs]
    token: int | None = None
    logprobs: TokenLogprobs | None = None


class Engine:
    """Runs requests on an executable, many at once. Not thread-safe: one caller at a time."""

    def __init__(self, executable: Executable, limits: Limits, max_sequences: int) -> None:
        self.executable = executable
        self.scheduler = Scheduler(limits, max_sequences)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request made by Bounds, which has checked that it fits."""
        for sequence in request.sequences:
            self.scheduler.add(sequence)

    def abort(self, request: Request) -> None:
        """End what is unfinished of a request, with finish_reason "abort".

        Its pages become free.
        """
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                self.scheduler.remove(sequence)
                sequence.finish("abort")

    def abort_all(self) -> None:
        """End every unfinished request as abort does."""
        for sequence in (*self.scheduler.running, *self.scheduler.waiting):
            self.scheduler.remove(sequence)
            sequence.finish("abort")

    def step(self) -> list[Sequence]:
        """Run one step; returns the sequences that took part. Call it only while has_work.

        A step that raises (ValueError: logits that are not finite; whatever the device raises) has
        committed nothing.
        """
        step = self.scheduler.schedule()
        logits = self.executable.run(step.batch)
        sampled = sample_step(step.chunks, logits)
        return self._commit(step, sampled)

    def _commit(self, step: Step, sampled: list[Sampled]) -> list[Sequence]:
        for chunk, result in zip(step.chunks, sampled, strict=True):
            sequence = chunk.sequence
            sequence.computed += chunk.n_tokens
            if sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs += result.prompt_logprobs
            if result.token is not None:
                sequence.append(result.token, result.logprobs)
            elif sequence.logits is not None and sequence.remaining == 0:
                sequence.finish("length")
            if sequence.finish_reason is not None:
                self.scheduler.remove(sequence)
        return [chunk.sequence for chunk in step.chunks]


def sample_step(chunks: ListLike[Chunk], logits: NDArray[np.float32]) -> list[Sampled]:
    """What every chunk's rows of logits [R, V] give.

    Raises ValueError where logits are not finite.
    """
    sampled: list[Sampled] = []
    row = 0
    for chunk in chunks:
        sampled.append(sample_chunk(chunk, logits[row : row + chunk.n_rows]))
        row += chunk.n_rows
    return sampled


def sample_chunk(chunk: Chunk, rows: NDArray[np.float32]) -> Sampled:
    """What a chunk's own rows [n_rows, V] give: they belong to the last n_rows of its tokens."""
    sequence = chunk.sequence
    end = sequence.computed + chunk.n_tokens
    first = end - chunk.n_rows
    if sequence.logits is not None:
        sequence.logits[first:end] = rows
        return Sampled([])
    params = sequence.params
    found: list[TokenLogprobs] = []
    if sequence.prompt_logprobs is not None and params.prompt_logprobs is not None:
        for row, position in zip(
            rows, range(first + 1, min(end + 1, sequence.n_prompt)), strict=False
        ):
            found.append(logprobs(row, sequence.tokens[position], params.prompt_logprobs))
    if chunk.n_tokens < sequence.remaining:
        return Sampled(found)
    token = sample(
        rows[-1],
        params,
        sequence.tokens,
        sequence.n_prompt,
        sequence.end_ids,
        sequence.seed,
        sequence.choice,
    )
    listed = None if params.logprobs is None else logprobs(rows[-1], token, params.logprobs)
    return Sampled(found, token, listed)
