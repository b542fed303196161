/* As scalar/float_dot.h, token by token. */
#ifndef CPUINFER_FLOAT_DOT_H
#define CPUINFER_FLOAT_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* 6 tokens x 4 panels: 24 sums, 4 weights and a broadcast of the 32 registers, and 2.4 products to a load. */
#define FLOAT_MOST 24

/* sum = fma(w[p], x, sum): one f32 of each token. The empty instruction keeps the compiler from loading the factors of
 * all tokens first, which spills. */
DOT_INLINE void float_add(const int mr, const int np, vf16 *sum, const vf16 *w, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const __m512 factor = _mm512_set1_ps(*(const float *)(const void *)dot_row(x, t));
#pragma GCC unroll 4
        for (int p = 0; p < np; p++)
            sum[t * np + p] = _mm512_fmadd_ps(w[p], factor, sum[t * np + p]);
        __asm__ volatile("" : "+v"(sum[t * np]));
    }
}

DOT_INLINE void float_step(const int mr, const int np, const int half, vf16 *sum, const uint8_t *panel,
                           int64_t panel_bytes, dot_rows x) {
    vf16 w[4];
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const void *at = panel + p * panel_bytes;
        w[p] = half ? vf_load_f16(at) : vf_load(at);
    }
    float_add(mr, np, sum, w, x);
}
#endif
