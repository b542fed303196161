/* Integer dots of ARMv8.0, by widening multiplications. One quarter of the rows at a time: a token then needs 2
 * registers of int16 sums (a lane for each byte of a row) and 2 of int32, so that 6 tokens are 24 of the 32. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vi16.h>

#define DOT_MR 6
#define DOT_NP 1

/* Forms of 8 bits are taken as signed bytes. */
#define DOT_SIGNED8 1

typedef struct {
    int16x8_t low, high; /* rows 0 and 1, rows 2 and 3 */
} dot_words;
typedef struct {
    int32x4_t low, high;
} dot_longs;

/* Chunks whose products int16 holds: 8 * 31 * 127 = 31496, 4 * 63 * 127 = 32004, 2 * 128 * 127 = 32512. */
DOT_INLINE int dot_group(const int form) {
    return codes_bits(form) <= 5 ? 8 : codes_bits(form) == 6 ? 4 : 2;
}

/* sums[t] (+)= codes * four bytes of each token. */
DOT_INLINE void dot_add(int mr, dot_words *sums, int first, int8x16_t codes, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        int32_t four;
        memcpy(&four, dot_row(x, t), sizeof four);
        const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
        const int8x8_t low = vget_low_s8(codes), a_low = vget_low_s8(a);
        sums[t].low = first ? vmull_s8(low, a_low) : vmlal_s8(sums[t].low, low, a_low);
        sums[t].high = first ? vmull_high_s8(codes, a) : vmlal_high_s8(sums[t].high, codes, a);
    }
}
DOT_INLINE int32x4_t dot_rows_of(dot_words s) {
    return vpaddq_s32(vpaddlq_s16(s.low), vpaddlq_s16(s.high));
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x) {
    const int group = dot_group(form);
    dot_words sums[DOT_MR];
    dot_longs wide[DOT_MR];
    (void)np;
#pragma GCC unroll 4
    VF_QUARTERS {
#pragma GCC unroll 8
        for (int n = 0; n < 8; n++) {
            const int c = dot_order(form, n);
            dot_add(mr, sums, n % group == 0, dot_codes(form, blocks[0], c, i), dot_rows_next(x, 4 * c));
            if (group == 8 || n % group != group - 1)
                continue;
#pragma GCC unroll 8
            for (int t = 0; t < mr; t++) {
                wide[t].low = n < group ? vpaddlq_s16(sums[t].low) : vpadalq_s16(wide[t].low, sums[t].low);
                wide[t].high = n < group ? vpaddlq_s16(sums[t].high) : vpadalq_s16(wide[t].high, sums[t].high);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++)
            dot[t].v[i] = group == 8 ? dot_rows_of(sums[t]) : vpaddq_s32(wide[t].low, wide[t].high);
    }
}

DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    dot_words first[DOT_MR], second[DOT_MR];
    (void)np;
#pragma GCC unroll 4
    VF_QUARTERS {
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            dot_add(mr, first, c == 0, dot_codes(form, blocks[0], c, i), dot_rows_next(x, 4 * c));
            dot_add(mr, second, c == 0, dot_codes(form, blocks[0], c + 4, i), dot_rows_next(x, 16 + 4 * c));
        }
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++)
            dot[t].v[i] = dot_scaled(pairs[0], i, dot_rows_of(first[t]), dot_rows_of(second[t]));
    }
}
#endif
