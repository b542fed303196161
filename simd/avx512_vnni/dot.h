/* Integer dots with VPDPBUSD: a chunk of 16 rows x 4 bytes is one zmm. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <dot_rows.h>
#include <vec.h>

/* 6 tokens x 2 panels: 12 sums and 12 f32 accumulators of the 32 registers, and 1.5 products to a load. */
#define DOT_MR 6
#define DOT_NP 2

typedef __m512i vi16;

DOT_INLINE vi16 vi_set1(int32_t a) {
    return _mm512_set1_epi32(a);
}
DOT_INLINE vi16 vi_sub(vi16 a, vi16 b) {
    return _mm512_sub_epi32(a, b);
}
DOT_INLINE vi16 vi_mul_pow2(vi16 a, int bits) {
    return _mm512_slli_epi32(a, (unsigned int)bits);
}
DOT_INLINE vf16 vi_to_float(vi16 a) {
    return _mm512_cvtepi32_ps(a);
}

/* dot[t * np + p] += codes[p] * (four bytes of each token). */
DOT_INLINE void dot_add(int mr, int np, vi16 *dot, const __m512i *codes, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        int32_t four;
        memcpy(&four, dot_row(x, t), sizeof four);
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            dot[t * np + p] = _mm512_dpbusd_epi32(dot[t * np + p], codes[p], _mm512_set1_epi32(four));
    }
}
DOT_INLINE void dot_zero(int n, vi16 *dot) {
#pragma GCC unroll 12
    for (int i = 0; i < n; i++)
        dot[i] = _mm512_setzero_si512();
}
DOT_INLINE void dot_codes8(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_zero(mr * np, dot);
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        __m512i chunk[DOT_NP];
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            chunk[p] = _mm512_loadu_si512(codes[p] + 64 * c);
        dot_add(mr, np, dot, chunk, dot_rows_next(x, 4 * c));
    }
}
DOT_INLINE void dot_codes4(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    dot_codes8(mr, np, dot, codes, x);
}
DOT_INLINE void dot_nibbles(int mr, int np, vi16 *dot, const uint8_t *const *codes, dot_rows x) {
    const __m512i mask = _mm512_set1_epi8(15);
    dot_zero(mr * np, dot);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i low[DOT_NP], high[DOT_NP];
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            __m512i chunk = _mm512_loadu_si512(codes[p] + 64 * c);
            low[p] = _mm512_and_si512(chunk, mask);
            high[p] = _mm512_and_si512(_mm512_srli_epi16(chunk, 4), mask);
        }
        dot_add(mr, np, dot, low, dot_rows_next(x, 4 * c));
        dot_add(mr, np, dot, high, dot_rows_next(x, 16 + 4 * c));
    }
}

/* Unsigned times signed is exact for every code. */
#define DOT_SIGNED8 0
#endif
