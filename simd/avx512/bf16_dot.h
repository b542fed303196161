/* As scalar/bf16_dot.h, first the odd elements of all panels, then the even ones: a tile of 6 x 4 then needs 24 sums,
 * 4 weights, a broadcast and the mask, 30 of the 32 registers. */
#ifndef CPUINFER_BF16_DOT_H
#define CPUINFER_BF16_DOT_H
#include <float_dot.h>

#define BF16_MOST FLOAT_MOST
#define BF16_PAIR_BYTES 8

DOT_INLINE void bf16_step(const int mr, const int np, vf16 *sum, const uint8_t *panel, int64_t panel_bytes,
                          dot_rows x) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    vf16 w[4];
#pragma GCC unroll 4
    for (int p = 0; p < np; p++)
        w[p] = _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(panel + p * panel_bytes), high));
    float_add(mr, np, sum, w, dot_rows_next(x, 4));
    __asm__ volatile("" : : : "memory"); /* read the panels again rather than keep them */
#pragma GCC unroll 4
    for (int p = 0; p < np; p++)
        w[p] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(panel + p * panel_bytes), 16));
    float_add(mr, np, sum, w, x);
}
#endif
