"""Statistics of samples, against tables and by simulation with a fixed seed."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from cpuinfer.cli.bench_stats import _orders, _rank, least_samples, ratio, summary


def test_summary() -> None:
    found = summary([3.0, 1.0, 10.0, 2.0, 4.0])
    assert (found.median, found.min, found.max, found.mad) == (3.0, 1.0, 10.0, 1.0)
    assert summary([5.0]).mad == 0
    with pytest.raises(ValueError, match="no samples"):
        summary([])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3), (4, 2)])
def test_orders_are_counted_as_by_enumeration(n: int, m: int) -> None:
    counts = [0] * (n * m + 1)
    for order in set(permutations("a" * n + "b" * m)):
        counts[sum(x == "a" and y == "b" for i, x in enumerate(order) for y in order[i + 1 :])] += 1
    assert list(_orders(n, m)) == counts


@pytest.mark.parametrize(
    # Critical values of U for a two-sided test at 5 %: Mann and Whitney's table, as in any textbook.
    ("n", "m", "critical"),
    [
        (4, 4, 0),
        (5, 5, 2),
        (5, 4, 1),
        (6, 6, 5),
        (7, 7, 8),
        (8, 8, 13),
        (10, 10, 23),
        (20, 20, 127),
    ],
)
def test_ranks_are_the_tables(n: int, m: int, critical: int) -> None:
    assert _rank(n, m, 0.025)[0] == critical + 1


def test_large_samples_go_on_where_exact_ones_end() -> None:
    exact, _ = _rank(50, 50, 0.025)
    normal, _ = _rank(51, 51, 0.025)
    assert exact < normal < 1.06 * exact


def test_three_samples_say_nothing() -> None:
    found = ratio([10.0, 11.0, 12.0], [1.0, 1.1, 1.2])
    assert found.ratio == pytest.approx(10)
    assert (found.low, found.high, found.differs) == (None, None, None)
    assert least_samples() == 4


def test_a_known_interval() -> None:
    found = ratio([2.0, 2.2, 2.4, 2.6, 2.8], [1.0, 1.0, 1.0, 1.0, 1.0])
    # k = 3 of 25 equal columns: the least and the largest value of ours
    assert (found.low, found.high) == (2.0, 2.8)
    assert found.confidence == pytest.approx(1 - 2 * 4 / math.comb(10, 5))
    assert found.differs is True
    swapped = ratio([1.0] * 5, [2.0, 2.2, 2.4, 2.6, 2.8])
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    assert swapped.low == pytest.approx(1 / 2.8)


def test_equal_samples_do_not_differ() -> None:
    assert ratio([3.0] * 5, [3.0] * 5).differs is False
    assert ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 2.1, 2.9, 4.1, 4.9]).differs is False


def test_the_interval_covers_the_factor_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered, runs = 0, 2000
    for _ in range(runs):
        a = 1.3 * rng.exponential(1, 6) + 1e-9
        b = rng.exponential(1, 6) + 1e-9
        found = ratio(a.tolist(), b.tolist())
        assert found.low is not None and found.high is not None
        covered += found.low <= 1.3 <= found.high
    # The exact level is 1 - 2 * 19 / 924 = 0.959; three standard errors of 2000 runs are 0.013.
    assert abs(covered / runs - 0.959) < 0.014


def test_samples_that_make_no_ratio() -> None:
    for ours, theirs in (([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0])):
        with pytest.raises(ValueError, match="positive samples"):
            ratio(ours, theirs)
