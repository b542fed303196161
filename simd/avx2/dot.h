/* Integer dots with VPMADDUBSW and VPMADDWD. Half a chunk (8 rows x 4 bytes) is one ymm. */
#ifndef CPUINFER_DOT_H
#define CPUINFER_DOT_H
#include <codes.h>
#include <dot_rows.h>
#include <vec.h>
#include <vi16.h>

/* 6 tokens x 2 ymm of sums, 2 of codes, 1 broadcast, 1 product: the 16 registers. The f32 accumulators stay in L1. */
#define DOT_MR 6
#define DOT_NP 1

/* Forms of 8 bits are multiplied as sign and magnitude of code - 128. */
#define DOT_SIGNED8 1

/* Keeps the compiler from reassociating integer sums: it would compute all products first, and spill them. */
DOT_INLINE void dot_pin(vi16 *sum) {
    __asm__("" : "+x"(sum->lo), "+x"(sum->hi));
}

/* sums[t] += codes * x in int16. */
DOT_INLINE void dot_add(int mr, vi16 *sums, int first, vc16 codes, dot_rows x) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        __m256i a = dot_broadcast(dot_row(x, t));
        __m256i plo = _mm256_maddubs_epi16(codes.lo, a), phi = _mm256_maddubs_epi16(codes.hi, a);
        sums[t].lo = first ? plo : _mm256_add_epi16(sums[t].lo, plo);
        sums[t].hi = first ? phi : _mm256_add_epi16(sums[t].hi, phi);
        dot_pin(&sums[t]);
    }
}
/* dot[t] (+)= sums[t] times pairs of int16 factors. */
DOT_INLINE void dot_widen(int mr, vi16 *dot, int first, const vi16 *sums, vi16 factors) {
#pragma GCC unroll 8
    for (int t = 0; t < mr; t++) {
        __m256i lo = _mm256_madd_epi16(sums[t].lo, factors.lo), hi = _mm256_madd_epi16(sums[t].hi, factors.hi);
        dot[t].lo = first ? lo : _mm256_add_epi32(dot[t].lo, lo);
        dot[t].hi = first ? hi : _mm256_add_epi32(dot[t].hi, hi);
    }
}

/* Chunks whose products int16 holds: 2 * chunks * (2^bits - 1) * 127 < 2^15. */
DOT_INLINE int dot_group(const int form) {
    return codes_bits(form) <= 4 ? 8 : codes_bits(form) == 5 ? 4 : 2;
}

/* Magnitudes times activations that carry the codes' signs. A pair of products fits int16 (2 * 128 * 127), two pairs do
 * not. Widening both factors to int16 for VPMADDWD takes as many operations; with one token it measured 9 % slower. */
DOT_INLINE void dot_signed(int mr, vi16 *dot, const uint8_t *block, const int form, dot_rows x) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int c = form == CODES_U8 ? i : i / 2 + i % 2 * 4;
        vc16 codes = codes_signed(form, block, c);
        __m256i abs_lo = _mm256_abs_epi8(codes.lo), abs_hi = _mm256_abs_epi8(codes.hi);
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            __m256i a = dot_broadcast(dot_row(x, t) + 4 * c);
            __m256i lo = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_lo, _mm256_sign_epi8(a, codes.lo)), ones);
            __m256i hi = _mm256_madd_epi16(_mm256_maddubs_epi16(abs_hi, _mm256_sign_epi8(a, codes.hi)), ones);
            dot[t].lo = i == 0 ? lo : _mm256_add_epi32(dot[t].lo, lo);
            dot[t].hi = i == 0 ? hi : _mm256_add_epi32(dot[t].hi, hi);
            dot_pin(&dot[t]);
        }
    }
}

DOT_INLINE void dot_block(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form, dot_rows x,
                          const dot_rows *starts) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int group = dot_group(form);
    vi16 sums[DOT_MR];
    (void)np;
    if (codes_bits(form) == 8) { /* their offset is in the sign: no starts */
        dot_signed(mr, dot, blocks[0], form, x);
        return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int c = form >= CODES_U4 ? i : i / 2 + i % 2 * 4; /* both nibbles of a byte in turn */
        dot_add(mr, sums, i % group == 0, codes_chunk(form, blocks[0], c), dot_rows_next(x, 4 * c));
        if (i % group == group - 1)
            dot_widen(mr, dot, i == group - 1, sums, (vi16){ones, ones});
    }
#pragma GCC unroll 8
    for (int t = 0; starts && t < mr; t++) {
        __m256i start = dot_broadcast(dot_row(*starts, t));
        dot[t] = (vi16){_mm256_add_epi32(dot[t].lo, start), _mm256_add_epi32(dot[t].hi, start)};
    }
}

/* Half h's scale of each row, twice. */
DOT_INLINE vi16 dot_half_scale(const int16_t *pairs, int h) {
    const __m256i *halves = (const __m256i *)(const void *)pairs;
    const __m256i which =
        _mm256_add_epi8(_mm256_set1_epi16((short)(0x0100 + h * 0x0202)),
                        _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0));
    return (vi16){_mm256_shuffle_epi8(_mm256_loadu_si256(halves), which),
                  _mm256_shuffle_epi8(_mm256_loadu_si256(halves + 1), which)};
}
DOT_INLINE void dot_halves(int mr, int np, vi16 *dot, const uint8_t *const *blocks, const int form,
                           const int16_t *const *pairs, dot_rows x) {
    const int group = codes_bits(form) <= 5 ? 4 : 2;
    vi16 sums[DOT_MR];
    (void)np;
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        dot_add(mr, sums, c % group == 0, codes_chunk(form, blocks[0], c), dot_rows_next(x, 4 * c));
        if (c % group == group - 1)
            dot_widen(mr, dot, c == group - 1, sums, dot_half_scale(pairs[0], c / 4));
    }
}
#endif
