/* Elementary functions on vf16: one source for every level, built on vec.h, so the bits agree by construction. */
#ifndef CPUINFER_VMATH_H
#define CPUINFER_VMATH_H
#include <vec.h>

/* exp(x) for x in [-87, 88] or NaN. x = n ln2 + r, |r| <= ln2/2; polynomial of Cephes expf (degree 7, with 1 + r
 * exact). n is clamped after rounding only so that a NaN, which r carries on, cannot reach vf_scale2. */
static inline vf16 vf_exp_in_range(vf16 x) {
    vf16 n = vf_max(vf_round(vf_mul(x, vf_set1(1.44269504088896341f))), vf_set1(-126.0f));
    vf16 r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf16 p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
    return vf_scale2(p, n);
}

/* exp(x), relative error below 1.5 * 2^-24 (tested against float64). x below -87 gives exp(-87), about 1.6e-38, and x
 * above 88 gives exp(88), about 1.7e38: always finite and normal. exp(0) is exactly 1. NaN gives NaN. */
static inline vf16 vf_exp(vf16 x) {
    return vf_exp_in_range(vf_max(vf_set1(-87.0f), vf_min(vf_set1(88.0f), x)));
}

/* vf_exp(x) for x <= 0: the same bits, one operation less. */
static inline vf16 vf_exp_nonpositive(vf16 x) {
    return vf_exp_in_range(vf_max(vf_set1(-87.0f), x));
}

/* x / (1 + exp(-x)), relative error below 3 * 2^-24 for |x| <= 87. NaN gives NaN. */
static inline vf16 vf_silu(vf16 x) {
    vf16 e = vf_exp(vf_sub(vf_zero(), x));
    return vf_div(x, vf_add(vf_set1(1.0f), e));
}

/* tanh(x), relative error below 6 * 2^-24 (tested against float64), never beyond 1 in size. NaN gives NaN. x P(x^2) /
 * Q(x^2) with P and Q of degree 4, fitted to the least relative error up to 9.02, where tanh is 1 in f32. */
static inline vf16 vf_tanh(vf16 x) {
    x = vf_max(vf_set1(-9.02f), vf_min(vf_set1(9.02f), x));
    const vf16 z = vf_mul(x, x), one = vf_set1(1.0f);
    vf16 p = vf_set1(1.33191271e-8f);
    p = vf_fma(p, z, vf_set1(2.05835258e-5f));
    p = vf_fma(p, z, vf_set1(3.49403755e-3f));
    p = vf_fma(p, z, vf_set1(1.33797199e-1f));
    p = vf_fma(p, z, one);
    vf16 q = vf_set1(7.76204331e-7f);
    q = vf_fma(q, z, vf_set1(3.28309747e-4f));
    q = vf_fma(q, z, vf_set1(2.5871085e-2f));
    q = vf_fma(q, z, vf_set1(4.67130363e-1f));
    q = vf_fma(q, z, one);
    const vf16 y = vf_div(vf_mul(x, p), q);
    return vf_max(vf_set1(-1.0f), vf_min(one, y));
}
#endif
