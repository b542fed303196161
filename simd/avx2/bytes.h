/* vc16 as two ymm registers of 8 rows each. */
#ifndef CPUINFER_BYTES_H
#define CPUINFER_BYTES_H
#include <dot_rows.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    __m256i lo, hi;
} vc16;

DOT_INLINE vc16 vc_load(const uint8_t *p) {
    const __m256i *halves = (const __m256i *)(const void *)p;
    return (vc16){_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
DOT_INLINE void vc_store(uint8_t *p, vc16 a) {
    _mm256_storeu_si256((__m256i *)(void *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(void *)(p + 32), a.hi);
}
DOT_INLINE vc16 vc_or(vc16 a, vc16 b) {
    return (vc16){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
DOT_INLINE vc16 vc_xor1(vc16 a, uint8_t byte) {
    const __m256i all = _mm256_set1_epi8((char)byte);
    return (vc16){_mm256_xor_si256(a.lo, all), _mm256_xor_si256(a.hi, all)};
}
DOT_INLINE vc16 vc_shift_and(vc16 a, int right, uint8_t mask) {
    const __m256i all = _mm256_set1_epi8((char)mask);
    if (right > 0)
        a = (vc16){_mm256_srli_epi16(a.lo, right), _mm256_srli_epi16(a.hi, right)};
    else if (right < 0)
        a = (vc16){_mm256_slli_epi16(a.lo, -right), _mm256_slli_epi16(a.hi, -right)};
    return (vc16){_mm256_and_si256(a.lo, all), _mm256_and_si256(a.hi, all)};
}
DOT_INLINE vc16 vc_lookup(vc16 a, const uint8_t *table) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (vc16){_mm256_shuffle_epi8(t, a.lo), _mm256_shuffle_epi8(t, a.hi)};
}
DOT_INLINE void bytes_beside(int16_t *out, const uint8_t *a, const uint8_t *b, int bias) {
    const __m256i by = _mm256_set1_epi16((short)bias);
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)a),
            y = _mm_loadu_si128((const __m128i *)(const void *)b);
    __m256i low = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), high = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_add_epi16(low, by));
    _mm256_storeu_si256((__m256i *)(void *)(out + 16), _mm256_add_epi16(high, by));
}
#endif
