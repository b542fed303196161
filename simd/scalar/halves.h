/* Dots of blocks whose halves have integer scales, as floats: integers below 2^24, so exactly. */
#ifndef CPUINFER_HALVES_H
#define CPUINFER_HALVES_H
#include <dot.h>

/* Whether dots start at -offset times the sum of each half's q, made once for a row, instead of losing that later. */
#define HALVES_STARTS 0
/* What the first half's start has beside. */
#define HALVES_BIAS 0

/* dot = sc0 * sum((code - offset) * q) over the block's first half + sc1 * the same over the second, never -0; blocks,
 * pairs and x as dot_halves takes them. s: of each token the sums of its halves as int16; with HALVES_STARTS and an
 * offset the two starts as int32. */
DOT_INLINE void halves_floats(const int mr, const int np, vf16 *dot, const uint8_t *const *blocks, const int form,
                              const int offset, const int16_t *const *pairs, dot_rows x, dot_rows s) {
    vi16 sums[DOT_MR * DOT_NP];
    dot_halves(mr, np, sums, blocks, form, pairs, x);
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        int16_t shifts[32]; /* scales times the offset: what a half's sum of q is multiplied with */
        for (int i = 0; offset && i < 32; i++)
            shifts[i] = (int16_t)(pairs[p][i] * offset);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            const int i = t * np + p;
            dot[i] = vi_to_float(offset ? vi_sub(sums[i], vi_mul_pairs(shifts, dot_row(s, t))) : sums[i]);
        }
    }
}
#endif
