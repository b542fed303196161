"""What the logits of a step give: the next tokens, and the log-probabilities that were asked for."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.devices.sampling import Choice, Edits, Sampler, Score
from cpuinfer.engine.batch import Chunk
from cpuinfer.engine.grammar import GrammarError
from cpuinfer.engine.random import random_bits
from cpuinfer.engine.sampler import (
    NumpySampler,
    TokenLogprob,
    best,
    draw,
    edited,
    likeliest,
    logprobs,
)
from cpuinfer.engine.sequence import TokenLogprobs

_REFERENCE = NumpySampler()
_FEW = 2048
"""Allowed tokens up to which NumPy chooses among them alone, which takes it less time than masking all others."""

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Sampled:
    """What a chunk's rows gave: log-probabilities of prompt tokens, perhaps the next token, or why there is none; of a
    beam the likeliest next tokens.
    """

    token: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    likeliest: list[TokenLogprob] | None = None


def sample_step(
    chunks: ListLike[Chunk], logits: NDArray[np.float32], sampler: Sampler | None
) -> list[Sampled]:
    """What every chunk's rows of logits [R, V] give, by the device's sampler or else NumPy.

    A chunk's rows belong to the last n_rows of its tokens. Raises ValueError where logits are not finite.
    """
    sampled: list[Sampled] = []
    choices: list[Choice] = []
    masks: dict[int, Mask] = {}  # by the number of the choice
    chosen: list[
        tuple[Sampled, int | None]
    ] = []  # whose choices they are; how many to list beside them
    scores: list[Score] = []
    scored: list[tuple[Sampled, str]] = []
    end_row = 0
    for chunk in chunks:
        sequence, n_tokens, n_rows = chunk
        tokens, adjustment = sequence.tokens, sequence.adjustment
        end_row += n_rows
        result = Sampled()
        sampled.append(result)
        if sequence.logits is not None:
            end = sequence.computed + n_tokens
            sequence.logits[end - n_rows : end] = logits[end_row - n_rows : end_row]
            continue
        if sequence.prompt_logprobs is not None and n_rows:
            asked = _prompt_scores(chunk, end_row - n_rows)
            scores += asked
            scored += [(result, "prompt")] * len(asked)
        if sequence.computed + n_tokens < len(tokens):
            continue
        if sequence.search is not None:
            scores.append(Score(end_row - 1, 0, sequence.search.n_listed))
            scored.append((result, "beam"))
            continue
        if sequence.grammar is not None:
            try:
                masks[len(choices)] = sequence.grammar.allowed()
            except GrammarError as error:
                result.error = str(error)
                continue
        edits = None
        if adjustment is not None:
            edits = adjustment.edits(logits[end_row - 1], tokens, sequence.n_prompt)
        choices.append(
            Choice(end_row - 1, sequence.params, sequence.seed, sequence.choice, len(tokens), edits)
        )
        chosen.append((result, sequence.n_logprobs))
    if choices:
        drawn = (
            _choose_allowed(logits, choices, masks, sampler)
            if masks
            else _choose(logits, choices, sampler)
        )
        for (result, wanted), choice, token in zip(chosen, choices, drawn, strict=True):
            result.token = token
            if wanted is not None:
                scores.append(Score(choice.row, token, wanted))
                scored.append((result, "token"))
    if scores:
        _add_scores(logits, scores, scored, sampler)
    return sampled


def _choose_allowed(
    logits: NDArray[np.float32],
    choices: list[Choice],
    masks: dict[int, Mask],
    sampler: Sampler | None,
) -> list[int]:
    """A token for every choice, of those that its mask [V] allows, if it has one; some have.

    To mask is to set the other logits to -inf, whichever way is cheaper: few tokens are chosen from by themselves, as
    weights of 0 change neither a filter nor a draw.
    """
    tokens = [-1] * len(choices)
    many: list[int] = []
    for i, mask in masks.items():
        ids = mask.nonzero()[0]
        if len(ids) == 1:
            tokens[i] = int(ids[0])
        elif len(ids) <= _FEW:
            c = choices[i]
            bits = 0 if c.filters.greedy else random_bits(c.seed, c.choice, c.position)
            few = edited(logits[c.row], c.edits)[ids]
            tokens[i] = int(ids[draw(few, c.filters, bits)])
        else:
            many.append(i)
    free = [i for i in range(len(choices)) if i not in masks]
    if free:
        _place(tokens, free, _choose(logits, [choices[i] for i in free], sampler))
    if many:
        masked = np.full((len(many), logits.shape[1]), -np.inf, np.float32)
        among = []
        for row, i in enumerate(many):
            c, mask = choices[i], masks[i]
            np.copyto(masked[row], logits[c.row], where=mask)
            among.append(c._replace(row=row, edits=_allowed_edits(c.edits, mask)))
        _place(tokens, many, _choose(masked, among, sampler))
    return tokens


def _place(tokens: list[int], places: list[int], chosen: list[int]) -> None:
    for place, token in zip(places, chosen, strict=True):
        tokens[place] = token


def _allowed_edits(edits: Edits | None, mask: Mask) -> Edits | None:
    if edits is None:
        return None
    kept = mask[edits.ids]
    return Edits(edits.ids[kept], edits.values[kept])


def _choose(
    logits: NDArray[np.float32], choices: list[Choice], sampler: Sampler | None
) -> list[int]:
    """A token for every choice. Typical sampling needs an order of surprises: NumPy's in any case."""
    typical: list[int] = []
    for i, choice in enumerate(choices):
        if choice.filters.typical_p < 1 and not choice.filters.greedy:
            typical.append(i)
    if sampler is None or len(typical) == len(choices):
        return _REFERENCE.choose(logits, choices)
    if typical:
        others = [i for i in range(len(choices)) if i not in typical]
        tokens = [-1] * len(choices)
        _place(tokens, typical, _REFERENCE.choose(logits, [choices[i] for i in typical]))
        _place(tokens, others, _choose(logits, [choices[i] for i in others], sampler))
        return tokens
    chosen = sampler.choose(logits, choices)
    if min(chosen) < 0:
        choice = choices[chosen.index(min(chosen))]
        best(edited(logits[choice.row], choice.edits))  # raises, and says why
    return chosen


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
    owners: list[tuple[Sampled, str]],
    sampler: Sampler | None,
) -> None:
    found = (sampler or _REFERENCE).score(logits, scores)
    for score, scored, (sampled, of) in zip(scores, found, owners, strict=True):
        if scored.total < 0:
            best(logits[score.row])  # raises, and says why
        if of == "beam":
            sampled.likeliest = likeliest(scored)
        elif of == "prompt":
            if sampled.prompt_logprobs is None:
                sampled.prompt_logprobs = []
            sampled.prompt_logprobs.append(logprobs(scored, score.token))
        else:
            sampled.logprobs = logprobs(scored, score.token)
