/* Integer dots of one block of 32 k: mr tokens x np panels of 16 rows. This header is the specification: another level
 * gives the same integers its own way. Codes come in the forms of codes.h; mr, np and the form are constants where this
 * is inlined. Activations are int8 in -127..127, token t's block at dot_row(x, t). dot[t * np + p] is panel p of token
 * t. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>

/* Most tokens and panels of one tile. */
#define DOT_MR 4
#define DOT_NP 1

/* 1 where forms of 8 bits are taken as code - 128, by a level with signed products: dot_block gives
 * sum((code - 128) * q) for them. */
#define DOT_SIGNED8 0

typedef struct {
    int32_t v[VF_LANES];
} vi16;

DOT_INLINE vi16 vi_set1(int32_t a) {
    vi16 r;
    VF_EACH r.v[i] = a;
    return r;
}
DOT_INLINE vi16 vi_sub(vi16 a, vi16 b) {
    VF_EACH a.v[i] -= b.v[i];
    return a;
}
DOT_INLINE vi16 vi_mul_pow2(vi16 a, int bits) {
    VF_EACH a.v[i] *= 1 << bits;
    return a;
}
DOT_INLINE vf16 vi_to_float(vi16 a) {
    vf16 r;
    VF_EACH r.v[i] = (float)a.v[i];
    return r;
}
/* Lane i: pairs[2i] * sums[0] + pairs[2i + 1] * sums[1]. */
DOT_INLINE vi16 vi_mul_pairs(const int16_t *pairs, const char *sums) {
    int16_t s[2];
    vi16 r;
    memcpy(s, sums, sizeof s);
    VF_EACH r.v[i] = pairs[2 * i] * s[0] + pairs[2 * i + 1] * s[1];
    return r;
}

/* The sum over k in [4 * begin, 4 * end) of code * q. */
DOT_INLINE vi16 dot_chunks(const int form, const uint8_t *block, const int8_t *q, int begin, int end) {
    vi16 sum = vi_set1(0);
    for (int c = begin; c < end; c++) {
        vc16 chunk = codes_chunk(form, block, c);
        VF_EACH for (int b = 0; b < 4; b++) sum.v[i] += chunk.v[4 * i + b] * q[4 * c + b];
    }
    return sum;
}
/* dot = sum(code * q) over the block. */
DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x) {
    for (int t = 0; t < mr; t++)
        for (int p = 0; p < np; p++)
            dot[t * np + p] = dot_chunks(form, blocks[p], (const int8_t *)dot_row(x, t), 0, 8);
}
/* dot = sc0 * sum(code * q) over the block's first half + sc1 * the same over the second; pairs[p][2r] and [2r + 1] are
 * sc0 and sc1 of row r. Forms of at most 6 bits, |sc| <= 128. */
DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    for (int t = 0; t < mr; t++)
        for (int p = 0; p < np; p++) {
            const int8_t *q = (const int8_t *)dot_row(x, t);
            vi16 first = dot_chunks(form, blocks[p], q, 0, 4), second = dot_chunks(form, blocks[p], q, 4, 8), sum;
            VF_EACH sum.v[i] = pairs[p][2 * i] * first.v[i] + pairs[p][2 * i + 1] * second.v[i];
            dot[t * np + p] = sum;
        }
}
#endif
