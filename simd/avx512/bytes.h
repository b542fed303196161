/* vc16 as one zmm register. */
#ifndef CPUINFER_BYTES_H
#define CPUINFER_BYTES_H
#include <dot_rows.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef __m512i vc16;

DOT_INLINE vc16 vc_load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}
DOT_INLINE void vc_store(uint8_t *p, vc16 a) {
    _mm512_storeu_si512(p, a);
}
DOT_INLINE vc16 vc_or(vc16 a, vc16 b) {
    return _mm512_or_si512(a, b);
}
DOT_INLINE vc16 vc_xor1(vc16 a, uint8_t byte) {
    return _mm512_xor_si512(a, _mm512_set1_epi8((char)byte));
}
DOT_INLINE vc16 vc_shift_and(vc16 a, int right, uint8_t mask) {
    if (right > 0)
        a = _mm512_srli_epi16(a, right);
    else if (right < 0)
        a = _mm512_slli_epi16(a, -right);
    return _mm512_and_si512(a, _mm512_set1_epi8((char)mask));
}
DOT_INLINE vc16 vc_lookup(vc16 a, const uint8_t *table) {
    const __m128i t = _mm_loadu_si128((const __m128i *)(const void *)table);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), a);
}
DOT_INLINE void bytes_beside(int16_t *out, const uint8_t *a, const uint8_t *b, int bias) {
    const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)a),
                  y = _mm_loadu_si128((const __m128i *)(const void *)b);
    const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y));
    _mm512_storeu_si512(out, _mm512_add_epi16(_mm512_cvtepu8_epi16(pairs), _mm512_set1_epi16((short)bias)));
}
#endif
