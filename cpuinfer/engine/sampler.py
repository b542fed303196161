"""From a row of logits to a token: pure functions, one row at a time, and the reference of every device's sampler.

Order: repetition penalty, frequency and presence penalty, logit bias, the mask of min_tokens; then
greedy takes the largest logit (the lowest id of equals). Otherwise temperature, top-k, typical,
top-p, min-p, and one draw. Each filter sees the distribution that the one before left,
renormalised; equals of the last one kept are kept too, so that a result never depends on a sorting
order. Probabilities are integer weights (numerics.py), a draw is 64 counter-based bits keyed by
(seed, choice, position): a sample depends on nothing else, and is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.sampling import Choice, Edits, Filters, Score, Scored
from cpuinfer.engine.adjust import Adjustment
from cpuinfer.engine.numerics import log_total, portion, weights
from cpuinfer.engine.random import random_bits

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

_GROUPS = 16  # top-k looks at 1/16 of the logits: maxima of groups of 16


class TokenLogprob(NamedTuple):
    """A token's natural log-probability and rank (1: the most likely) by the model itself."""

    token: int
    logprob: float
    rank: int


def adjust(
    logits: Logits,
    params: SamplingParams,
    tokens: Sequence[int],
    n_prompt: int,
    end_ids: Iterable[int],
) -> Logits:
    """Logits [V] after penalties, bias and mask; the argument itself where nothing applies.

    tokens: n_prompt of the prompt, then the generated. end_ids: tokens that would end the
    completion, masked until min_tokens have been generated.
    """
    return edited(logits, Adjustment(params, end_ids).edits(logits, tokens, n_prompt))


def edited(logits: Logits, edits: Edits | None) -> Logits:
    """Logits [V] with the edits in their places; the argument itself where there are none."""
    if edits is None:
        return logits
    logits = logits.copy()
    logits[edits.ids] = edits.values
    return logits


def best(logits: Logits) -> int:
    """The id of the largest of the logits [V], the lowest of equals.

    Raises ValueError where it is not finite.
    """
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):
        raise ValueError(
            f"logits: the largest is {logits[token]} (token {token}); the weights may be damaged"
        )
    return token


def top_ids(logits: Logits, k: int) -> Ids:
    """Ascending ids of the k largest logits and all equals of the k-th; all ids for other k."""
    size = logits.shape[0]
    if not 0 < k < size:
        return np.arange(size)
    columns = size // _GROUPS
    if k <= columns // 4:
        # k columns have maxima of at least `floor`, so k logits do: no lesser one is in the top k.
        maxima = logits[: columns * _GROUPS].reshape(_GROUPS, columns).max(axis=0)
        floor = np.partition(maxima, columns - k)[columns - k]
        ids = np.flatnonzero(logits >= floor)
    else:
        ids = np.arange(size)
    values = logits[ids]
    kept: Ids = ids[values >= np.partition(values, len(ids) - k)[len(ids) - k]]
    return kept


