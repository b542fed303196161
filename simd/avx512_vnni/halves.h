/* As scalar/halves.h, scales multiplied in as floats: an int32 product is two operations of one port here, a float
 * product one of two. Codes less their offset are at most 32 in magnitude and scales 128: sums of 32 products stay
 * below 32 * 127 * 32 * 128 < 2^24. */
#ifndef CPUINFER_HALVES_H
#define CPUINFER_HALVES_H
#include <dot.h>

#define HALVES_STARTS 1

/* The first half's sum is counted up from the bits of the float 1.5 * 2^23, and so is the float 1.5 * 2^23 + sum, for
 * |sum| < 2^22. An FMA that takes 1.5 * 2^23 * scale off, exact as its result is, spares the conversion. */
#define HALVES_BIAS 0x4b400000

/* The integer dots over chunks 4 * half .. 4 * half + 3. */
DOT_INLINE void halves_sums(const int mr, const int np, vi16 *sums, const uint8_t *const *blocks, const int form,
                            const int offset, dot_rows x, dot_rows s, const int half) {
    const __m512i bias = _mm512_set1_epi32(HALVES_BIAS);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++)
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            sums[t * np + p] = offset ? dot_broadcast(dot_row(s, t) + 4 * half) : bias;
#pragma GCC unroll 4
    for (int c = 4 * half; c < 4 * half + 4; c++)
        dot_chunk(mr, np, sums, c == 4 && !offset, blocks, form, c, x);
}
DOT_INLINE void halves_floats(const int mr, const int np, vf16 *dot, const uint8_t *const *blocks, const int form,
                              const int offset, const int16_t *const *pairs, dot_rows x, dot_rows s) {
    vi16 sums[DOT_MR * DOT_NP];
    vf16 sc[2][DOT_NP];
#pragma GCC unroll 2
    for (int p = 0; p < np; p++) {
        const __m512i both = _mm512_loadu_si512(pairs[p]);
        sc[0][p] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(both, 16), 16));
        sc[1][p] = _mm512_cvtepi32_ps(_mm512_srai_epi32(both, 16));
    }
    halves_sums(mr, np, sums, blocks, form, offset, x, s, 0);
#pragma GCC unroll 2
    for (int p = 0; p < np; p++) {
        const vf16 less = vf_mul(sc[0][p], vf_set1(-12582912.0f));
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++)
            dot[t * np + p] = vf_fma(_mm512_castsi512_ps(sums[t * np + p]), sc[0][p], less);
    }
    halves_sums(mr, np, sums, blocks, form, offset, x, s, 1);
#pragma GCC unroll 2
    for (int p = 0; p < np; p++)
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            vf16 *sum = &dot[t * np + p]; /* +0 where both are 0: FMAs of exact results */
            *sum = vf_fma(_mm512_cvtepi32_ps(sums[t * np + p]), sc[1][p], *sum);
        }
}
#endif
