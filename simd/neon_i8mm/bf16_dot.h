/* As scalar/bf16_dot.h with BFMLALT and BFMLALB, each an FMA of the odd or even elements under the mode that FMLA obeys
 * too (Arm Architecture Reference Manual; BFDOT and BFMMLA round in other ways). Rows are taken as they are. */
#ifndef CPUINFER_BF16_DOT_H
#define CPUINFER_BF16_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* 6 tokens x 4 sums, 4 weights and a broadcast: 29 of the 32 registers. */
#define BF16_MOST 6
#define BF16_PAIR_BYTES 4

DOT_INLINE void bf16_step(const int mr, const int np, vf16 *sum, const uint8_t *panel, int64_t panel_bytes,
                          dot_rows x) {
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const uint8_t *at = panel + p * panel_bytes;
        bfloat16x8_t w[4];
        VF_QUARTERS w[i] = vreinterpretq_bf16_u8(vld1q_u8(at + 16 * i));
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            uint32_t pair;
            memcpy(&pair, dot_row(x, t), sizeof pair);
            const bfloat16x8_t factor = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
            vf16 *to = &sum[t * np + p];
            VF_QUARTERS to->v[i] = vbfmlaltq_f32(to->v[i], w[i], factor);
            VF_QUARTERS to->v[i] = vbfmlalbq_f32(to->v[i], w[i], factor);
        }
    }
}
#endif
