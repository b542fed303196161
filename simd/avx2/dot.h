/* Integer dots with VPMADDUBSW and VPMADDWD. Half a chunk (8 rows x 4 bytes) is one ymm. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <dot_rows.h>
#include <vec.h>

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
DOT_INLINE void dot_add4(int mr, vi16 *sums, int first, __m256i lo, __m256i hi, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        __m256i a = dot_broadcast(dot_row(x, t));
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
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        dot_add4(mr, dot, c == 0, _mm256_loadu_si256(chunk), _mm256_loadu_si256(chunk + 1), dot_rows_next(x, 4 * c));
    }
    dot_widen(mr, dot);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    const __m256i low = _mm256_set1_epi8(15);
    (void)np;
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        __m256i lo = _mm256_loadu_si256(chunk), hi = _mm256_loadu_si256(chunk + 1);
        dot_add4(mr, dot, c == 0, _mm256_and_si256(lo, low), _mm256_and_si256(hi, low), dot_rows_next(x, 4 * c));
        dot_add4(mr, dot, 0, _mm256_and_si256(_mm256_srli_epi16(lo, 4), low),
                 _mm256_and_si256(_mm256_srli_epi16(hi, 4), low), dot_rows_next(x, 16 + 4 * c));
    }
    dot_widen(mr, dot);
}

/* 8 bits: code - 128 as magnitude (0..128) times the activation with its sign. A pair of products fits int16 (2 * 128 *
 * 127), two pairs do not. Widening both factors to int16 for VPMADDWD takes as many operations; with one token it
 * measured 9 % slower. */
#define DOT_SIGNED8 1
DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        const __m256i *chunk = (const __m256i *)(const void *)(codes[0] + 64 * c);
        __m256i lo = _mm256_xor_si256(_mm256_loadu_si256(chunk), flip);
        __m256i hi = _mm256_xor_si256(_mm256_loadu_si256(chunk + 1), flip);
        __m256i abs_lo = _mm256_abs_epi8(lo), abs_hi = _mm256_abs_epi8(hi);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            __m256i a = dot_broadcast(dot_row(x, t) + 4 * c);
            __m256i plo = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_lo, _mm256_sign_epi8(a, lo)), ones);
            __m256i phi = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_hi, _mm256_sign_epi8(a, hi)), ones);
            dot[t].lo = c == 0 ? plo : _mm256_add_epi32(dot[t].lo, plo);
            dot[t].hi = c == 0 ? phi : _mm256_add_epi32(dot[t].hi, phi);
            dot_pin(&dot[t]);
        }
    }
}
#endif
