/* One k of a tile of f32 or f16 weights, mr tokens x np panels: sum[t * np + p] = fma(w, x, sum). This header is the
 * specification; mr, np and half are constants where it is inlined. */
#ifndef CPUINFER_FLOAT_DOT_H
#define CPUINFER_FLOAT_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* Most sums of a tile: what fits the register file beside a weight and a broadcast. */
#define FLOAT_MOST VF_GEMM_MR

/* The panels are f16 (half) or f32, panel_bytes apart; a token's x is one f32. */
DOT_INLINE void float_step(const int mr, const int np, const int half, vf16 *sum, const uint8_t *panel,
                           int64_t panel_bytes, dot_rows x) {
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const void *at = panel + p * panel_bytes;
        vf16 w = half ? vf_load_f16(at) : vf_load(at);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            float one;
            memcpy(&one, dot_row(x, t), sizeof one);
            sum[t * np + p] = vf_fma(w, vf_set1(one), sum[t * np + p]);
        }
    }
}
#endif
