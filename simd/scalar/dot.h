/* Integer dots of one 32-block: mr tokens x np panels of 16 rows. This header is the specification: another level
 * gives the same integers its own way. Codes come as r16k4 stores them (docs/design.md section 2), in three forms:
 *   nibbles  [4 chunks][16 rows][4] bytes, low nibble k = 4c + b, high nibble k = 16 + 4c + b
 *   codes4   [8 chunks][16 rows][4] bytes of 0..15
 *   codes8   [8 chunks][16 rows][4] bytes of 0..255
 * A level with signed products may take codes8 as code - 128 (DOT_SIGNED8 1), and says so to the caller.
 * Activations are int8 in -127..127, token t's block at x + t * stride. dot[t * np + p] is panel p of token t. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* Most tokens and panels of one tile. */
#define DOT_MR 4
#define DOT_NP 1

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

DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    for (int t = 0; t < mr; t++)
        for (int p = 0; p < np; p++) {
            const int8_t *q = (const int8_t *)(dot_row(x, t));
            vi16 sum = vi_set1(0);
            for (int k = 0; k < 32; k++)
                VF_EACH sum.v[i] += codes[p][k / 4 * 64 + i * 4 + k % 4] * q[k];
            dot[t * np + p] = sum;
        }
}
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_codes8(mr, np, dot, codes, x);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    for (int t = 0; t < mr; t++)
        for (int p = 0; p < np; p++) {
            const int8_t *q = (const int8_t *)(dot_row(x, t));
            vi16 sum = vi_set1(0);
            for (int k = 0; k < 16; k++)
                VF_EACH {
                    int code = codes[p][k / 4 * 64 + i * 4 + k % 4];
                    sum.v[i] += (code & 15) * q[k] + (code >> 4) * q[16 + k];
                }
            dot[t * np + p] = sum;
        }
}

/* 1 where dot_codes8 takes a code as code - 128. */
#define DOT_SIGNED8 0
#endif
