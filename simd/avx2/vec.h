/* vf16 as two ymm registers. */
#ifndef CPUINFER_VEC_H
#define CPUINFER_VEC_H
#include <bf16.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES 16
/* 6 tokens x 2 ymm = 12 accumulators, 2 weights, 1 broadcast: 15 of 16 registers. */
#define VF_GEMM_MR 6

typedef struct {
    __m256 lo, hi;
} vf16;

#define VF_MAP1(name, op)                  \
    static inline vf16 name(vf16 a) {      \
        return (vf16){op(a.lo), op(a.hi)}; \
    }
#define VF_MAP2(name, op)                              \
    static inline vf16 name(vf16 a, vf16 b) {          \
        return (vf16){op(a.lo, b.lo), op(a.hi, b.hi)}; \
    }

static inline vf16 vf_set1(float a) {
    __m256 v = _mm256_set1_ps(a);
    return (vf16){v, v};
}
static inline vf16 vf_zero(void) {
    return (vf16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline vf16 vf_load(const float *p) {
    return (vf16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void vf_store(float *p, vf16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
/* All-ones in lanes 0..n-1 of the low (first 0) or high (first 8) half. */
static inline __m256i vf_mask(int n, int first) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - first), lane);
}
static inline vf16 vf_load_n(const float *p, int n) {
    return (vf16){_mm256_maskload_ps(p, vf_mask(n, 0)), _mm256_maskload_ps(p + 8, vf_mask(n, 8))};
}
static inline void vf_store_n(float *p, vf16 a, int n) {
    _mm256_maskstore_ps(p, vf_mask(n, 0), a.lo);
    _mm256_maskstore_ps(p + 8, vf_mask(n, 8), a.hi);
}
VF_MAP2(vf_add, _mm256_add_ps)
VF_MAP2(vf_sub, _mm256_sub_ps)
VF_MAP2(vf_mul, _mm256_mul_ps)
VF_MAP2(vf_div, _mm256_div_ps)
VF_MAP2(vf_max, _mm256_max_ps)
VF_MAP2(vf_min, _mm256_min_ps)
VF_MAP1(vf_sqrt, _mm256_sqrt_ps)
static inline vf16 vf_fma(vf16 a, vf16 b, vf16 c) {
    return (vf16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline vf16 vf_abs(vf16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf16){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static inline vf16 vf_swap_pairs(vf16 a) {
    return (vf16){_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
}
static inline float vf_hsum(vf16 a) {
    __m256 s8 = _mm256_add_ps(a.lo, a.hi);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline float vf_hmax(vf16 a) {
    __m256 m8 = _mm256_max_ps(a.lo, a.hi);
    __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
static inline vf16 vf_first_n(vf16 a, vf16 b, int n) {
    return (vf16){_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(vf_mask(n, 0))),
                  _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(vf_mask(n, 8)))};
}
static inline __m256 vf_round_half(__m256 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VF_MAP1(vf_round, vf_round_half)
static inline __m256 vf_scale2_half(__m256 a, __m256 n) {
    __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
VF_MAP2(vf_scale2, vf_scale2_half)

static inline void vf_store_i8(int8_t *p, vf16 a) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline vf16 vf_load_i8(const int8_t *p) {
    __m128i b = _mm_loadu_si128((const __m128i *)p);
    return (vf16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                  _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}
static inline vf16 vf_load_u8(const uint8_t *p) {
    __m128i b = _mm_loadu_si128((const __m128i *)p);
    return (vf16){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)),
                  _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(b, 8)))};
}

static inline float f16_to_f32(uint16_t h) {
    return _cvtsh_ss(h);
}
static inline uint16_t f32_to_f16(float f) {
    return (uint16_t)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
}
static inline vf16 vf_load_f16(const uint16_t *p) {
    return (vf16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline void vf_store_f16(uint16_t *p, vf16 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256 vf_widen_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline vf16 vf_load_bf16(const uint16_t *p) {
    return (vf16){vf_widen_bf16(_mm_loadu_si128((const __m128i *)p)),
                  vf_widen_bf16(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline void vf_store_bf16(uint16_t *p, vf16 a) {
    float lanes[VF_LANES];
    vf_store(lanes, a);
    for (int i = 0; i < VF_LANES; i++)
        p[i] = f32_to_bf16(lanes[i]);
}
static inline void vf_load_bf16_pairs(const uint16_t *p, vf16 *even, vf16 *odd) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    __m256i lo = _mm256_loadu_si256((const __m256i *)p), hi = _mm256_loadu_si256((const __m256i *)(p + 16));
    *even = (vf16){_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
    *odd = (vf16){_mm256_castsi256_ps(_mm256_and_si256(lo, high)), _mm256_castsi256_ps(_mm256_and_si256(hi, high))};
}
#endif
