"""What samples of speed say: medians, spread, and the interval of a ratio, without assuming a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

CONFIDENCE = 0.95
_EXACT_PAIRS = 2500
"""Up to so many pairs the distribution of U is counted; beyond, it is near enough to normal."""


@dataclass(frozen=True)
class Summary:
    """Median, least, most, and the median absolute deviation from the median (MAD), all of the samples' unit."""

    median: float
    min: float
    max: float
    mad: float


def summary(samples: Sequence[float]) -> Summary:
    """Raises ValueError for no samples."""
    if not samples:
        raise ValueError("no samples: run at least one round")
    middle = median(samples)
    return Summary(middle, min(samples), max(samples), median(abs(s - middle) for s in samples))


@dataclass(frozen=True)
class Ratio:
    """How much larger one side's samples are than another's.

    ratio: of the medians. low, high: the interval of at least `confidence` (exactly that of the test) for the factor
    between both sides; None where the samples are too few for any. differs: whether the interval leaves out 1.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float | None

    @property
    def differs(self) -> bool | None:
        """Whether the difference exceeds the noise of the samples; None where they are too few to say."""
        if self.low is None or self.high is None:
            return None
        return self.low > 1 or self.high < 1


def ratio(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """ours / theirs, and its interval from the inverted Mann-Whitney test.

    Hodges and Lehmann 1963; Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 4.3: of the sorted n * m
    pairwise ratios, the k-th from either end, k the largest with 2 P(U < k) <= 1 - confidence. It holds for samples of
    any distribution, as long as both sides' differ by a factor only. Raises ValueError for samples that are missing or
    not positive.
    """
    if not ours or not theirs or min(*ours, *theirs) <= 0:
        raise ValueError(
            f"a ratio needs positive samples on both sides, got {list(ours)}, {list(theirs)}"
        )
    value = median(ours) / median(theirs)
    pairs = sorted(a / b for a in ours for b in theirs)
    k, tail = _rank(len(ours), len(theirs), (1 - confidence) / 2)
    if k == 0:
        return Ratio(value, None, None, None)
    return Ratio(value, pairs[k - 1], pairs[-k], 1 - 2 * tail)


def least_samples(confidence: float = CONFIDENCE) -> int:
    """The least number of samples of both sides for which there is an interval."""
    n = 1
    while _rank(n, n, (1 - confidence) / 2)[0] == 0:
        n += 1
    return n


def _rank(n: int, m: int, alpha: float) -> tuple[int, float]:
    """(the largest k with P(U < k) <= alpha, that probability), U of samples of n and m without a difference."""
    if n * m > _EXACT_PAIRS:
        spread = math.sqrt(n * m * (n + m + 1) / 12)
        k = max(0, math.floor(n * m / 2 + spread * _normal_quantile(alpha)))
        return k, alpha
    counts = _orders(n, m)
    total = math.comb(n + m, n)
    below, k = 0, 0
    while below + counts[k] <= alpha * total:
        below += counts[k]
        k += 1
    return k, below / total


@lru_cache(maxsize=64)
def _orders(n: int, m: int) -> tuple[int, ...]:
    """How many of the orders of n and m values have U = 0, 1, ... n * m: the Gaussian binomial's coefficients."""
    # prod (1 - q^(m+i)) / (1 - q^i) for i = 1 .. n
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for at in range(n * m, m + i - 1, -1):
            counts[at] -= counts[at - m - i]
        for at in range(i, n * m + 1):
            counts[at] += counts[at - i]
    return tuple(counts)


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
