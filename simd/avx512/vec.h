/* vf16 as one zmm register. */
#ifndef CPUINFER_VEC_H
#define CPUINFER_VEC_H
#include <bf16.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF_LANES 16
/* 12 accumulators: more than the 8 FMAs in flight of two pipes with a latency of 4, and far from the 32 registers. */
#define VF_GEMM_MR 12

typedef __m512 vf16;

static inline vf16 vf_set1(float a) {
    return _mm512_set1_ps(a);
}
static inline vf16 vf_zero(void) {
    return _mm512_setzero_ps();
}
static inline vf16 vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf16 a) {
    _mm512_storeu_ps(p, a);
}
/* Ones in bits 0..n-1, 0 <= n <= 16. */
static inline __mmask16 vf_mask(int n) {
    return (__mmask16)((1u << n) - 1u);
}
static inline vf16 vf_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}
static inline void vf_store_n(float *p, vf16 a, int n) {
    _mm512_mask_storeu_ps(p, vf_mask(n), a);
}
static inline vf16 vf_add(vf16 a, vf16 b) {
    return _mm512_add_ps(a, b);
}
static inline vf16 vf_sub(vf16 a, vf16 b) {
    return _mm512_sub_ps(a, b);
}
static inline vf16 vf_mul(vf16 a, vf16 b) {
    return _mm512_mul_ps(a, b);
}
static inline vf16 vf_div(vf16 a, vf16 b) {
    return _mm512_div_ps(a, b);
}
static inline vf16 vf_fma(vf16 a, vf16 b, vf16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf16 vf_max(vf16 a, vf16 b) {
    return _mm512_max_ps(a, b);
}
static inline vf16 vf_min(vf16 a, vf16 b) {
    return _mm512_min_ps(a, b);
}
static inline vf16 vf_abs(vf16 a) {
    return _mm512_abs_ps(a);
}
static inline vf16 vf_sqrt(vf16 a) {
    return _mm512_sqrt_ps(a);
}
static inline vf16 vf_swap_pairs(vf16 a) {
    return _mm512_permute_ps(a, 0xb1);
}
static inline float vf_hsum(vf16 a) {
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline float vf_hmax(vf16 a) {
    __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
static inline vf16 vf_first_n(vf16 a, vf16 b, int n) {
    return _mm512_mask_mov_ps(b, vf_mask(n), a);
}
static inline vf16 vf_round(vf16 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf16 vf_scale2(vf16 a, vf16 n) {
    return _mm512_scalef_ps(a, n);
}

static inline void vf_store_i8(int8_t *p, vf16 a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}
static inline vf16 vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf16 vf_load_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static inline float f16_to_f32(uint16_t h) {
    return _cvtsh_ss(h);
}
static inline uint16_t f32_to_f16(float f) {
    return (uint16_t)_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
}
static inline vf16 vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline void vf_store_f16(uint16_t *p, vf16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf16 vf_load_bf16(const uint16_t *p) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
static inline void vf_store_bf16(uint16_t *p, vf16 a) {
    __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i words = _mm512_srli_epi32(rounded, 16);
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    words = _mm512_mask_or_epi32(words, nan, high, _mm512_set1_epi32(0x40));
    words = _mm512_mask_and_epi32(words, tiny, high, _mm512_set1_epi32(0x8000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(words));
}
static inline void vf_load_bf16_pairs(const uint16_t *p, vf16 *even, vf16 *odd) {
    __m512i pairs = _mm512_loadu_si512(p);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)));
}
#endif
