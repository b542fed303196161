/* Integer dots with SDOT: a quarter of a chunk (4 rows x 4 bytes) is one q register. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vi16.h>

/* 5 tokens x 4 q registers of sums, 4 of codes, 5 broadcasts: 29 of 32. The f32 accumulators stay in L1. */
#define DOT_MR 5
#define DOT_NP 1

DOT_INLINE void dot_zero(int mr, vi16 *dot) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++)
        dot[t] = vi_set1(0);
}
/* dot[t] += 4 quarters of codes * four bytes of each token. */
DOT_INLINE void dot_add(int mr, vi16 *dot, const int8x16_t *codes, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        int8x16_t a = dot_broadcast(dot_row(x, t));
#pragma GCC unroll 4
        VF_QUARTERS dot[t].v[i] = vdotq_s32(dot[t].v[i], codes[i], a);
    }
}
DOT_INLINE void dot_chunks(int mr, vi16 *dot, const uint8_t *codes, uint8_t flip, dot_rows x) {
    dot_zero(mr, dot);
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        int8x16_t chunk[4];
#pragma GCC unroll 4
        VF_QUARTERS {
            uint8x16_t code = vld1q_u8(codes + 64 * c + 16 * i);
            chunk[i] = vreinterpretq_s8_u8(flip ? veorq_u8(code, vdupq_n_u8(flip)) : code);
        }
        dot_add(mr, dot, chunk, dot_rows_next(x, 4 * c));
    }
}
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    (void)np;
    dot_chunks(mr, dot, codes[0], 0, x);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    (void)np;
    dot_zero(mr, dot);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        int8x16_t low[4], high[4];
#pragma GCC unroll 4
        VF_QUARTERS {
            uint8x16_t both = vld1q_u8(codes[0] + 64 * c + 16 * i);
            low[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
            high[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
        }
        dot_add(mr, dot, low, dot_rows_next(x, 4 * c));
        dot_add(mr, dot, high, dot_rows_next(x, 16 + 4 * c));
    }
}

/* code - 128 is a signed byte. */
#define DOT_SIGNED8 1
DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    (void)np;
    dot_chunks(mr, dot, codes[0], 128, x);
}
#endif
