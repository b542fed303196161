/* As scalar/tiles.h, with TDPBSSD: a block of codes is 8 rows of 64 bytes, as its tile wants them. */
#ifndef CPUINFER_TILES_H
#define CPUINFER_TILES_H
#include <bytes.h>
#include <dot_rows.h>
#include <immintrin.h>

/* 12 tokens x 2 panels have 24 f32 accumulators in registers, which a block's sums, scales and a broadcast join. */
#define TILE_MR 12

/* As LDTILECFG wants it; palette 1 has 8 tiles of at most 16 rows of 64 bytes (Intel 64 and IA-32 Software Developer's
 * Manual, volume 1, chapter 18). */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Tiles 0 to 3 are sums, 4 tokens, 5 to 7 codes. */
DOT_INLINE void tiles_begin(void) {
    static const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 32, 64, 64, 64},
        .rows = {TILE_MR, TILE_MR, TILE_MR, TILE_MR, TILE_MR, 8, 8, 8},
    };
    _tile_loadconfig(&config);
}
DOT_INLINE void tiles_end(void) {
    _tile_release();
}

typedef struct tile_unit {
    char none; /* its state is the thread's registers */
} tile_unit;

/* To the compiler, TILELOADD and TILESTORED touch no memory. */
#define TILE_MEMORY __asm__ volatile("" : : : "memory")

DOT_INLINE void tile_tokens(tile_unit *unit, const int8_t *x, int64_t x_stride) {
    (void)unit;
    TILE_MEMORY;
    _tile_loadd(4, x, x_stride);
}

/* Tile numbers are part of an instruction: one of four by the number of sums. */
#define TILE_DOT(to, with, from)     \
    do {                             \
        _tile_loadd(with, from, 64); \
        _tile_zero(to);              \
        _tile_dpbssd(to, 4, with);   \
    } while (0)

DOT_INLINE int tile_of_sums(const int n, const int odd, const int i) {
    return n <= 2 && odd ? 2 + i : i;
}
DOT_INLINE void tile_dot(tile_unit *unit, const int n, const int odd, const int i, const int8_t *codes) {
    const int to = tile_of_sums(n, odd, i);
    (void)unit;
    TILE_MEMORY;
    if (to == 0)
        TILE_DOT(0, 5, codes);
    else if (to == 1)
        TILE_DOT(1, 6, codes);
    else if (to == 2)
        TILE_DOT(2, 7, codes);
    else
        TILE_DOT(3, 5, codes);
}
DOT_INLINE void tile_take(const tile_unit *unit, const int n, const int odd, const int i, int32_t *sums) {
    const int from = tile_of_sums(n, odd, i);
    (void)unit;
    if (from == 0)
        _tile_stored(0, sums, 64);
    else if (from == 1)
        _tile_stored(1, sums, 64);
    else if (from == 2)
        _tile_stored(2, sums, 64);
    else
        _tile_stored(3, sums, 64);
    TILE_MEMORY;
}

DOT_INLINE void tile_codes(int8_t *out, vc16 codes, const int offset) {
    _mm512_storeu_si512(out, _mm512_sub_epi8(codes, _mm512_set1_epi8((char)offset)));
}
/* Even and odd bytes of a row as int16, and back. */
DOT_INLINE void tile_scaled(int8_t *high, int8_t *low, vc16 codes, const int offset, const int16_t *pairs,
                            const int half) {
    const __m512i scales = _mm512_loadu_si512(pairs), bytes = _mm512_set1_epi16(255), seven = _mm512_set1_epi16(127);
    const __m512i scale = half ? _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(scales, 16), scales)
                               : _mm512_mask_blend_epi16(0xaaaaaaaau, scales, _mm512_slli_epi32(scales, 16));
    const __m512i by = _mm512_set1_epi16((short)offset);
    const __m512i even = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_and_si512(codes, bytes), by), scale);
    const __m512i odd = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16(codes, 8), by), scale);
    if (low) {
        const __m512i low_even = _mm512_and_si512(even, seven), low_odd = _mm512_and_si512(odd, seven);
        const __m512i high_even = _mm512_srai_epi16(even, 7), high_odd = _mm512_srai_epi16(odd, 7);
        _mm512_storeu_si512(low, _mm512_or_si512(low_even, _mm512_slli_epi16(low_odd, 8)));
        _mm512_storeu_si512(high, _mm512_or_si512(_mm512_and_si512(high_even, bytes), _mm512_slli_epi16(high_odd, 8)));
    } else
        _mm512_storeu_si512(high, _mm512_or_si512(_mm512_and_si512(even, bytes), _mm512_slli_epi16(odd, 8)));
}
#endif
