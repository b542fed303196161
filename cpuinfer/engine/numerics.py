"""exp and log that give one answer everywhere.

NumPy's and libm's differ between machines in the last bit. These use only IEEE-754 operations that
are correctly rounded (+ - * / and rounding to integers), one NumPy call each, and sums of integers,
which have no order.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

WEIGHT_BITS = 44
"""A weight is an integer, 2**44 for the most likely token."""
MAX_VOCAB = 1 << 18
"""Most tokens whose weights are summed: the sum stays within 2**62, exact in 64 bits."""

_STEPS = 64  # table entries per octave: the polynomial's argument stays below ln(2)/128
_OCTAVES = WEIGHT_BITS + 1  # further down every weight rounds to 0
_BLOCK = 8192  # elements worked on at once: three f64 arrays of them stay in a 256 KiB cache
_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453


def _table() -> NDArray[np.float64]:
    """2**(WEIGHT_BITS - i/_STEPS), correctly rounded, for i = 0 .. _STEPS * _OCTAVES."""
    with localcontext() as context:
        context.prec = 40
        octave = [float(Decimal(2) ** (Decimal(-i) / _STEPS)) for i in range(_STEPS)]
    entries = range(_STEPS * _OCTAVES + 1)
    return np.array([math.ldexp(octave[i % _STEPS], WEIGHT_BITS - i // _STEPS) for i in entries])


_TABLE = _table()
# exp(-x) for 0 <= |x| <= ln(2)/128 by its Taylor series: the first term left out is below 2**-44
_TAYLOR = (1 / 24, -1 / 6, 1 / 2, -1.0, 1.0)


def weights(values: NDArray[np.float32], top: float, temperature: float) -> NDArray[np.int64]:
    """round(2**44 * exp((values - top) / temperature)), i64 [n], for values [n] <= top.

    The error is at most 1, and 2**-41 of the result where the temperature is at least 1e-5.
    A value 31 temperatures below the top has weight 0: it would be drawn once in 2**44 times.
    """
    out = np.empty(values.shape[0], np.int64)
    scale = _STEPS * _LOG2_E / temperature
    for begin in range(0, values.shape[0], _BLOCK):
        block = values[begin : begin + _BLOCK]
        x = np.subtract(top, block, dtype=np.float64)
        x *= scale
        np.minimum(x, _STEPS * _OCTAVES, out=x)
        index = np.rint(x)
        x -= index
        x *= _LN_2 / _STEPS
        series = x * _TAYLOR[0]
        for coefficient in _TAYLOR[1:-1]:
            series += coefficient
            series *= x
        series += _TAYLOR[-1]
        series *= _TABLE.take(index.astype(np.intp))
        out[begin : begin + _BLOCK] = np.rint(series, out=series)
    return out


def log(x: float) -> float:
    """Natural logarithm of a positive finite number; the error is at most 2**-51 max(1, |log x|).

    log(m * 2**e) = e log 2 + 2 atanh((m - 1) / (m + 1)), sqrt(1/2) <= m < sqrt(2); series of atanh.
    """
    mantissa, exponent = math.frexp(x)
    if mantissa < 0.7071067811865476:
        mantissa, exponent = mantissa * 2, exponent - 1
    s = (mantissa - 1) / (mantissa + 1)
    square, series = s * s, 0.0
    for odd in range(25, 0, -2):
        series = series * square + 1 / odd
    return exponent * _LN_2 + 2 * s * series


def log_total(total: int) -> float:
    """log(total / 2**44): of a sum of weights, the log-sum-exp relative to the top value."""
    return log(math.ldexp(total, -WEIGHT_BITS))


def portion(p: float, total: int) -> int:
    """The least integer that is at least p * total, exactly."""
    numerator, denominator = p.as_integer_ratio()
    return -(-numerator * total // denominator)
