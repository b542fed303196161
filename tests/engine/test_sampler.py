"""The sampler against its definition: plain loops over exact integers and full sorts."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.sampling import Score
from cpuinfer.engine.numerics import weights
from cpuinfer.engine.random import random_bits
from cpuinfer.engine.sampler import (
    NumpySampler,
    TokenLogprob,
    adjust,
    best,
    candidates,
    draw,
    logprobs,
    sample,
    top_ids,
    top_p_floor,
)


def spec_candidates(logits: NDArray[np.float32], params: SamplingParams) -> dict[int, int]:
    """Token to weight after top-k, top-p and min-p as the module's docstring defines them."""
    top = float(logits.max())
    w = dict(enumerate(weights(logits, top, params.temperature).tolist()))
    if params.top_k > 0:
        kth = np.sort(logits)[::-1][min(params.top_k, len(logits)) - 1]
        w = {i: x for i, x in w.items() if logits[i] >= kth}
    if params.top_p < 1:
        total = sum(w.values())
        larger = {x: sum(y for y in w.values() if y > x) for x in set(w.values())}
        w = {i: x for i, x in w.items() if larger[x] < Fraction(params.top_p) * total}
    if params.min_p > 0:
        least = Fraction(params.min_p) * max(w.values())
        w = {i: x for i, x in w.items() if x >= least}
    return w


# Few different values, so that equals are the rule; sizes around the borders of the fast path of top-k.
values = st.one_of(st.integers(-6, 6).map(float), st.floats(-40, 40, width=32))
rows = st.lists(values, min_size=1, max_size=200).map(lambda v: np.array(v, np.float32))
filters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-3, 0.5, 1.0, 3.0]),
    top_k=st.integers(-1, 210),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)


@settings(max_examples=400)
@given(rows, filters)
def test_filters_equal_the_full_sort_definition(
    logits: NDArray[np.float32], params: SamplingParams
) -> None:
    ids, w = candidates(logits, params)
    assert dict(zip(ids.tolist(), w.tolist(), strict=True)) == spec_candidates(logits, params)
    assert (np.diff(ids) > 0).all()


@pytest.mark.parametrize("k", [1, 2, 40, 500, 781, 4000, 49_999, 50_000, 60_000])
def test_top_k_at_vocabulary_size(k: int) -> None:
    rng = np.random.default_rng(k)
    logits = np.round(rng.normal(0, 3, 50_000), 2).astype(np.float32)
    want = np.flatnonzero(logits >= np.sort(logits)[::-1][min(k, 50_000) - 1])
    assert top_ids(logits, k).tolist() == want.tolist()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_at_vocabulary_size(p: float) -> None:
    logits = np.random.default_rng(3).normal(0, 3, 50_000).astype(np.float32)
    params = SamplingParams(top_p=p)
    w = weights(logits, float(logits.max()), 1.0)
    order = np.argsort(-w, kind="stable")
    before = np.cumsum(w[order]) - w[order]
    kept = order[[Fraction(int(b)) < Fraction(p) * int(w.sum()) for b in before]]
    assert candidates(logits, params)[0].tolist() == np.flatnonzero(w >= w[kept].min()).tolist()


@given(rows, filters, st.integers(0, (1 << 64) - 1))
def test_draw_is_the_inverse_of_the_distribution_function(
    logits: NDArray[np.float32], params: SamplingParams, bits: int
) -> None:
    kept = spec_candidates(logits, params)
    threshold = bits * sum(kept.values()) // (1 << 64)
    for token in sorted(kept):
        threshold -= kept[token]
        if threshold < 0:
            break
    assert draw(logits, params, bits) == token


@given(rows)
def test_greedy_takes_the_lowest_of_the_largest(logits: NDArray[np.float32]) -> None:
    want = next(i for i, value in enumerate(logits) if value == max(logits))
    assert best(logits) == want
    assert draw(logits, SamplingParams(temperature=0), 123) == want


