/* vf16 as four q registers. */
#ifndef CPUINFER_VEC_H
#define CPUINFER_VEC_H
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES 16
/* 6 tokens x 4 q registers = 24 accumulators, 4 weights, 1 broadcast: 29 of 32 registers. */
#define VF_GEMM_MR 6

typedef struct {
    float32x4_t v[4];
} vf16;

#define VF_QUARTERS for (int i = 0; i < 4; i++)
#define VF_MAP1(name, op)                \
    static inline vf16 name(vf16 a) {    \
        VF_QUARTERS a.v[i] = op(a.v[i]); \
        return a;                        \
    }
#define VF_MAP2(name, op)                        \
    static inline vf16 name(vf16 a, vf16 b) {    \
        VF_QUARTERS a.v[i] = op(a.v[i], b.v[i]); \
        return a;                                \
    }

static inline vf16 vf_set1(float a) {
    float32x4_t v = vdupq_n_f32(a);
    return (vf16){{v, v, v, v}};
}
static inline vf16 vf_zero(void) {
    return vf_set1(0.0f);
}
static inline vf16 vf_load(const float *p) {
    return (vf16){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
static inline void vf_store(float *p, vf16 a) {
    VF_QUARTERS vst1q_f32(p + 4 * i, a.v[i]);
}
static inline vf16 vf_load_n(const float *p, int n) {
    float lanes[VF_LANES] = {0};
    if (n == VF_LANES)
        return vf_load(p);
    memcpy(lanes, p, (size_t)n * sizeof(float));
    return vf_load(lanes);
}
static inline void vf_store_n(float *p, vf16 a, int n) {
    float lanes[VF_LANES];
    if (n == VF_LANES) {
        vf_store(p, a);
        return;
    }
    vf_store(lanes, a);
    memcpy(p, lanes, (size_t)n * sizeof(float));
}
VF_MAP2(vf_add, vaddq_f32)
VF_MAP2(vf_sub, vsubq_f32)
VF_MAP2(vf_mul, vmulq_f32)
VF_MAP2(vf_div, vdivq_f32)
VF_MAP1(vf_sqrt, vsqrtq_f32)
VF_MAP1(vf_abs, vabsq_f32)
VF_MAP1(vf_swap_pairs, vrev64q_f32)
VF_MAP1(vf_round, vrndnq_f32)
/* FMAX and FMIN order zeros and pass NaN on; the contract is that of a comparison and a choice. */
static inline float32x4_t vf_max_quarter(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline float32x4_t vf_min_quarter(float32x4_t a, float32x4_t b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
VF_MAP2(vf_max, vf_max_quarter)
VF_MAP2(vf_min, vf_min_quarter)
static inline vf16 vf_fma(vf16 a, vf16 b, vf16 c) {
    VF_QUARTERS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
static inline float vf_hsum(vf16 a) {
    float32x4_t s4 = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}
static inline float vf_hmax(vf16 a) {
    float32x4_t m4 = vf_max_quarter(vf_max_quarter(a.v[0], a.v[2]), vf_max_quarter(a.v[1], a.v[3]));
    float m[4];
    vst1q_f32(m, m4);
    m[0] = m[0] > m[2] ? m[0] : m[2];
    m[1] = m[1] > m[3] ? m[1] : m[3];
    return m[0] > m[1] ? m[0] : m[1];
}
static inline vf16 vf_first_n(vf16 a, vf16 b, int n) {
    static const int32_t lane[4] = {0, 1, 2, 3};
    VF_QUARTERS {
        uint32x4_t keep = vcltq_s32(vld1q_s32(lane), vdupq_n_s32(n - 4 * i));
        a.v[i] = vbslq_f32(keep, a.v[i], b.v[i]);
    }
    return a;
}
static inline float32x4_t vf_scale2_quarter(float32x4_t a, float32x4_t n) {
    int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(a, vreinterpretq_f32_s32(bits));
}
VF_MAP2(vf_scale2, vf_scale2_quarter)

static inline void vf_store_i8(int8_t *p, vf16 a) {
    int16x8_t lo = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.v[0])), vqmovn_s32(vcvtnq_s32_f32(a.v[1])));
    int16x8_t hi = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.v[2])), vqmovn_s32(vcvtnq_s32_f32(a.v[3])));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)));
}
static inline vf16 vf_load_i8(const int8_t *p) {
    int8x16_t b = vld1q_s8(p);
    int16x8_t lo = vmovl_s8(vget_low_s8(b)), hi = vmovl_s8(vget_high_s8(b));
    return (vf16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo))),
                   vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)))}};
}
static inline vf16 vf_load_u8(const uint8_t *p) {
    uint8x16_t b = vld1q_u8(p);
    uint16x8_t lo = vmovl_u8(vget_low_u8(b)), hi = vmovl_u8(vget_high_u8(b));
    return (vf16){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(lo))),
                   vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(hi)))}};
}

static inline float f16_to_f32(uint16_t h) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}
static inline uint16_t f32_to_f16(float f) {
    return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(f))), 0);
}
static inline float bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint16x4_t vf_narrow_bf16(float32x4_t a) {
    uint32x4_t bits = vreinterpretq_u32_f32(a), high = vshrq_n_u32(bits, 16);
    uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    uint32x4_t words = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    uint32x4_t number = vcleq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x7f800000));
    uint32x4_t normal = vtstq_u32(bits, vdupq_n_u32(0x7f800000));
    words = vbslq_u32(number, words, vorrq_u32(high, vdupq_n_u32(0x40)));
    words = vbslq_u32(normal, words, vandq_u32(high, vdupq_n_u32(0x8000)));
    return vmovn_u32(words);
}
static inline uint16_t f32_to_bf16(float f) {
    return vget_lane_u16(vf_narrow_bf16(vdupq_n_f32(f)), 0);
}
static inline float32x4_t vf_widen_bf16(uint16x4_t h) {
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}
static inline vf16 vf_load_f16(const uint16_t *p) {
    vf16 r;
    VF_QUARTERS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
static inline void vf_store_f16(uint16_t *p, vf16 a) {
    VF_QUARTERS vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
static inline vf16 vf_load_bf16(const uint16_t *p) {
    vf16 r;
    VF_QUARTERS r.v[i] = vf_widen_bf16(vld1_u16(p + 4 * i));
    return r;
}
static inline void vf_store_bf16(uint16_t *p, vf16 a) {
    VF_QUARTERS vst1_u16(p + 4 * i, vf_narrow_bf16(a.v[i]));
}
static inline void vf_load_bf16_pairs(const uint16_t *p, vf16 *even, vf16 *odd) {
    VF_QUARTERS {
        uint32x4_t pairs = vld1q_u32((const uint32_t *)(const void *)(p + 8 * i));
        even->v[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
        odd->v[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
}
#endif
