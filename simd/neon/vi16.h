/* 16 int32 as four q registers, and what both kinds of integer dots share. */
#ifndef CPUINFER_VI16_H
#define CPUINFER_VI16_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>

typedef struct {
    int32x4_t v[4];
} vi16;

DOT_INLINE vi16 vi_set1(int32_t a) {
    int32x4_t v = vdupq_n_s32(a);
    return (vi16){{v, v, v, v}};
}
DOT_INLINE vi16 vi_sub(vi16 a, vi16 b) {
    VF_QUARTERS a.v[i] = vsubq_s32(a.v[i], b.v[i]);
    return a;
}
DOT_INLINE vi16 vi_mul_pow2(vi16 a, int bits) {
    VF_QUARTERS a.v[i] = vshlq_s32(a.v[i], vdupq_n_s32(bits));
    return a;
}
DOT_INLINE vf16 vi_to_float(vi16 a) {
    vf16 r;
    VF_QUARTERS r.v[i] = vcvtq_f32_s32(a.v[i]);
    return r;
}
DOT_INLINE vi16 vi_mul_pairs(const int16_t *pairs, const char *sums) {
    int16_t s[2];
    vi16 r;
    memcpy(s, sums, sizeof s);
    VF_QUARTERS {
        const int16x4x2_t rows = vld2_s16(pairs + 8 * i);
        r.v[i] = vmlal_n_s16(vmull_n_s16(rows.val[0], s[0]), rows.val[1], s[1]);
    }
    return r;
}

/* Quarter i (4 rows) of chunk c as signed bytes: codes of at most 6 bits as they stand, those of 8 as code - 128. */
DOT_INLINE int8x16_t dot_codes(const int form, const uint8_t *block, const int c, const int i) {
    const vc16 codes = codes_bits(form) == 8 ? codes_signed(form, block, c) : codes_chunk(form, block, c);
    return vreinterpretq_s8_u8(codes.v[i]);
}
/* The order in which chunks are taken: both nibbles of a byte in turn. */
DOT_INLINE int dot_order(const int form, const int i) {
    return form >= CODES_U4 ? i : i / 2 + i % 2 * 4;
}
/* Quarter i of first * sc0 + second * sc1. */
DOT_INLINE int32x4_t dot_scaled(const int16_t *pairs, const int i, int32x4_t first, int32x4_t second) {
    const int16x4x2_t scales = vld2_s16(pairs + 8 * i);
    return vmlaq_s32(vmulq_s32(first, vmovl_s16(scales.val[0])), second, vmovl_s16(scales.val[1]));
}
#endif
