/* vi16, the int32 of 16 rows, as one zmm. */
#ifndef CPUINFER_VI16_H
#define CPUINFER_VI16_H
#include <dot_rows.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <vec.h>

typedef __m512i vi16;

DOT_INLINE vi16 vi_set1(int32_t a) {
    return _mm512_set1_epi32(a);
}
DOT_INLINE vi16 vi_sub(vi16 a, vi16 b) {
    return _mm512_sub_epi32(a, b);
}
DOT_INLINE vf16 vi_to_float(vi16 a) {
    return _mm512_cvtepi32_ps(a);
}
DOT_INLINE __m512i dot_broadcast(const char *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}
DOT_INLINE vi16 vi_mul_pairs(const int16_t *pairs, const char *sums) {
    return _mm512_madd_epi16(_mm512_loadu_si512(pairs), dot_broadcast(sums));
}
#endif
