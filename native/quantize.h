/* Stores of f32 results into rows of any activation type, quantising where the type asks for it. */
#ifndef CPUINFER_QUANTIZE_H
#define CPUINFER_QUANTIZE_H
#include <vec.h>

#include "kernels.h"

enum { CI_BLOCK = 32 }; /* values that share a q8 scale */

/* Below this maximum a block's scale amax / 127 would be denormal, which the team's mode flushes: the block is zero. */
#define CI_Q8_MIN 0x1p-119f

/* Quantise block i of a row: q = nearest even of x * (127 / amax), scale = amax / 127. An infinite or NaN element makes
 * the block's values unspecified. */
static inline void ci_quantize_block(ci_q8_row row, int32_t i, vf16 lo, vf16 hi) {
    float amax = vf_hmax(vf_max(vf_abs(lo), vf_abs(hi)));
    int zero = amax < CI_Q8_MIN;
    vf16 inverse = vf_set1(zero ? 0.0f : 127.0f / amax);
    int8_t *q = row.q + i * CI_BLOCK;
    vf_store_i8(q, vf_mul(lo, inverse));
    vf_store_i8(q + VF_LANES, vf_mul(hi, inverse));
    float scale = zero ? 0.0f : amax / 127.0f;
    float low = vf_hsum(vf_load_i8(q)), high = vf_hsum(vf_load_i8(q + VF_LANES));
    row.scales[i] = scale;
    row.sums[i] = (int32_t)(low + high);
    row.scaled[i] = scale * (low + high);
    row.half_sums[2 * i] = (int16_t)low;
    row.half_sums[2 * i + 1] = (int16_t)high;
}

/* Store outputs at .. at+15 (those below n) of a row of n values, type CI_F32 or CI_BF16; at % 16 == 0. The last
 * store of an odd bf16 row also zeroes its padding element. */
static inline void ci_store16(void *row, int32_t type, int32_t n, int32_t at, vf16 x) {
    int32_t left = n - at < VF_LANES ? n - at : VF_LANES;
    if (type == CI_F32) {
        float *out = (float *)row + at;
        if (left == VF_LANES)
            vf_store(out, x);
        else
            vf_store_n(out, x, left);
        return;
    }
    uint16_t *out = (uint16_t *)row + at;
    if (left == VF_LANES) {
        vf_store_bf16(out, x);
        return;
    }
    uint16_t halves[VF_LANES];
    vf_store_bf16(halves, vf_first_n(x, vf_zero(), left));
    memcpy(out, halves, (size_t)(left + left % 2) * sizeof *out);
}

/* Store outputs at .. at+31 (those below n) of a row of n values of type CI_F32, CI_BF16 or CI_Q8A; at % 32 == 0. A q8
 * row has whole blocks only (n % 32 == 0), and one call makes one block. */
static inline void ci_store32(void *row, int32_t type, int32_t n, int32_t at, vf16 lo, vf16 hi) {
    if (type == CI_Q8A) {
        ci_quantize_block(ci_q8_row_at(row, n), at / CI_BLOCK, lo, hi);
        return;
    }
    ci_store16(row, type, n, at, lo);
    if (at + VF_LANES < n)
        ci_store16(row, type, n, at + VF_LANES, hi);
}
#endif
