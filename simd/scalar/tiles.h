/* Integer dots of a whole block of tokens by a matrix unit, for products of many tokens. This header is the
 * specification, and says that there is no such unit: TILE_MR is 0, and nothing here is used. A level that has one
 * gives the same integers its own way; codes come as signed bytes with their offset taken off, chunks as in r16k4. */
#ifndef CPUINFER_TILES_H
#define CPUINFER_TILES_H
#include <bytes.h>
#include <dot_rows.h>

/* Tokens of a tile, at most 16; 0 where a level has none. A test builds this header with others. */
#ifndef TILE_MR
#define TILE_MR 0
#endif

/* Between these two the calling thread may use tile_dots; nothing else may set up or release its unit. */
static inline void tiles_begin(void) {
}
static inline void tiles_end(void) {
}

/* Dots of n (1, 2 or 4) blocks of 32 codes, at codes[i], with TILE_MR tokens, whose values are x_stride bytes apart:
 * sums[(i * TILE_MR + t) * 16 + row]. sums is aligned to 64 bytes. Calls come with `odd` 0 and 1 in turn. */
DOT_INLINE void tile_dots(const int n, const int odd, int32_t *sums, const int8_t *x, int64_t x_stride,
                          const int8_t *const *codes) {
    (void)odd;
    for (int i = 0; i < n; i++)
        for (int t = 0; t < TILE_MR; t++)
            for (int r = 0; r < 16; r++) {
                int32_t sum = 0;
                for (int k = 0; k < 32; k++)
                    sum += x[t * x_stride + k] * codes[i][k / 4 * 64 + 4 * r + k % 4];
                sums[(i * TILE_MR + t) * 16 + r] = sum;
            }
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
