"""What the logits of a step give: the next tokens, and the log-probabilities that were asked for."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.sampling import Choice, Sampler, Score
from cpuinfer.engine.sampler import NumpySampler, best, edited, logprobs
from cpuinfer.engine.scheduler import Chunk
from cpuinfer.engine.sequence import TokenLogprobs

_REFERENCE = NumpySampler()


@dataclass(slots=True)
class Sampled:
    """What a chunk's rows gave: log-probabilities of prompt tokens, perhaps the next token."""

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


def sample_step(
    chunks: ListLike[Chunk], logits: NDArray[np.float32], sampler: Sampler | None
) -> list[Sampled]:
    """What every chunk's rows of logits [R, V] give, by the device's sampler or else NumPy.

    A chunk's rows belong to the last n_rows of its tokens. Raises ValueError where logits are not finite.
    """
    sampled = [Sampled() for _ in chunks]
    choices: list[Choice] = []
    chosen: list[int] = []  # whose choices they are
    scores: list[Score] = []
    scored: list[tuple[Sampled, bool]] = []
    end_row = 0
    for i, chunk in enumerate(chunks):
        end_row += chunk.n_rows
        sequence = chunk.sequence
        if sequence.logits is not None:
            end = sequence.computed + chunk.n_tokens
            sequence.logits[end - chunk.n_rows : end] = logits[end_row - chunk.n_rows : end_row]
            continue
        if sequence.prompt_logprobs is not None and chunk.n_rows:
            asked = _prompt_scores(chunk, end_row - chunk.n_rows)
            scores += asked
            scored += [(sampled[i], True)] * len(asked)
        if chunk.n_tokens == sequence.remaining:
            choices.append(_choice(chunk, logits, end_row - 1))
            chosen.append(i)
    if choices:
        tokens = _choose(logits, choices, sampler)
        for i, choice, token in zip(chosen, choices, tokens, strict=True):
            sampled[i].token = token
            wanted = chunks[i].sequence.params.logprobs
            if wanted is not None:
                scores.append(Score(choice.row, token, wanted))
                scored.append((sampled[i], False))
    if scores:
        _add_scores(logits, scores, scored, sampler)
    return sampled


def _choice(chunk: Chunk, logits: NDArray[np.float32], row: int) -> Choice:
    sequence = chunk.sequence
    tokens, adjustment, edits = sequence.tokens, sequence.adjustment, None
    if adjustment is not None:
        edits = adjustment.edits(logits[row], tokens, sequence.n_prompt)
    return Choice(row, sequence.params, sequence.seed, sequence.choice, len(tokens), edits)


def _choose(
    logits: NDArray[np.float32], choices: list[Choice], sampler: Sampler | None
) -> list[int]:
    """A token for every choice. Typical sampling needs an order of surprises: NumPy's in any case."""
    typical = [c.filters.typical_p < 1 and not c.filters.greedy for c in choices]
    if sampler is None or all(typical):
        return _REFERENCE.choose(logits, choices)
    if any(typical):
        tokens = iter(
            _choose(logits, [c for c, t in zip(choices, typical, strict=True) if not t], sampler)
        )
        return [
            _REFERENCE.choose(logits, [c])[0] if t else next(tokens)
            for c, t in zip(choices, typical, strict=True)
        ]
    tokens_of_all = sampler.choose(logits, choices)
    for choice, token in zip(choices, tokens_of_all, strict=True):
        if token < 0:
            best(edited(logits[choice.row], choice.edits))  # raises, and says why
    return tokens_of_all


def _prompt_scores(chunk: Chunk, row: int) -> list[Score]:
    """Of the prompt's tokens that follow the chunk's rows, the first of which is `row`."""
    sequence = chunk.sequence
    n = sequence.params.prompt_logprobs or 0
    end = sequence.computed + chunk.n_tokens
    positions = range(end - chunk.n_rows + 1, min(end + 1, sequence.n_prompt))
    return [Score(row + i, sequence.tokens[p], n) for i, p in enumerate(positions)]


def _add_scores(
    logits: NDArray[np.float32],
    scores: list[Score],
    owners: list[tuple[Sampled, bool]],
    sampler: Sampler | None,
) -> None:
    found = (sampler or _REFERENCE).score(logits, scores)
    for score, scored, (sampled, of_prompt) in zip(scores, found, owners, strict=True):
        if scored.total < 0:
            best(logits[score.row])  # raises, and says why
        listed = logprobs(scored, score.token)
        if of_prompt:
            sampled.prompt_logprobs.append(listed)
        else:
            sampled.logprobs = listed
