/* As scalar/bf16_dot.h, first the odd elements of all tokens, then the even ones, so that 6 tokens fit: 12 sums, 2
 * weights, a broadcast and the mask are the 16 registers. */
#ifndef CPUINFER_BF16_DOT_H
#define CPUINFER_BF16_DOT_H
#include <dot_rows.h>
#include <vec.h>

#define BF16_MOST 6
#define BF16_PAIR_BYTES 8

/* sum[t] = fma(w, x, sum): one f32 of each token. The empty instruction keeps the compiler from loading the factors of
 * all tokens first, which spills. */
DOT_INLINE void bf16_half_step(const int mr, const int np, vf16 *sum, vf16 w, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const __m256 factor = _mm256_broadcast_ss((const float *)(const void *)dot_row(x, t));
        sum[t * np].lo = _mm256_fmadd_ps(w.lo, factor, sum[t * np].lo);
        sum[t * np].hi = _mm256_fmadd_ps(w.hi, factor, sum[t * np].hi);
        __asm__ volatile("" : "+x"(sum[t * np].lo), "+x"(sum[t * np].hi));
    }
}

DOT_INLINE void bf16_step(const int mr, const int np, vf16 *sum, const uint8_t *panel, int64_t panel_bytes,
                          dot_rows x) {
    const __m256 high = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000u));
#pragma GCC unroll 4
    for (int p = 0; p < np; p++, panel += panel_bytes) {
        const float *pairs = (const float *)(const void *)panel;
        vf16 odd = {_mm256_and_ps(high, _mm256_loadu_ps(pairs)), _mm256_and_ps(high, _mm256_loadu_ps(pairs + 8))};
        bf16_half_step(mr, np, sum + p, odd, dot_rows_next(x, 4));
        __asm__ volatile("" : : : "memory"); /* read the panel again rather than keep it */
        vf16 even, unused;
        vf_load_bf16_pairs((const uint16_t *)(const void *)panel, &even, &unused);
        bf16_half_step(mr, np, sum + p, even, x);
    }
}
#endif
