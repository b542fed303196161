/* Integer dots of a whole block of tokens by a matrix unit, for products of many tokens. This header is the
 * specification, and says that there is no such unit: TILE_MR is 0, and nothing here is used. A level that has one
 * gives the same integers its own way; codes come as signed bytes with their offset taken off, chunks as in r16k4. */
#ifndef CPUINFER_TILES_H
#define CPUINFER_TILES_H
#include <bytes.h>
#include <dot_rows.h>
#include <string.h>

/* Tokens of a tile, at most 16; 0 where a level has none. A test builds this header with others. */
#ifndef TILE_MR
#define TILE_MR 0
#endif

/* Between these two the calling thread may use the unit; nothing else may set up or release it. */
static inline void tiles_begin(void) {
}
static inline void tiles_end(void) {
}

/* What the unit holds: a block's tokens, and sums of n (1, 2 or 4) dots of two blocks, which `odd` tells apart. With n
 * of 4 they may be the same, so that a block's are taken before the next block's dot is made in their place. */
typedef struct tile_unit {
    const int8_t *x;
    int64_t x_stride;
    int32_t sums[2][4][(TILE_MR ? TILE_MR : 1) * 16];
} tile_unit;

/* TILE_MR tokens' 32 values, x_stride bytes apart, for the dots that follow. */
DOT_INLINE void tile_tokens(tile_unit *unit, const int8_t *x, int64_t x_stride) {
    unit->x = x;
    unit->x_stride = x_stride;
}
/* Dot i of n: 32 codes with each token. */
DOT_INLINE void tile_dot(tile_unit *unit, const int n, const int odd, const int i, const int8_t *codes) {
    int32_t *sums = unit->sums[n <= 2 && odd][i];
    for (int t = 0; t < TILE_MR; t++)
        for (int r = 0; r < 16; r++) {
            int32_t sum = 0;
            for (int k = 0; k < 32; k++)
                sum += unit->x[t * unit->x_stride + k] * codes[k / 4 * 64 + 4 * r + k % 4];
            sums[t * 16 + r] = sum;
        }
}
/* sums[t * 16 + row] = dot i of n. sums is aligned to 64 bytes. */
DOT_INLINE void tile_take(const tile_unit *unit, const int n, const int odd, const int i, int32_t *sums) {
    memcpy(sums, unit->sums[n <= 2 && odd][i], sizeof unit->sums[0][0]);
}

/* 64 bytes at out: code - offset. */
DOT_INLINE void tile_codes(int8_t *out, vc16 codes, const int offset) {
    uint8_t bytes[64];
    vc_store(bytes, codes);
    for (int i = 0; i < 64; i++)
        out[i] = (int8_t)(bytes[i] - offset);
}
/* w = (code - offset) * scale, |w| <= 2^12, scale being pairs[2 row + half]: 64 bytes w where low is null, which then
 * fit int8; else w = 128 * high + low. */
DOT_INLINE void tile_scaled(int8_t *high, int8_t *low, vc16 codes, const int offset, const int16_t *pairs,
                            const int half) {
    uint8_t bytes[64];
    vc_store(bytes, codes);
    for (int i = 0; i < 64; i++) {
        const int w = (bytes[i] - offset) * pairs[i / 4 * 2 + half];
        high[i] = (int8_t)(low ? w >> 7 : w);
        if (low)
            low[i] = (int8_t)(w & 127);
    }
}
#endif
