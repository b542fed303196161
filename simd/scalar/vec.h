/* vf16: a virtual vector of 16 floats. This header is the specification: every other level gives the same bits.
 * Each operation is one IEEE-754 operation per lane (round to nearest even, denormals flushed by the team's mode).
 * Unspecified: the sign and payload of a NaN that arithmetic made; in the team's mode, whether vf_max, vf_min and
 * vf_hmax give a denormal operand as it is or as zero, and whether a result that rounds up to the least normal number
 * from below is that number (x86 looks after rounding) or zero (Arm looks before). */
#ifndef CPUINFER_VEC_H
#define CPUINFER_VEC_H
#include <bf16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES 16
/* Micro-tile of the f32 GEMM: tokens x vf16 that fit the register file with one weight vector and one broadcast. */
#define VF_GEMM_MR 4

typedef struct {
    float v[VF_LANES];
} vf16;

#define VF_EACH for (int i = 0; i < VF_LANES; i++)

static inline vf16 vf_set1(float a) {
    vf16 r;
    VF_EACH r.v[i] = a;
    return r;
}
static inline vf16 vf_zero(void) {
    return vf_set1(0.0f);
}
static inline vf16 vf_load(const float *p) {
    vf16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
static inline void vf_store(float *p, vf16 a) {
    memcpy(p, a.v, sizeof a.v);
}
/* First n lanes (0 < n <= 16); the others are zero. Reads no byte past p + n. */
static inline vf16 vf_load_n(const float *p, int n) {
    vf16 r = vf_zero();
    memcpy(r.v, p, (size_t)n * sizeof(float));
    return r;
}
static inline void vf_store_n(float *p, vf16 a, int n) {
    memcpy(p, a.v, (size_t)n * sizeof(float));
}
static inline vf16 vf_add(vf16 a, vf16 b) {
    VF_EACH a.v[i] += b.v[i];
    return a;
}
static inline vf16 vf_sub(vf16 a, vf16 b) {
    VF_EACH a.v[i] -= b.v[i];
    return a;
}
static inline vf16 vf_mul(vf16 a, vf16 b) {
    VF_EACH a.v[i] *= b.v[i];
    return a;
}
static inline vf16 vf_div(vf16 a, vf16 b) {
    VF_EACH a.v[i] /= b.v[i];
    return a;
}
/* a * b + c, rounded once. */
static inline vf16 vf_fma(vf16 a, vf16 b, vf16 c) {
    VF_EACH c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
/* a > b ? a : b per lane (b where either is NaN), as MAXPS does. */
static inline vf16 vf_max(vf16 a, vf16 b) {
    VF_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline vf16 vf_min(vf16 a, vf16 b) {
    VF_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline vf16 vf_abs(vf16 a) {
    VF_EACH a.v[i] = fabsf(a.v[i]);
    return a;
}
/* Lanes 2i and 2i+1 change places. */
static inline vf16 vf_swap_pairs(vf16 a) {
    vf16 r;
    VF_EACH r.v[i] = a.v[i ^ 1];
    return r;
}
/* The fixed reduction tree: lane i with i+8, then i+4, i+2, i+1. */
static inline float vf_hsum(vf16 a) {
    for (int h = 8; h > 0; h /= 2)
        for (int i = 0; i < h; i++)
            a.v[i] += a.v[i + h];
    return a.v[0];
}
static inline float vf_hmax(vf16 a) {
    for (int h = 8; h > 0; h /= 2)
        for (int i = 0; i < h; i++)
            a.v[i] = a.v[i] > a.v[i + h] ? a.v[i] : a.v[i + h];
    return a.v[0];
}
/* Lanes 0..n-1 keep a, the others take b (0 <= n <= 16). */
static inline vf16 vf_first_n(vf16 a, vf16 b, int n) {
    VF_EACH a.v[i] = i < n ? a.v[i] : b.v[i];
    return a;
}
/* Nearest whole number, ties to even; |a| < 2^22. */
static inline vf16 vf_round(vf16 a) {
    VF_EACH a.v[i] = rintf(a.v[i]);
    return a;
}
/* a * 2^n for whole n in [-126, 127]: one multiplication by an exactly built power. */
static inline vf16 vf_scale2(vf16 a, vf16 n) {
    VF_EACH {
        uint32_t bits = (uint32_t)((int32_t)n.v[i] + 127) << 23;
        float power;
        memcpy(&power, &bits, sizeof power);
        a.v[i] *= power;
    }
    return a;
}
static inline vf16 vf_sqrt(vf16 a) {
    VF_EACH a.v[i] = sqrtf(a.v[i]);
    return a;
}
/* 16 bytes: each lane to int8, nearest even; |a| < 127.5. A NaN lane gives an unspecified byte. */
static inline void vf_store_i8(int8_t *p, vf16 a) {
    VF_EACH p[i] = (int8_t)(fabsf(a.v[i]) < 127.5f ? rintf(a.v[i]) : 0.0f);
}
/* 16 int8 to float, exactly. */
static inline vf16 vf_load_i8(const int8_t *p) {
    vf16 r;
    VF_EACH r.v[i] = (float)p[i];
    return r;
}
static inline vf16 vf_load_u8(const uint8_t *p) {
    vf16 r;
    VF_EACH r.v[i] = (float)p[i];
    return r;
}

/* f16 <-> f32, scalar. Subnormal halves convert exactly; the way back rounds to nearest even. */
static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu, bits;
    float f;
    if (exponent == 0) {
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | (mantissa << 13);
    if (exponent == 31 && mantissa) /* NaN, quieted */
        bits |= 0x00400000u;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint16_t f32_to_f16(float f) {
    uint32_t bits, sign, magnitude;
    memcpy(&bits, &f, sizeof bits);
    sign = (bits >> 16) & 0x8000u;
    magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN, quieted */
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below the least normal half: count steps of 2^-24 */
        float steps;
        memcpy(&steps, &magnitude, sizeof steps);
        return (uint16_t)(sign | (uint32_t)rintf(steps * 0x1p24f));
    }
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}
static inline vf16 vf_load_f16(const uint16_t *p) {
    vf16 r;
    VF_EACH r.v[i] = f16_to_f32(p[i]);
    return r;
}
static inline void vf_store_f16(uint16_t *p, vf16 a) {
    VF_EACH p[i] = f32_to_f16(a.v[i]);
}
static inline vf16 vf_load_bf16(const uint16_t *p) {
    vf16 r;
    VF_EACH r.v[i] = bf16_to_f32(p[i]);
    return r;
}
static inline void vf_store_bf16(uint16_t *p, vf16 a) {
    VF_EACH p[i] = f32_to_bf16(a.v[i]);
}
/* 16 pairs of bf16 ([16][2]): the even and the odd elements as two vectors. */
static inline void vf_load_bf16_pairs(const uint16_t *p, vf16 *even, vf16 *odd) {
    VF_EACH {
        even->v[i] = bf16_to_f32(p[2 * i]);
        odd->v[i] = bf16_to_f32(p[2 * i + 1]);
    }
}
#endif
