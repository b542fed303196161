/* Integer dots with USMMLA: two rows x two tokens x 8 k at a time, for which chunks c and c + 1 are zipped. Codes are
 * unsigned bytes, whatever their form. A token without another takes USDOT. One quarter of the rows at a time, so that
 * 8 tokens need 16 registers for their activations and 8 for sums. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vi16.h>

#define DOT_MR 6
#define DOT_NP 1

/* Unsigned times signed is exact for every code. */
#define DOT_SIGNED8 0

enum { DOT_PAIRS = DOT_MR / 2 };

/* Two tokens' values: 8 k of the one, then of the other. */
typedef struct {
    int8x16_t v[4];
} dot_x2;
/* Sums of a quarter: row by row, the one token, then the other. */
typedef struct {
    int32x4_t low, high;
} dot_sum2;

/* Pairs of tokens in `pairs`; where mr is odd, the last token in `last`. */
DOT_INLINE void dot_load_pairs(int mr, dot_x2 *pairs, dot_x *last, dot_rows rows) {
    dot_x x[DOT_MR];
    dot_load(mr, x, rows);
#pragma GCC unroll 4
    for (int i = 0; i < mr / 2; i++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const int64x2_t one = vreinterpretq_s64_s8(x[2 * i].v[h]), two = vreinterpretq_s64_s8(x[2 * i + 1].v[h]);
            pairs[i].v[2 * h] = vreinterpretq_s8_s64(vzip1q_s64(one, two));
            pairs[i].v[2 * h + 1] = vreinterpretq_s8_s64(vzip2q_s64(one, two));
        }
    if (mr % 2)
        *last = x[mr - 1];
}
/* Keeps the compiler from taking a quarter's products before another's are done: it would spill their sums. */
DOT_INLINE void dot_pin_pairs(int mr, dot_x2 *pairs, dot_x *last) {
#pragma GCC unroll 4
    for (int i = 0; i < mr / 2; i++)
        __asm__ volatile("" : "+w"(pairs[i].v[0]), "+w"(pairs[i].v[1]), "+w"(pairs[i].v[2]), "+w"(pairs[i].v[3]));
    if (mr % 2)
        dot_pin(1, last);
}

DOT_INLINE int32x4_t dot_lane(int32x4_t sum, uint8x16_t codes, const dot_x *x, const int c) {
    switch (c % 4) {
    case 0:
        return vusdotq_laneq_s32(sum, codes, x->v[c / 4], 0);
    case 1:
        return vusdotq_laneq_s32(sum, codes, x->v[c / 4], 1);
    case 2:
        return vusdotq_laneq_s32(sum, codes, x->v[c / 4], 2);
    default:
        return vusdotq_laneq_s32(sum, codes, x->v[c / 4], 3);
    }
}
/* sums (+)= quarter i of chunks c and c + 1 times those of the tokens. */
DOT_INLINE void dot_add(int mr, dot_sum2 *sums, int32x4_t *last_sum, const uint8_t *block, const int form, const int c,
                        const int i, const dot_x2 *pairs, const dot_x *last) {
    const uint8x16_t one = codes_chunk(form, block, c).v[i], two = codes_chunk(form, block, c + 1).v[i];
    const uint32x4_t a = vreinterpretq_u32_u8(one), b = vreinterpretq_u32_u8(two);
    const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(a, b)), high = vreinterpretq_u8_u32(vzip2q_u32(a, b));
#pragma GCC unroll 4
    for (int p = 0; p < mr / 2; p++) {
        sums[p].low = vusmmlaq_s32(sums[p].low, low, pairs[p].v[c / 2]);
        sums[p].high = vusmmlaq_s32(sums[p].high, high, pairs[p].v[c / 2]);
        __asm__ volatile("" : "+w"(sums[p].low), "+w"(sums[p].high));
    }
    if (mr % 2)
        *last_sum = dot_lane(dot_lane(*last_sum, one, last, c), two, last, c + 1);
}
/* Quarter i of two tokens, each row's sums apart. */
DOT_INLINE int32x4_t dot_even(dot_sum2 s) {
    return vuzp1q_s32(s.low, s.high);
}
DOT_INLINE int32x4_t dot_odd(dot_sum2 s) {
    return vuzp2q_s32(s.low, s.high);
}
DOT_INLINE int32x4_t dot_start(const dot_rows *starts, int t) {
    return starts ? vld1q_dup_s32((const int32_t *)(const void *)dot_row(*starts, t)) : vdupq_n_s32(0);
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows rows,
                          const dot_rows *starts) {
    dot_x2 pairs[DOT_PAIRS];
    dot_x last;
    int32x4_t begin[DOT_PAIRS], last_begin = vdupq_n_s32(0);
    (void)np;
    dot_load_pairs(mr, pairs, &last, rows);
#pragma GCC unroll 4
    for (int p = 0; p < mr / 2; p++)
        begin[p] = vzip1q_s32(dot_start(starts, 2 * p), dot_start(starts, 2 * p + 1));
    if (mr % 2)
        last_begin = dot_start(starts, mr - 1);
#pragma GCC unroll 4
    VF_QUARTERS {
        dot_sum2 sums[DOT_PAIRS];
        int32x4_t last_sum = last_begin;
        dot_pin_pairs(mr, pairs, &last);
#pragma GCC unroll 4
        for (int p = 0; p < mr / 2; p++)
            sums[p] = (dot_sum2){begin[p], begin[p]};
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) /* both nibbles of a byte in turn */
            dot_add(mr, sums, &last_sum, blocks[0], form, form >= CODES_U4 ? 2 * n : n / 2 * 2 + n % 2 * 4, i, pairs,
                    &last);
#pragma GCC unroll 4
        for (int p = 0; p < mr / 2; p++) {
            dot[2 * p].v[i] = dot_even(sums[p]);
            dot[2 * p + 1].v[i] = dot_odd(sums[p]);
        }
        if (mr % 2)
            dot[mr - 1].v[i] = last_sum;
    }
}

DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *scales, dot_rows rows) {
    const int32x4_t zero = vdupq_n_s32(0);
    dot_x2 pairs[DOT_PAIRS];
    dot_x last;
    (void)np;
    dot_load_pairs(mr, pairs, &last, rows);
#pragma GCC unroll 4
    VF_QUARTERS {
        int32x4_t whole[DOT_MR];
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            dot_sum2 sums[DOT_PAIRS];
            int32x4_t last_sum = zero;
            dot_pin_pairs(mr, pairs, &last);
#pragma GCC unroll 4
            for (int p = 0; p < mr / 2; p++)
                sums[p] = (dot_sum2){zero, zero};
#pragma GCC unroll 2
            for (int c = 4 * h; c < 4 * h + 4; c += 2)
                dot_add(mr, sums, &last_sum, blocks[0], form, c, i, pairs, &last);
#pragma GCC unroll 8
            for (int t = 0; t < mr; t++) {
                const int32x4_t half = t == mr - 1 && mr % 2 ? last_sum
                                       : t % 2               ? dot_odd(sums[t / 2])
                                                             : dot_even(sums[t / 2]);
                if (h == 0)
                    whole[t] = half;
                else
                    dot[t].v[i] = dot_scaled(scales[0], i, whole[t], half);
            }
        }
    }
}
#endif
