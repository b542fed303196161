/* vi16, the int32 of 16 rows, as two ymm. */
#ifndef CPUINFER_VI16_H
#define CPUINFER_VI16_H
#include <dot_rows.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <vec.h>

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
DOT_INLINE vf16 vi_to_float(vi16 a) {
    return (vf16){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
DOT_INLINE __m256i dot_broadcast(const char *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}
DOT_INLINE vi16 vi_mul_pairs(const int16_t *pairs, const char *sums) {
    const __m256i *halves = (const __m256i *)(const void *)pairs;
    __m256i s = dot_broadcast(sums);
    return (vi16){_mm256_madd_epi16(_mm256_loadu_si256(halves), s),
                  _mm256_madd_epi16(_mm256_loadu_si256(halves + 1), s)};
}
#endif
