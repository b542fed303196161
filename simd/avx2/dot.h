/* Integer dots with VPMADDUBSW and VPMADDWD. Half a chunk (8 rows x 4 bytes) is one ymm. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <vec.h>

#define DOT_INLINE static inline __attribute__((always_inline))

/* 6 tokens x 2 ymm of sums, 2 of codes, 1 broadcast, 1 product: the 16 registers. The f32 accumulators stay in L1. */
#define DOT_MR 6
#define DOT_NP 1

typedef struct {
    __m256i lo, hi;
} vi16;

DOT_INLINE vi16 vi_set1(int32_t a) {
    __m256i v = _mm256_set1_epi32(a);
    return (vi16){v, v};
}
DOT_INLINE vi16 vi_sub(vi16 a, vi16 b) {
    return (vi16){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
DOT_INLINE vi16 vi_mul_pow2(vi16 a, int bits) {
    return (vi16){_mm256_slli_epi32(a.lo, bits), _mm256_slli_epi32(a.hi, bits)};
}
DOT_INLINE vf16 vi_to_float(vi16 a) {
    return (vf16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
DOT_INLINE __m256i dot_broadcast(const char *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Keeps the compiler from reassociating integer sums: it would compute all products first, and spill them. */
DOT_INLINE void dot_pin(vi16 *sum) {
    __asm__("" : "+x"(sum->lo), "+x"(sum->hi));
}

/* sums[t] += codes * x, in int16: pairs of products of one block add up to 8 * 2 * 15 * 127 = 30480 at most. */
DOT_INLINE void dot_add4(int mr, vi16 *sums, int first, __m256i lo, __m256i hi, const char *x, int64_t stride) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        __m256i a = dot_broadcast(x + t * stride);
        __m256i plo = _mm256_maddubs_epi16(lo, a), phi = _mm256_maddubs_epi16(hi, a);
        sums[t].lo = first ? plo : _mm256_add_epi16(sums[t].lo, plo);
        sums[t].hi = first ? phi : _mm256_add_epi16(sums[t].hi, phi);
        dot_pin(&sums[t]);
    }
}
DOT_INLINE void dot_widen(int mr, vi16 *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        sums[t].lo = _mm256_madd_epi16(sums[t].lo, ones);
        sums[t].hi = _mm256_madd_epi16(sums[t].hi, ones);
    }
}
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, const char *x, int64_t stride) {
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        dot_add4(mr, dot, c == 0, _mm256_loadu_si256(chunk), _mm256_loadu_si256(chunk + 1), x + 4 * c, stride);
    }
    dot_widen(mr, dot);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, const char *x, int64_t stride) {
    const __m256i low = _mm256_set1_epi8(15);
    (void)np;
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        __m256i lo = _mm256_loadu_si256(chunk), hi = _mm256_loadu_si256(chunk + 1);
        dot_add4(mr, dot, c == 0, _mm256_and_si256(lo, low), _mm256_and_si256(hi, low), x + 4 * c, stride);
        dot_add4(mr, dot, 0, _mm256_and_si256(_mm256_srli_epi16(lo, 4), low),
                 _mm256_and_si256(_mm256_srli_epi16(hi, 4), low), x + 16 + 4 * c, stride);
    }
    dot_widen(mr, dot);
}

/* VPMADDUBSW saturates with codes above 128, so the bytes are widened: codes in registers, into the even and the odd
 * ones of each four; activations beforehand, to [8 chunks][even 2, odd 2] int16. */
#define DOT_SIGNED8 0
#define DOT_BYTES8 64
DOT_INLINE void dot_prepare8(char *out, const int8_t *q) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)q);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
    __m256i lo = _mm256_unpacklo_epi32(even, odd), hi = _mm256_unpackhi_epi32(even, odd);
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permute2x128_si256(lo, hi, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)(out + 32), _mm256_permute2x128_si256(lo, hi, 0x31));
}
DOT_INLINE void dot_add8(int mr, vi16 *sums, int first, __m256i lo, __m256i hi, const char *x, int64_t stride) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        __m256i a = dot_broadcast(x + t * stride);
        __m256i plo = _mm256_madd_epi16(lo, a), phi = _mm256_madd_epi16(hi, a);
        sums[t].lo = first ? plo : _mm256_add_epi32(sums[t].lo, plo);
        sums[t].hi = first ? phi : _mm256_add_epi32(sums[t].hi, phi);
        dot_pin(&sums[t]);
    }
}
DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, const char *x, int64_t stride) {
    const __m256i low = _mm256_set1_epi16(255);
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        __m256i lo = _mm256_loadu_si256(chunk), hi = _mm256_loadu_si256(chunk + 1);
        dot_add8(mr, dot, c == 0, _mm256_and_si256(lo, low), _mm256_and_si256(hi, low), x + 8 * c, stride);
        dot_add8(mr, dot, 0, _mm256_srli_epi16(lo, 8), _mm256_srli_epi16(hi, 8), x + 8 * c + 4, stride);
    }
}
#endif
