import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpuinfer.engine.numerics import WEIGHT_BITS, log, log_total, portion, weights


@pytest.mark.parametrize("temperature", [1e-5, 0.3, 1.0, 7.5])
def test_weights_are_rounded_exponentials(temperature: float) -> None:
    rng = np.random.default_rng(1)
    gaps = np.concatenate([[0.0], rng.uniform(0, 33, 3000)]) * temperature
    values = (2.5 - gaps).astype(np.float32)
    got = weights(values, 2.5, temperature)
    assert got.dtype == np.int64 and got[0] == 1 << WEIGHT_BITS
    with localcontext() as context:
        context.prec = 40
        for value, weight in zip(values.tolist(), got.tolist(), strict=True):
            exact = ((Decimal(value) - Decimal(2.5)) / Decimal(temperature)).exp() * (
                1 << WEIGHT_BITS
            )
            assert abs(weight - exact) <= 1 + exact * Decimal(2.0**-41)


def test_far_and_masked_values_weigh_nothing() -> None:
    values = np.array([3.0, -29.0, -1e30, -np.inf], np.float32)
    assert weights(values, 3.0, 1.0).tolist() == [1 << WEIGHT_BITS, 0, 0, 0]


def test_weights_of_a_part_are_part_of_the_weights() -> None:
    values = np.random.default_rng(2).normal(0, 4, 20_000).astype(np.float32)
    part = np.flatnonzero(values > 1)
    top = float(values.max())
    assert (weights(values, top, 0.8)[part] == weights(values[part], top, 0.8)).all()


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_log(x: float) -> None:
    with localcontext() as context:
        context.prec = 40
        exact = Decimal(x).ln()
    assert abs(Decimal(log(x)) - exact) <= 2 * Decimal(2.0**-52) * max(1, abs(exact))


def test_log_total_of_one_is_zero() -> None:
    assert log_total(1 << WEIGHT_BITS) == 0.0
    assert log_total(3 << WEIGHT_BITS) == pytest.approx(math.log(3), abs=1e-15)


@given(st.floats(0, 1), st.integers(0, 1 << 62))
def test_portion_is_the_least_integer_not_below(p: float, total: int) -> None:
    n = portion(p, total)
    numerator, denominator = p.as_integer_ratio()
    assert n * denominator >= numerator * total > (n - 1) * denominator
