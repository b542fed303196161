/* As scalar/halves.h, scales multiplied in as floats: an int32 product is two operations of one port here, a float
 * product one of two. Codes less their offset are at most 32 in magnitude and scales 128: sums of 32 products stay
 * below 32 * 127 * 32 * 128 < 2^24. */
#ifndef CPUINFER_HALVES_H
#define CPUINFER_HALVES_H
#include <dot.h>

#define HALVES_STARTS 1

/* dot (+)= scale of a half * the integer dot over chunks 4 * half .. 4 * half + 3. */
DOT_INLINE void halves_add(const int mr, const int np, vf16 *dot, const uint8_t *const *blocks, const int form,
                           const int offset, const int16_t *const *pairs, dot_rows x, dot_rows s, const int half) {
    vi16 sums[DOT_MR * DOT_NP];
#pragma GCC unroll 8
    for (int t = 0; offset && t < mr; t++)
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            sums[t * np + p] = dot_broadcast(dot_row(s, t) + 4 * half);
#pragma GCC unroll 4
    for (int c = 4 * half; c < 4 * half + 4; c++)
        dot_chunk(mr, np, sums, c % 4 == 0 && !offset, blocks, form, c, x);
#pragma GCC unroll 2
    for (int p = 0; p < np; p++) {
        const __m512i both = _mm512_loadu_si512(pairs[p]);
        const __m512i own = _mm512_srai_epi32(half ? both : _mm512_slli_epi32(both, 16), 16);
        const vf16 scale = _mm512_cvtepi32_ps(own);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            vf16 *sum = &dot[t * np + p]; /* from +0, which a zero of either sign leaves as it is */
            *sum = vf_fma(_mm512_cvtepi32_ps(sums[t * np + p]), scale, half ? *sum : vf_zero());
        }
    }
}
DOT_INLINE void halves_floats(const int mr, const int np, vf16 *dot, const uint8_t *const *blocks, const int form,
                              const int offset, const int16_t *const *pairs, dot_rows x, dot_rows s) {
    halves_add(mr, np, dot, blocks, form, offset, pairs, x, s, 0);
    halves_add(mr, np, dot, blocks, form, offset, pairs, x, s, 1);
}
#endif
