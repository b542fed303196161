/* As scalar/bf16_dot.h with VDPBF16PS, which adds the odd product, then the even one, each as an FMA that flushes
 * denormals (Intel 64 and IA-32 Software Developer's Manual, volume 2). Rows are taken as they are. */
#ifndef CPUINFER_BF16_DOT_H
#define CPUINFER_BF16_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* 6 tokens x 4 panels: 24 sums, 4 weights and a broadcast of the 32 registers. */
#define BF16_MOST 24
#define BF16_PAIR_BYTES 4

DOT_INLINE void bf16_step(const int mr, const int np, vf16 *sum, const uint8_t *panel, int64_t panel_bytes,
                          dot_rows x) {
    __m512i w[4];
#pragma GCC unroll 4
    for (int p = 0; p < np; p++)
        w[p] = _mm512_loadu_si512(panel + p * panel_bytes);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        int32_t pair;
        memcpy(&pair, dot_row(x, t), sizeof pair);
        const __m512i factor = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int p = 0; p < np; p++)
            sum[t * np + p] = _mm512_dpbf16_ps(sum[t * np + p], (__m512bh)w[p], (__m512bh)factor);
    }
}
#endif