def top_p_floor(w: NDArray[np.int64], p: float) -> int:
    """The least weight that top-p keeps of weights [n].

    A token stays if those of larger weight together have less than p of all.
    """
    total = int(w.sum())
    # Those lighter than (1-p)/n of all have less than 1-p together, so none of them stays. What is
    # left to sort is few.
    heavy = w[np.flatnonzero(w >= (total - portion(p, total)) // len(w))]
    heavy = np.sort(heavy)[::-1]
    before = np.cumsum(heavy) - heavy
    return int(heavy[np.searchsorted(before, portion(p, total), side="left") - 1])


def typical_mask(w: NDArray[np.int64], gaps: NDArray[np.float64], p: float) -> NDArray[np.bool_]:
    """Which tokens locally typical sampling keeps: those of surprise nearest to the entropy.

    So many that they have p of all. w: weights [n]; gaps [n]: (top logit - logit) / temperature,
    so that surprise = gap + log sum exp(-gap).
    Source: Meister, Pimentel, Wiher and Cotterell, "Locally typical sampling", TACL 2023.
    """
    total = int(w.sum())
    surprise = gaps + log_total(total)
    with np.errstate(invalid="ignore"):
        terms = np.where(w > 0, surprise * w, 0.0)
    # cumsum adds in the order of ids; sum would choose its own.
    entropy = np.cumsum(terms)[-1] / total
    distance = np.abs(surprise - entropy)
    order = np.argsort(distance, kind="stable")
    last = int(np.searchsorted(np.cumsum(w[order]), portion(p, total), side="left"))
    keep: NDArray[np.bool_] = distance <= distance[order[min(last, len(w) - 1)]]
    return keep


def candidates(logits: Logits, params: Filters) -> tuple[Ids, NDArray[np.int64]]:
    """Ascending ids [n] that the filters keep, and their integer weights [n]."""
    top = float(logits[best(logits)])
    ids = top_ids(logits, params.top_k)
    values = logits if len(ids) == logits.shape[0] else logits[ids]
    w = weights(values, top, params.temperature)
    if params.typical_p < 1:
        gaps = np.subtract(top, values, dtype=np.float64) / params.temperature
        kept = np.flatnonzero(typical_mask(w, gaps, params.typical_p))
        ids, w = ids[kept], w[kept]
    floor = top_p_floor(w, params.top_p) if params.top_p < 1 else 0
    if params.min_p > 0:
        floor = max(floor, portion(params.min_p, int(w.max())))
    if floor > 0:
        kept = np.flatnonzero(w >= floor)
        ids, w = ids[kept], w[kept]
    return ids, w


def draw(logits: Logits, params: Filters, bits: int) -> int:
    """The token that 64 uniform bits choose from adjusted logits [V]."""
    if params.greedy:
        return best(logits)
    ids, w = candidates(logits, params)
    ends = w.cumsum()
    return int(ids[ends.searchsorted(bits * int(ends[-1]) >> 64, side="right")])


def sample(
    logits: Logits,
    params: SamplingParams,
    tokens: Sequence[int],
    n_prompt: int,
    end_ids: Iterable[int],
    seed: int,
    choice: int,
) -> int:
    """The token that follows `tokens` (n_prompt of the prompt, then the generated).

    Raises ValueError where the logits are not finite.
    """
    logits = adjust(logits, params, tokens, n_prompt, end_ids)
    bits = 0 if params.greedy else random_bits(seed, choice, len(tokens))
    return draw(logits, params, bits)


class NumpySampler:
    """The Sampler of devices that have none of their own, and the definition of what others do."""

    def choose(self, logits: Logits, choices: Sequence[Choice]) -> list[int]:
        """As devices.sampling.Sampler.choose, but raises ValueError where the largest logit is not finite."""
        return [
            draw(
                edited(logits[choice.row], choice.edits),
                choice.filters,
                0
                if choice.filters.greedy
                else random_bits(choice.seed, choice.choice, choice.position),
            )
            for choice in choices
        ]

    def score(self, logits: Logits, scores: Sequence[Score]) -> list[Scored]:
        """As devices.sampling.Sampler.score, but raises ValueError where the largest logit is not finite."""
        return [_score(logits[score.row], score) for score in scores]


def _score(row: Logits, score: Score) -> Scored:
    top = float(row[best(row)])
    ids = top_ids(row, score.n) if score.n > 0 else np.empty(0, np.int64)
    ids = ids[np.argsort(-row[ids], kind="stable")][: score.n]
    descending = -row[ids]
    return Scored(
        top,
        int(weights(row, top, 1.0).sum()),
        float(row[score.token]),
        1 + int((row > row[score.token]).sum()),
        ids.tolist(),
        (1 + descending.searchsorted(descending)).tolist(),
        row[ids].tolist(),
    )


def likeliest(scored: Scored) -> list[TokenLogprob]:
    """The most likely tokens that were listed, best first (equals: the lowest ids)."""
    log_z = log_total(scored.total)
    listed = zip(scored.ids, scored.ranks, scored.values, strict=True)
    return [TokenLogprob(i, value - scored.top - log_z, rank) for i, rank, value in listed]


def logprobs(scored: Scored, token: int) -> tuple[TokenLogprob, ...]:
    """The token, then the others of the most likely ones that were listed."""
    own = TokenLogprob(token, scored.value - scored.top - log_total(scored.total), scored.rank)
    return own, *(entry for entry in likeliest(scored) if entry.token != token)
