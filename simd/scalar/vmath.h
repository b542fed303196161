/* Elementary functions on vf16: one source for every level, built on vec.h, so the bits agree by construction. */
#ifndef CPUINFER_VMATH_H
#define CPUINFER_VMATH_H
#include <vec.h>

/* exp(x) for x <= 88; x below -87 gives exp(-87), about 1.6e-38. NaN propagates as vf_max and vf_min define.
 * x = n ln2 + r, |r| <= ln2/2; the polynomial is the degree-6 Taylor-like minimax of Cephes expf. Relative error < 2^-22. */
static inline vf16 vf_exp(vf16 x) {
    x = vf_max(vf_min(x, vf_set1(88.0f)), vf_set1(-87.0f));
    vf16 n = vf_round(vf_mul(x, vf_set1(1.44269504088896341f)));
    vf16 r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf16 p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    vf16 one_plus_r = vf_add(r, vf_set1(1.0f));
    p = vf_fma(p, vf_mul(r, r), one_plus_r);
    return vf_scale2(p, n);
}

/* x / (1 + exp(-x)). */
static inline vf16 vf_silu(vf16 x) {
    vf16 e = vf_exp(vf_sub(vf_zero(), x));
    return vf_div(x, vf_add(vf_set1(1.0f), e));
}
#endif
