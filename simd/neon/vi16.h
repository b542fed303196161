/* 16 int32 as four q registers, and a token's four bytes in every lane. */
#ifndef CPUINFER_VI16_H
#define CPUINFER_VI16_H
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
DOT_INLINE int8x16_t dot_broadcast(const char *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
#endif
