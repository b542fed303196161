/* Integer dots of ARMv8.0, by widening multiplications: a quarter of a chunk (4 rows x 4 bytes) is one q register. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vi16.h>

/* A row keeps one partial sum for each byte (4 bits, int16) or two (8 bits, int32) until the end of a block, so a
 * token needs 8 registers: 3 tokens are 24 of the 32. */
#define DOT_MR 3
#define DOT_NP 1

/* 4 bits: codes are signed bytes as they stand, and int16 holds the 8 products of a lane: 8 * 15 * 127 = 15240. */
typedef struct {
    int16x8_t low[4], high[4]; /* rows 0, 1 and rows 2, 3 of each quarter */
} dot_sums4;

DOT_INLINE void dot_add4(int mr, dot_sums4 *sums, int i, int first, int8x16_t w, dot_rows x) {
#pragma GCC unroll 4
    for (int t = 0; t < mr; t++) {
        int8x16_t a = dot_broadcast(dot_row(x, t));
        dot_sums4 *s = &sums[t];
        s->low[i] =
            first ? vmull_s8(vget_low_s8(w), vget_low_s8(a)) : vmlal_s8(s->low[i], vget_low_s8(w), vget_low_s8(a));
        s->high[i] = first ? vmull_high_s8(w, a) : vmlal_high_s8(s->high[i], w, a);
    }
}
DOT_INLINE void dot_close4(int mr, vi16 *dot, const dot_sums4 *sums) {
#pragma GCC unroll 4
    for (int t = 0; t < mr; t++)
        VF_QUARTERS dot[t].v[i] = vpaddq_s32(vpaddlq_s16(sums[t].low[i]), vpaddlq_s16(sums[t].high[i]));
}
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_sums4 sums[DOT_MR];
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++)
#pragma GCC unroll 4
        VF_QUARTERS {
            int8x16_t w = vreinterpretq_s8_u8(vld1q_u8(codes[0] + 64 * c + 16 * i));
            dot_add4(mr, sums, i, c == 0, w, dot_rows_next(x, 4 * c));
        }
    dot_close4(mr, dot, sums);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_sums4 sums[DOT_MR];
    (void)np;
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
#pragma GCC unroll 4
        VF_QUARTERS {
            uint8x16_t both = vld1q_u8(codes[0] + 64 * c + 16 * i);
            dot_add4(mr, sums, i, c == 0, vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), dot_rows_next(x, 4 * c));
            dot_add4(mr, sums, i, 0, vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), dot_rows_next(x, 16 + 4 * c));
        }
    dot_close4(mr, dot, sums);
}

/* 8 bits: code - 128 is a signed byte; a product fits int16 (128 * 127), two do not: SADALP adds them as int32. */
#define DOT_SIGNED8 1
typedef struct {
    int32x4_t low[4], high[4];
} dot_sums8;

DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_sums8 sums[DOT_MR];
    (void)np;
    for (int t = 0; t < mr; t++)
        VF_QUARTERS sums[t].low[i] = sums[t].high[i] = vdupq_n_s32(0);
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++)
#pragma GCC unroll 4
        VF_QUARTERS {
            int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes[0] + 64 * c + 16 * i), vdupq_n_u8(128)));
#pragma GCC unroll 4
            for (int t = 0; t < mr; t++) {
                int8x16_t a = dot_broadcast(dot_row(x, t) + 4 * c);
                sums[t].low[i] = vpadalq_s16(sums[t].low[i], vmull_s8(vget_low_s8(w), vget_low_s8(a)));
                sums[t].high[i] = vpadalq_s16(sums[t].high[i], vmull_high_s8(w, a));
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < mr; t++)
        VF_QUARTERS dot[t].v[i] = vpaddq_s32(sums[t].low[i], sums[t].high[i]);
}
#endif
