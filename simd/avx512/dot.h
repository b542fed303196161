/* Integer dots with VPMADDUBSW and VPMADDWD: avx2's, a chunk of 16 rows x 4 bytes in one zmm. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>
#include <vi16.h>

/* 6 tokens x 2 panels: 12 sums of int16 and 12 of int32, 2 of codes, a broadcast, a product and a constant are 29 of
 * the 32 registers. The f32 accumulators stay in L1. */
#define DOT_MR 6
#define DOT_NP 2

/* Forms of 8 bits are multiplied as sign and magnitude of code - 128. */
#define DOT_SIGNED8 1

/* Keeps the compiler from reassociating integer sums: it would compute all products first, and spill them. */
DOT_INLINE void dot_pin(vi16 *sum) {
    __asm__("" : "+v"(*sum));
}

/* sums[t * np + p] (+)= chunk c of panel p's codes * (four bytes of each token), in int16. */
DOT_INLINE void dot_add(int mr, int np, vi16 *sums, int first, const uint8_t *const *blocks, const int form,
                        const int c, dot_rows x) {
    vc16 codes[DOT_NP];
#pragma GCC unroll 2
    for (int p = 0; p < np; p++)
        codes[p] = codes_chunk(form, blocks[p], c);
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        const __m512i a = dot_broadcast(dot_row(x, t) + 4 * c);
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            vi16 *sum = &sums[t * np + p];
            const __m512i product = _mm512_maddubs_epi16(codes[p], a);
            *sum = first ? product : _mm512_add_epi16(*sum, product);
            dot_pin(sum);
        }
    }
}
/* dot[i] (+)= sums[i] times pairs of int16 factors, factors[p] for panel p. */
DOT_INLINE void dot_widen(int mr, int np, vi16 *dot, int first, const vi16 *sums, const vi16 *factors) {
#pragma GCC unroll 16
    for (int i = 0; i < mr * np; i++) {
        const __m512i wide = _mm512_madd_epi16(sums[i], factors[i % np]);
        dot[i] = first ? wide : _mm512_add_epi32(dot[i], wide);
    }
}

/* Chunks whose products int16 holds: 2 * chunks * (2^bits - 1) * 127 < 2^15. */
DOT_INLINE int dot_group(const int form) {
    return codes_bits(form) <= 4 ? 8 : codes_bits(form) == 5 ? 4 : 2;
}

/* Magnitudes times activations that carry the codes' signs. A pair of products fits int16 (2 * 128 * 127), two pairs do
 * not. */
DOT_INLINE void dot_signed(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x) {
    const __m512i ones = _mm512_set1_epi16(1), zero = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int c = form == CODES_U8 ? i : i / 2 + i % 2 * 4;
        __m512i magnitudes[DOT_NP];
        __mmask64 negative[DOT_NP];
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            const vc16 codes = codes_signed(form, blocks[p], c);
            magnitudes[p] = _mm512_abs_epi8(codes);
            negative[p] = _mm512_movepi8_mask(codes);
        }
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            const __m512i a = dot_broadcast(dot_row(x, t) + 4 * c);
#pragma GCC unroll 2
            for (int p = 0; p < np; p++) {
                vi16 *sum = &dot[t * np + p];
                const __m512i signs = _mm512_mask_sub_epi8(a, negative[p], zero, a);
                const __m512i wide = _mm512_madd_epi16(_mm512_maddubs_epi16(magnitudes[p], signs), ones);
                *sum = i == 0 ? wide : _mm512_add_epi32(*sum, wide);
                dot_pin(sum);
            }
        }
    }
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x,
                          const dot_rows *starts) {
    const __m512i ones[DOT_NP] = {_mm512_set1_epi16(1), _mm512_set1_epi16(1)};
    const int group = dot_group(form);
    vi16 sums[DOT_MR * DOT_NP];
    if (codes_bits(form) == 8) { /* their offset is in the sign: no starts */
        dot_signed(mr, np, dot, blocks, form, x);
        return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int c = form >= CODES_U4 ? i : i / 2 + i % 2 * 4; /* both nibbles of a byte in turn */
        dot_add(mr, np, sums, i % group == 0, blocks, form, c, x);
        if (i % group == group - 1)
            dot_widen(mr, np, dot, i == group - 1, sums, ones);
    }
#pragma GCC unroll 8
    for (int t = 0; starts && t < mr; t++) {
        const __m512i start = dot_broadcast(dot_row(*starts, t));
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            dot[t * np + p] = _mm512_add_epi32(dot[t * np + p], start);
    }
}

/* Half h's scale of each row, twice. */
DOT_INLINE vi16 dot_half_scale(const int16_t *pairs, int h) {
    const __m512i which = _mm512_set4_epi32(0x0d0c0d0c + h * 0x02020202, 0x09080908 + h * 0x02020202,
                                            0x05040504 + h * 0x02020202, 0x01000100 + h * 0x02020202);
    return _mm512_shuffle_epi8(_mm512_loadu_si512(pairs), which);
}
DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    const int group = codes_bits(form) <= 5 ? 4 : 2;
    vi16 sums[DOT_MR * DOT_NP], scales[DOT_NP];
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        dot_add(mr, np, sums, c % group == 0, blocks, form, c, x);
        if (c % group != group - 1)
            continue;
#pragma GCC unroll 2
        for (int p = 0; p < np; p++)
            scales[p] = dot_half_scale(pairs[p], c / 4);
        dot_widen(mr, np, dot, c == group - 1, sums, scales);
    }
}
#endif
