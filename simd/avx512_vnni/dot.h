/* Integer dots with VPDPBUSD: a chunk of 16 rows x 4 bytes is one zmm, and every form's codes are unsigned bytes. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>
#include <vi16.h>

/* 8 tokens x 2 panels, whose f32 accumulators are in L1 while the dots run: 73 % of the VPDPBUSD peak of an Emerald
 * Rapids core, where 6 x 2 with all in registers have 65 %, and 62 % without starts. */
#define DOT_MR 8
#define DOT_NP 2

/* Unsigned times signed is exact for every code. */
#define DOT_SIGNED8 0

/* dot[t * np + p] (+)= codes[p] * (four bytes of each token). */
DOT_INLINE void dot_add(int mr, int np, vi16 *dot, int first, const vc16 *codes, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const __m512i a = dot_broadcast(dot_row(x, t));
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            vi16 *sum = &dot[t * np + p];
            *sum = _mm512_dpbusd_epi32(first ? _mm512_setzero_si512() : *sum, codes[p], a);
        }
    }
}
DOT_INLINE void dot_chunk(int mr, int np, vi16 *dot, int first, const uint8_t *const *blocks, const int form,
                          const int c, dot_rows x) {
    vc16 codes[DOT_NP];
#pragma GCC unroll 2
    for (int p = 0; p < np; p++)
        codes[p] = codes_chunk(form, blocks[p], c);
    dot_add(mr, np, dot, first, codes, dot_rows_next(x, 4 * c));
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x,
                          const dot_rows *starts) {
#pragma GCC unroll 8
    for (int t = 0; starts && t < mr; t++)
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            dot[t * np + p] = dot_broadcast(dot_row(*starts, t));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) /* both nibbles of a byte in turn */
        dot_chunk(mr, np, dot, i == 0 && !starts, blocks, form, form >= CODES_U4 ? i : i / 2 + i % 2 * 4, x);
}

/* first * sc0 + second * sc1. Sums of 16 products of codes of at most 4 bits fit int16: 16 * 15 * 127 = 30480, so that
 * VPMADDWD multiplies both halves at once. */
DOT_INLINE vi16 dot_scaled(const int form, vi16 first, vi16 second, const int16_t *pairs) {
    const __m512i scales = _mm512_loadu_si512(pairs);
    if (codes_bits(form) <= 4)
        return _mm512_madd_epi16(_mm512_mask_blend_epi16(0xaaaaaaaau, first, _mm512_slli_epi32(second, 16)), scales);
    const __m512i sc0 = _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16), sc1 = _mm512_srai_epi32(scales, 16);
    return _mm512_add_epi32(_mm512_mullo_epi32(first, sc0), _mm512_mullo_epi32(second, sc1));
}
DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    vi16 second[DOT_MR * DOT_NP];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++)
        dot_chunk(mr, np, dot, c == 0, blocks, form, c, x);
#pragma GCC unroll 4
    for (int c = 4; c < 8; c++)
        dot_chunk(mr, np, second, c == 4, blocks, form, c, x);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++)
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            dot[t * np + p] = dot_scaled(form, dot[t * np + p], second[t * np + p], pairs[p]);
}
#endif
