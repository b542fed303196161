/* Integer dots with SDOT by element: a block of a token is two registers, whose lanes are its chunks. One quarter of
 * the rows at a time, so that 6 tokens need 12 registers for their activations and 6 for sums. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vi16.h>

#define DOT_MR 6
#define DOT_NP 1

/* Forms of 8 bits are taken as signed bytes. */
#define DOT_SIGNED8 1

typedef struct {
    int8x16_t v[2];
} dot_x;

DOT_INLINE void dot_load(int mr, dot_x *x, dot_rows rows) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const int8_t *row = (const int8_t *)dot_row(rows, t);
        x[t] = (dot_x){{vld1q_s8(row), vld1q_s8(row + 16)}};
    }
}
DOT_INLINE int32x4_t dot_lane(int32x4_t sum, int8x16_t codes, const dot_x *x, const int c) {
    switch (c % 4) {
    case 0:
        return vdotq_laneq_s32(sum, codes, x->v[c / 4], 0);
    case 1:
        return vdotq_laneq_s32(sum, codes, x->v[c / 4], 1);
    case 2:
        return vdotq_laneq_s32(sum, codes, x->v[c / 4], 2);
    default:
        return vdotq_laneq_s32(sum, codes, x->v[c / 4], 3);
    }
}
/* sums[t] (+)= codes * chunk c of each token. */
DOT_INLINE void dot_add(int mr, int32x4_t *sums, int first, int8x16_t codes, const dot_x *x, const int c) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++)
        sums[t] = dot_lane(first ? vdupq_n_s32(0) : sums[t], codes, &x[t], c);
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows rows) {
    dot_x x[DOT_MR];
    int32x4_t sums[DOT_MR];
    (void)np;
    dot_load(mr, x, rows);
#pragma GCC unroll 4
    VF_QUARTERS {
#pragma GCC unroll 8
        for (int n = 0; n < 8; n++) {
            const int c = dot_order(form, n);
            dot_add(mr, sums, n == 0, dot_codes(form, blocks[0], c, i), x, c);
        }
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++)
            dot[t].v[i] = sums[t];
    }
}

DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows rows) {
    dot_x x[DOT_MR];
    int32x4_t first[DOT_MR], second[DOT_MR];
    (void)np;
    dot_load(mr, x, rows);
#pragma GCC unroll 4
    VF_QUARTERS {
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            dot_add(mr, first, c == 0, dot_codes(form, blocks[0], c, i), x, c);
            dot_add(mr, second, c == 0, dot_codes(form, blocks[0], c + 4, i), x, c + 4);
        }
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++)
            dot[t].v[i] = dot_scaled(pairs[0], i, first[t], second[t]);
    }
}
#endif
