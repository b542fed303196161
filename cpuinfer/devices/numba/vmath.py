"""Elementary functions: those of simd/scalar/vmath.h, operation for operation, which says how near they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from cpuinfer.devices.numba.compiler import inlined
from cpuinfer.devices.numba.vectors import (
    vf_add,
    vf_div,
    vf_fma,
    vf_max,
    vf_min,
    vf_mul,
    vf_round,
    vf_scale2,
    vf_set1,
    vf_sub,
    vf_zero,
)

F = np.float32
_ONE = F(1)
_LOG2E, _LN2_HIGH, _LN2_LOW = F(1.44269504088896341), F(-0.693359375), F(2.12194440e-4)
_EXP = tuple(
    F(c)
    for c in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
_TANH_P = tuple(F(c) for c in (1.33191271e-8, 2.05835258e-5, 3.49403755e-3, 1.33797199e-1))
_TANH_Q = tuple(F(c) for c in (7.76204331e-7, 3.28309747e-4, 2.5871085e-2, 4.67130363e-1))
_LEAST_EXP, _MOST_EXP, _LEAST_POWER = F(-87), F(88), F(-126)
_MOST_TANH = F(9.02)


@inlined
def _exp_in_range(x: Any) -> Any:
    n = vf_max(vf_round(vf_mul(x, vf_set1(_LOG2E))), vf_set1(_LEAST_POWER))
    r = vf_fma(n, vf_set1(_LN2_HIGH), x)
    r = vf_fma(n, vf_set1(_LN2_LOW), r)
    p = vf_set1(_EXP[0])
    p = vf_fma(p, r, vf_set1(_EXP[1]))
    p = vf_fma(p, r, vf_set1(_EXP[2]))
    p = vf_fma(p, r, vf_set1(_EXP[3]))
    p = vf_fma(p, r, vf_set1(_EXP[4]))
    p = vf_fma(p, r, vf_set1(_EXP[5]))
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(_ONE))
    return vf_scale2(p, n)


@inlined
def vf_exp(x: Any) -> Any:
    """exp(x), finite and normal for every x but NaN."""
    return _exp_in_range(vf_max(vf_set1(_LEAST_EXP), vf_min(vf_set1(_MOST_EXP), x)))


@inlined
def vf_exp_nonpositive(x: Any) -> Any:
    """exp(x) for x <= 0: the same bits."""
    return _exp_in_range(vf_max(vf_set1(_LEAST_EXP), x))


@inlined
def vf_silu(x: Any) -> Any:
    """x / (1 + exp(-x))."""
    return vf_div(x, vf_add(vf_set1(_ONE), vf_exp(vf_sub(vf_zero(), x))))


@inlined
def vf_tanh(x: Any) -> Any:
    """tanh(x), never beyond 1 in size."""
    x = vf_max(vf_set1(-_MOST_TANH), vf_min(vf_set1(_MOST_TANH), x))
    z = vf_mul(x, x)
    one = vf_set1(_ONE)
    p = vf_set1(_TANH_P[0])
    p = vf_fma(p, z, vf_set1(_TANH_P[1]))
    p = vf_fma(p, z, vf_set1(_TANH_P[2]))
    p = vf_fma(p, z, vf_set1(_TANH_P[3]))
    p = vf_fma(p, z, one)
    q = vf_set1(_TANH_Q[0])
    q = vf_fma(q, z, vf_set1(_TANH_Q[1]))
    q = vf_fma(q, z, vf_set1(_TANH_Q[2]))
    q = vf_fma(q, z, vf_set1(_TANH_Q[3]))
    q = vf_fma(q, z, one)
    y = vf_div(vf_mul(x, p), q)
    return vf_max(vf_set1(-_ONE), vf_min(one, y))
