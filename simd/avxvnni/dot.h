/* Integer dots with VPDPBUSD on half a chunk (8 rows x 4 bytes), one ymm; every form's codes are unsigned bytes. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>
#include <vi16.h>

/* 6 tokens x 2 ymm of sums, 2 of codes, 1 broadcast: 15 of the 16 registers. The f32 accumulators stay in L1. */
#define DOT_MR 6
#define DOT_NP 1

/* Unsigned times signed is exact for every code. */
#define DOT_SIGNED8 0

/* dot[t] (+)= chunk c of the codes * (four bytes of each token). The empty instruction keeps the compiler from loading
 * the bytes of all tokens first, which spills. */
DOT_INLINE void dot_chunk(int mr, vi16 *dot, int first, const uint8_t *block, const int form, const int c, dot_rows x) {
    const vc16 codes = codes_chunk(form, block, c);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const __m256i a = dot_broadcast(dot_row(x, t) + 4 * c), zero = _mm256_setzero_si256();
        dot[t].lo = _mm256_dpbusd_avx_epi32(first ? zero : dot[t].lo, codes.lo, a);
        dot[t].hi = _mm256_dpbusd_avx_epi32(first ? zero : dot[t].hi, codes.hi, a);
        __asm__("" : "+x"(dot[t].lo), "+x"(dot[t].hi));
    }
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x,
                          const dot_rows *starts) {
    (void)np;
#pragma GCC unroll 8
    for (int t = 0; starts && t < mr; t++) {
        const __m256i start = dot_broadcast(dot_row(*starts, t));
        dot[t] = (vi16){start, start};
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) /* both nibbles of a byte in turn */
        dot_chunk(mr, dot, i == 0 && !starts, blocks[0], form, form >= CODES_U4 ? i : i / 2 + i % 2 * 4, x);
}

/* first * sc0 + second * sc1 of 8 rows. Sums of 16 products of codes of at most 4 bits fit int16: 16 * 15 * 127 =
 * 30480, so that VPMADDWD multiplies both halves at once. */
DOT_INLINE __m256i dot_scaled(const int form, __m256i first, __m256i second, const int16_t *pairs) {
    const __m256i scales = _mm256_loadu_si256((const __m256i *)(const void *)pairs);
    if (codes_bits(form) <= 4)
        return _mm256_madd_epi16(_mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa), scales);
    const __m256i sc0 = _mm256_srai_epi32(_mm256_slli_epi32(scales, 16), 16), sc1 = _mm256_srai_epi32(scales, 16);
    return _mm256_add_epi32(_mm256_mullo_epi32(first, sc0), _mm256_mullo_epi32(second, sc1));
}
DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    vi16 second[DOT_MR];
    (void)np;
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
        dot_chunk(mr, dot, c == 0, blocks[0], form, c, x);
#pragma GCC unroll 4
    for (int c = 4; c < 8; c++)
        dot_chunk(mr, second, c == 4, blocks[0], form, c, x);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++)
        dot[t] = (vi16){dot_scaled(form, dot[t].lo, second[t].lo, pairs[0]),
                        dot_scaled(form, dot[t].hi, second[t].hi, pairs[0] + 16)};
}
#endif
