"""From a row of logits to a token: pure functions, one row at a time.

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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.engine.numerics import log_total, portion, weights
from cpuinfer.engine.random import random_bits

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

_GROUPS = 16  # top-k looks at 1/16 of the logits: maxima of groups of 16


@dataclass(frozen=True)
class TokenLogprob:
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
    n_generated = len(tokens) - n_prompt
    penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
    masked = n_generated < params.min_tokens
    if not (penalised or masked or params.repetition_penalty != 1 or params.logit_bias):
        return logits
    logits = logits.copy()
    if params.repetition_penalty != 1:
        seen = np.array(tokens, np.int64)  # one that is there twice is written the same value twice
        values = logits[seen]
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if penalised and n_generated:
        counts = np.bincount(tokens[n_prompt:]).astype(np.float32)
        logits[: len(counts)] -= counts * np.float32(params.frequency_penalty)
        logits[: len(counts)] -= (counts > 0) * np.float32(params.presence_penalty)
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += np.float32(bias)
    if masked:
        logits[list(end_ids)] = -np.inf
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


def candidates(logits: Logits, params: SamplingParams) -> tuple[Ids, NDArray[np.int64]]:
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


def draw(logits: Logits, params: SamplingParams, bits: int) -> int:
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


def logprobs(logits: Logits, token: int, n: int) -> tuple[TokenLogprob, ...]:
    """The token, then the others of the n most likely by logits [V] (equals: the lowest ids).

    Raises ValueError where the logits are not finite.
    """
    top = float(logits[best(logits)])
    log_z = log_total(int(weights(logits, top, 1.0).sum()))
    ids = top_ids(logits, n) if n > 0 else np.empty(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:n]
    descending = -logits[ids]
    listed = [
        TokenLogprob(
            token, float(logits[token]) - top - log_z, 1 + int((logits > logits[token]).sum())
        )
    ]
    for i, rank in zip(ids.tolist(), descending.searchsorted(descending).tolist(), strict=True):
        if i != token:
            listed.append(TokenLogprob(i, float(logits[i]) - top - log_z, 1 + rank))
    return tuple(listed)
