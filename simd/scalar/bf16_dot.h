/* One pair of k of a bf16 tile, mr tokens x np panels: sum[t * np + p] = fma(w_odd, x_odd, sum), then the even ones.
 * That is VDPBF16PS, bit for bit, where denormals are flushed. This header is the specification. */
#ifndef CPUINFER_BF16_DOT_H
#define CPUINFER_BF16_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* Most sums of a tile: there are two weight vectors at a time, so one sum less than for f32. */
#define BF16_MOST (VF_GEMM_MR - 1)
/* Bytes of a pair of activations: 8, two f32; or 4, two bf16 as a row has them. */
#define BF16_PAIR_BYTES 8

/* mr, np are constants where this is inlined; the panels are panel_bytes apart. */
DOT_INLINE void bf16_step(const int mr, const int np, vf16 *sum, const uint8_t *panel, int64_t panel_bytes,
                          dot_rows x) {
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        vf16 even, odd;
        vf_load_bf16_pairs((const uint16_t *)(const void *)(panel + p * panel_bytes), &even, &odd);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            float pair[2];
            memcpy(pair, dot_row(x, t), sizeof pair);
            sum[t * np + p] = vf_fma(odd, vf_set1(pair[1]), sum[t * np + p]);
            sum[t * np + p] = vf_fma(even, vf_set1(pair[0]), sum[t * np + p]);
        }
    }
}
#endif