@pytest.mark.parametrize(
    ("p", "floor"), [(0.49, 4), (0.5, 4), (0.51, 2), (0.75, 2), (0.76, 1), (1e-9, 4)]
)
def test_top_p_stops_where_the_mass_is_reached_exactly(p: float, floor: int) -> None:
    assert top_p_floor(np.array([1, 4, 1, 2]), p) == floor


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.array([1, 2, bad, 0], np.float32)
    with pytest.raises(ValueError, match="token 2"):
        best(logits)
    with pytest.raises(ValueError, match="token 2"):
        sample(logits, SamplingParams(), [0], 1, (), 0, 0)
    with pytest.raises(ValueError, match="-inf"):
        best(np.full(4, -np.inf, np.float32))


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.1, 0.025], np.float32))
    params = SamplingParams()
    n, counts = 20_000, np.zeros(5)
    for position in range(n):
        counts[draw(logits, params, random_bits(1234, 0, position))] += 1
    p = np.exp(logits.astype(np.float64))
    chi2 = float(((counts - n * p) ** 2 / (n * p)).sum())
    assert chi2 < 18.47  # the 0.999 quantile of chi-squared with 4 degrees of freedom


def test_frequencies_after_filters_and_over_seeds() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.99)
    n, counts = 20_000, np.zeros(5)
    for seed in range(n):
        counts[draw(logits, params, random_bits(seed, 1, 7))] += 1
    p = np.array([0.16, 0.09, 0.04]) / 0.29
    assert counts[3:].sum() == 0
    chi2 = float(((counts[:3] - n * p) ** 2 / (n * p)).sum())
    assert chi2 < 13.82  # the 0.999 quantile with 2 degrees of freedom


def test_penalties() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5, 3.0], np.float32)
    params = SamplingParams(
        repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5, logit_bias={4: -1.5}
    )
    kept = logits.copy()
    got = adjust(logits, params, [0, 1, 2, 2, 2], 2, ())  # prompt 0 1, output 2 2 2
    assert (logits == kept).all(), "the row belongs to the device"
    assert got.tolist() == [1.0, -4.0, 0.5 - 3 * 0.25 - 0.5, 0.5, 1.5]


def test_min_tokens_masks_the_ends_and_nothing_else() -> None:
    logits = np.array([1.0, 5.0, 2.0, 4.0], np.float32)
    params = SamplingParams(temperature=0, min_tokens=2)
    assert sample(logits, params, [0, 0], 1, {1, 3}, 0, 0) == 2
    assert sample(logits, params, [0, 0, 0], 1, {1, 3}, 0, 0) == 1


def test_a_row_without_adjustments_is_not_copied() -> None:
    logits = np.ones(4, np.float32)
    assert adjust(logits, SamplingParams(temperature=0.5, top_k=2), [1, 2], 1, {3}) is logits


def listed_logprobs(logits: NDArray[np.float32], token: int, n: int) -> tuple[TokenLogprob, ...]:
    (scored,) = NumpySampler().score(logits[None], [Score(0, token, n)])
    return logprobs(scored, token)


@given(rows, st.integers(0, 8), st.data())
def test_logprobs(logits: NDArray[np.float32], n: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    listed = listed_logprobs(logits, token, n)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:n]
    assert [entry.token for entry in listed] == [token, *(i for i in order if i != token)]
    exact = logits.astype(np.longdouble)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    for entry in listed:
        assert entry.logprob == pytest.approx(float(exact[entry.token]), abs=1e-9)
        assert entry.rank == 1 + sum(value > logits[entry.token] for value in logits)


def test_typical_by_hand() -> None:
    # Entropy 1.157; |surprise - entropy|: 0.241, 0.047, 1.146, 2.532. The nearest first: 1, 0, 2, 3.
    logits = np.log(np.array([0.4, 0.3, 0.1, 0.025, 0.175], np.float32))
    p = np.exp(logits.astype(np.float64))
    entropy = -(p * logits).sum()
    order = np.argsort(np.abs(-logits - entropy))
    for mass in (0.2, 0.35, 0.7, 0.95):
        n = int((np.cumsum(p[order]) < mass).sum()) + 1
        ids, _ = candidates(logits, SamplingParams(typical_p=mass))
        assert ids.tolist() == sorted(order[:n].tolist())


def test_a_draw_over_a_large_vocabulary_has_no_bias_of_position() -> None:
    logits = np.zeros(100_000, np.float32)
    drawn = [draw(logits, SamplingParams(), random_bits(5, 0, i)) for i in range(300)]
    mean, deviation = 49_999.5, 100_000 / math.sqrt(12 * 300)
    assert abs(np.mean(drawn) - mean) < 3.3 * deviation
