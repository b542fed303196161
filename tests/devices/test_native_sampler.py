"""The native sampler against NumPy's, number by number, over every level and several teams."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cpuinfer.config import SamplingParams
from cpuinfer.devices.arena import allocate
from cpuinfer.devices.sampling import Choice, Edits, Score
from cpuinfer.engine.adjust import Adjustment
from cpuinfer.engine.sampler import NumpySampler

try:
    from cpuinfer.devices.native_sampler import NativeSampler
    from cpuinfer.machine import isa

    LEVELS = [level.name for level in isa.levels() if level.runnable]
except ValueError:
    LEVELS = []
pytestmark = pytest.mark.skipif(not LEVELS, reason="no native library is installed")
TEAMS = [(level, threads) for level in LEVELS for threads in (1, 3)]
REFERENCE = NumpySampler()


def native(vocab: int, team: tuple[str, int]) -> NativeSampler:
    """Its memory holds 0xFF wherever it reads what it did not write."""

    def dirty(nbytes: int) -> NDArray[np.uint8]:
        memory = allocate(nbytes)
        memory[:] = 0xFF
        return memory

    return NativeSampler(isa.load(team[0]), vocab, team[1], dirty)


# Few different values, so that equals are the rule; masked ones; both zeros; steps of less than a unit of weight.
numbers = st.one_of(
    st.integers(-6, 6).map(float),
    st.floats(-40, 40, width=32),
    st.sampled_from([0.0, -0.0, -math.inf, 1e-40, -3e38]),
)
sizes = st.one_of(st.integers(1, 200), st.sampled_from([4095, 4096, 4097, 8300]))


@st.composite
def matrices(draw: Callable[..., object]) -> NDArray[np.float32]:
    """1 to 5 rows of logits with a finite maximum each."""
    vocab, rows = draw(sizes), draw(st.integers(1, 5))
    few = draw(st.lists(numbers, min_size=1, max_size=40))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    logits = rng.choice(np.array(few, np.float32), (rows, vocab)).astype(np.float32)
    smooth = rng.random(rows) < 0.5
    noise = rng.normal(0, rng.choice([0.1, 3.0, 30.0]), (rows, vocab)).astype(np.float32)
    logits[smooth] += noise[smooth]
    logits[np.arange(rows), rng.integers(0, vocab, rows)] = rng.choice([1.5, 41.0])
    return logits


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-5, 1e-3, 0.5, 0.8, 1.0, 3.0, 1e4]),
    top_k=st.one_of(st.integers(-1, 210), st.sampled_from([40, 128, 129, 4096, 5000, 10**9])),
    top_p=st.one_of(
        st.just(1.0), st.floats(1e-6, 1), st.sampled_from([5e-324, 1e-30, 0.9, 1 - 2**-53])
    ),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1), st.sampled_from([5e-324, 0.02, 1.0])),
)


@pytest.mark.parametrize("team", TEAMS)
@settings(max_examples=150, deadline=None)
@given(matrices(), st.lists(params, min_size=5, max_size=5), st.integers(0, 2**64 - 1))
def test_the_same_tokens_as_numpy(
    team: tuple[str, int], logits: NDArray[np.float32], filters: list[SamplingParams], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    choices = []
    for row in rng.permutation(len(logits)).tolist():
        ids = rng.permutation(logits.shape[1])[: rng.integers(0, 9)].astype(np.int32)
        edits = Edits(ids, rng.choice(np.array([-np.inf, 0.25, 42.0], np.float32), len(ids)))
        choices.append(Choice(row, filters[row], seed, row, int(rng.integers(2**31)), edits))
    finite = [c for c in choices if np.isfinite(_edited(logits, c).max())]
    kept = logits.tobytes()
    got = native(logits.shape[1], team).choose(logits, choices)
    assert logits.tobytes() == kept
    assert [t for t, c in zip(got, choices, strict=True) if c in finite] == REFERENCE.choose(
        logits, finite
    )
    assert all(t == -1 for t, c in zip(got, choices, strict=True) if c not in finite)


def _edited(logits: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    row = logits[choice.row].copy()
    row[choice.edits.ids] = choice.edits.values
    return row


@pytest.mark.parametrize("team", TEAMS)
@settings(max_examples=100, deadline=None)
@given(matrices(), st.integers(0, 2**32 - 1))
def test_the_same_scores_as_numpy(
    team: tuple[str, int], logits: NDArray[np.float32], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, vocab = logits.shape
    scores = [
        Score(
            int(rng.integers(rows)), int(rng.integers(vocab)), int(rng.choice([0, 1, 5, 20, 300]))
        )
        for _ in range(7)
    ]
    assert native(vocab, team).score(logits, scores) == REFERENCE.score(logits, scores)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("vocab", [1, 63, 49_152, 151_937])
def test_at_real_sizes(team: tuple[str, int], vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 3, (8, vocab)).astype(np.float32)
    filters = [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
        SamplingParams(temperature=0.8, top_p=0.9),
        SamplingParams(temperature=1.5, min_p=0.05),
        SamplingParams(top_k=20_000, top_p=0.999),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-9),
    ]
    sampler = native(vocab, team)
    for seed in range(10):
        choices = [Choice(i, f, seed, i, 7 * seed) for i, f in enumerate(filters)]
        assert sampler.choose(logits, choices) == REFERENCE.choose(logits, choices)
    scores = [Score(i, int(rng.integers(vocab)), 20) for i in range(8)]
    assert sampler.score(logits, scores) == REFERENCE.score(logits, scores)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_what_is_not_finite_is_reported(team: tuple[str, int], bad: float) -> None:
    logits = np.zeros((3, 5000), np.float32)
    logits[1, 4999] = bad
    logits[2] = -np.inf
    every = [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=3, top_p=0.5)]
    sampler = native(5000, team)
    for filters in every:
        tokens = sampler.choose(logits, [Choice(row, filters, 1, 0, 0) for row in range(3)])
        assert tokens[0] >= 0 and tokens[1:] == [-1, -1]
    assert [s.total for s in sampler.score(logits, [Score(r, 0, 3) for r in range(3)])][1:] == [
        -1,
        -1,
    ]


def test_adjusted_rows() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (1, 300)).astype(np.float32)
    wanted = SamplingParams(
        temperature=0.7,
        top_k=30,
        repetition_penalty=1.3,
        frequency_penalty=0.2,
        presence_penalty=-0.4,
        logit_bias={3: 4.0, 299: -2.0},
        min_tokens=4,
    )
    adjustment, tokens = Adjustment(wanted, {7, 8}), [1, 2, 3, 2]
    sampler = native(300, TEAMS[-1])
    for position in range(8):
        edits = adjustment.edits(logits[0], tokens, 2)
        fresh = Adjustment(wanted, {7, 8}).edits(logits[0], tokens, 2)
        assert edits is not None and fresh is not None
        assert dict(zip(*map(list, edits), strict=True)) == dict(
            zip(*map(list, fresh), strict=True)
        )
        choices = [Choice(0, wanted, 5, 0, position, edits)]
        (token,) = sampler.choose(logits, choices)
        assert [token] == REFERENCE.choose(logits, choices)
        tokens.append(token)


def test_calls_that_do_not_fit_are_refused() -> None:
    sampler, filters = native(100, TEAMS[0]), SamplingParams()
    logits = np.zeros((2, 100), np.float32)
    with pytest.raises(ValueError, match="more than 2 rows of 100"):
        sampler.choose(logits, [Choice(2, filters, 0, 0, 0)])
    with pytest.raises(ValueError, match="rows of 100, got"):
        sampler.score(logits[:, :99].copy(), [Score(0, 0, 1)])
    with pytest.raises(ValueError, match="contiguous f32"):
        sampler.choose(logits[:, ::2], [Choice(0, filters, 0, 0, 0)])
    with pytest.raises(ValueError, match="outside the vocabulary of 100"):
        sampler.score(logits, [Score(0, 100, 1)])
    with pytest.raises(ValueError, match="outside the vocabulary of 100"):
        edits = Edits(np.array([100], np.int32), np.zeros(1, np.float32))
        sampler.choose(logits, [Choice(0, filters, 0, 0, 0, edits)])
