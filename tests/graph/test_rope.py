from __future__ import annotations

import math

import numpy as np
import pytest

from cpuinfer.graph.rope import MAX_POSITIONS, inverse_frequencies, rope_table, sin_cos


@pytest.mark.parametrize("base", [10000.0, 100000.0, 500000.0])
@pytest.mark.parametrize("dims", [2, 16, 64, 128])
def test_inverse_frequencies_are_correctly_rounded(base: float, dims: int) -> None:
    expected = [base ** (-2 * i / dims) for i in range(dims // 2)]
    np.testing.assert_allclose(inverse_frequencies(base, dims), expected, rtol=4 * 2**-53, atol=0)


def test_sin_cos_within_one_f32_ulp_of_libm() -> None:
    rng = np.random.default_rng(1)
    angles = np.concatenate(
        [
            [0.0, 1e-30, math.pi / 4, math.pi / 2, math.pi, 3 * math.pi / 2, 1e6 * math.pi],
            np.arange(2000) * (math.pi / 4),
            rng.uniform(0, 100, 5000),
            rng.uniform(0, MAX_POSITIONS, 5000),
        ]
    )
    for ours, libm in zip(sin_cos(angles), (math.sin, math.cos), strict=True):
        theirs = np.array([libm(angle) for angle in angles])
        ulp = np.spacing(np.abs(theirs).astype(np.float32)).astype(np.float64)
        assert (np.abs(ours.astype(np.float32) - theirs) < ulp).all()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2**-50)


def test_table_layout() -> None:
    frequencies = inverse_frequencies(10000.0, 8)
    table = rope_table(frequencies, 12, 1500)
    assert table.shape == (1500, 2, 12) and table.dtype == np.float32
    for position in (0, 1, 1023, 1024, 1499):
        for i, frequency in enumerate(frequencies):
            angle = position * frequency
            assert table[position, 0, 2 * i] == table[position, 0, 2 * i + 1]
            assert table[position, 1, 2 * i] == -table[position, 1, 2 * i + 1]
            assert table[position, 0, 2 * i] == pytest.approx(math.cos(angle), abs=1e-7)
            assert table[position, 1, 2 * i + 1] == pytest.approx(math.sin(angle), abs=1e-7)
    assert (table[:, 0, 8:] == 1).all() and (table[:, 1, 8:] == 0).all()


def test_a_shorter_table_is_the_beginning_of_a_longer_one() -> None:
    frequencies = inverse_frequencies(10000.0, 16)
    np.testing.assert_array_equal(
        rope_table(frequencies, 16, 100), rope_table(frequencies, 16, 1100)[:100]
    )


@pytest.mark.parametrize("positions", [0, -1, MAX_POSITIONS + 1])
def test_positions_out_of_range(positions: int) -> None:
    with pytest.raises(ValueError, match="positions"):
        rope_table(np.ones(2), 4, positions)


def test_frequencies_out_of_range() -> None:
    for bad in (np.array([2.0]), np.array([np.nan]), np.array([-1.0]), np.ones(3)):
        with pytest.raises(ValueError, match="RoPE"):
            rope_table(bad, 4, 8)
    with pytest.raises(ValueError, match="even"):
        inverse_frequencies(10000.0, 3)
    with pytest.raises(ValueError, match="above 0"):
        inverse_frequencies(float("nan"), 4)
