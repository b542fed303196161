/* vc16 as four q registers of 4 rows each. */
#ifndef CPUINFER_BYTES_H
#define CPUINFER_BYTES_H
#include <arm_neon.h>
#include <dot_rows.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8x16_t v[4];
} vc16;

#define VC_QUARTERS for (int i = 0; i < 4; i++)

DOT_INLINE vc16 vc_load(const uint8_t *p) {
    return (vc16){{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
DOT_INLINE void vc_store(uint8_t *p, vc16 a) {
    VC_QUARTERS vst1q_u8(p + 16 * i, a.v[i]);
}
DOT_INLINE vc16 vc_or(vc16 a, vc16 b) {
    VC_QUARTERS a.v[i] = vorrq_u8(a.v[i], b.v[i]);
    return a;
}
DOT_INLINE vc16 vc_xor1(vc16 a, uint8_t byte) {
    VC_QUARTERS a.v[i] = veorq_u8(a.v[i], vdupq_n_u8(byte));
    return a;
}
/* Bytes are shifted alone, so a mask of all that a shift can leave is none. */
DOT_INLINE vc16 vc_shift_and(vc16 a, int right, uint8_t mask) {
    const int left = (right < 0 ? 255 << -right : 255 >> right) & 255;
    VC_QUARTERS {
        if (right > 0)
            a.v[i] = a.v[i] >> right;
        else if (right < 0)
            a.v[i] = a.v[i] << -right;
        if ((mask & left) != left)
            a.v[i] = vandq_u8(a.v[i], vdupq_n_u8(mask));
    }
    return a;
}
DOT_INLINE vc16 vc_lookup(vc16 a, const uint8_t *table) {
    VC_QUARTERS a.v[i] = vqtbl1q_u8(vld1q_u8(table), a.v[i]);
    return a;
}
DOT_INLINE void bytes_beside(int16_t *out, const uint8_t *a, const uint8_t *b, int bias) {
    const int16x8_t by = vdupq_n_s16((int16_t)bias);
    const uint8x16x2_t pairs = vzipq_u8(vld1q_u8(a), vld1q_u8(b));
    for (int i = 0; i < 2; i++) {
        vst1q_s16(out + 16 * i, vaddq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(pairs.val[i]))), by));
        vst1q_s16(out + 16 * i + 8, vaddq_s16(vreinterpretq_s16_u16(vmovl_high_u8(pairs.val[i])), by));
    }
}
#endif
