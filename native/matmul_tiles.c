/* Sweeps of a matrix unit: the unit makes a block's integer dots for a tile of tokens, which go through memory to the
 * sums of all tokens, in registers; it is at the next block meanwhile. */
#include "matmul_tiles.h"

#include <dot.h>

enum { MOST_TOKENS = TILE_MR ? TILE_MR : 1, MOST_PANELS = 2, MOST_PARTS = 2 };

/* Forms whose tile_parts and headers are those of a sweep's. */
#define SCALE ((form){0})
#define MIN ((form){.mins = 1})
#define MIN_PAIRS ((form){.mins = 1, .halves = 1, .header = HEADER_Q2_K})
#define PARTS ((form){.halves = 1, .header = HEADER_Q6_K})

/* The same place in the rows of up to 12 tokens. */
typedef struct place {
    dot_rows first, seventh;
} place;

DOT_INLINE place place_at(const char *first, int64_t stride) {
    return (place){dot_rows_at(first, stride), dot_rows_at(first + 6 * stride, stride)};
}
DOT_INLINE const char *place_row(place p, int t) {
    return t < 6 ? dot_row(p.first, t) : dot_row(p.seventh, t - 6);
}
DOT_INLINE place place_next(place p, int64_t bytes) {
    return (place){dot_rows_next(p.first, bytes), dot_rows_next(p.seventh, bytes)};
}

DOT_INLINE void dots(const int np, const form f, int32_t *sums, const uint8_t *panel, int64_t panel_bytes,
                     const char *x, int64_t x_stride) {
    const int8_t *codes[MOST_PANELS * MOST_PARTS];
    const int parts = tile_parts(f);
    for (int i = 0; i < np * parts; i++)
        codes[i] = (const int8_t *)panel + i / parts * panel_bytes + tile_header_bytes(f) + i % parts * 512;
    tile_dots(np * parts, sums, (const int8_t *)x, x_stride, codes);
}

DOT_INLINE vf16 dot_at(const int32_t *sums, const int i, const int t) {
    vi16 dot;
    memcpy(&dot, sums + (i * TILE_MR + t) * CI_ROWS, sizeof dot);
    return vi_to_float(dot);
}

/* Add one block to acc[TILE_MR][np], as add_block of matmul_int.h does. */
DOT_INLINE void add_dots(const int np, const form f, const int32_t *sums, const uint8_t *panel, int64_t panel_bytes,
                         place d, place s, vf16 *acc) {
    vf16 w_scale[MOST_PANELS], w_min[MOST_PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < np; p++) {
        const float *header = (const float *)(const void *)(panel + p * panel_bytes);
        w_scale[p] = vf_load(header);
        w_min[p] = f.mins ? vf_load(header + CI_ROWS) : vf_zero();
    }
#pragma GCC unroll 16
    for (int t = 0; t < TILE_MR; t++) {
        float scale, scaled;
        memcpy(&scale, place_row(d, t), sizeof scale);
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            const int16_t *min_pairs = (const int16_t *)(const void *)(panel + p * panel_bytes + 128);
            const int i = p * tile_parts(f);
            vf16 *sum = &acc[t * np + p], dot = dot_at(sums, i, t);
            if (tile_parts(f) == 2) /* below 2^24: exact */
                dot = vf_fma(dot, vf_set1(128.0f), dot_at(sums, i + 1, t));
            *sum = vf_fma(dot, vf_mul(w_scale[p], vf_set1(scale)), *sum);
            if (f.mins && f.halves) {
                const vf16 mins = vi_to_float(vi_mul_pairs(min_pairs, place_row(s, t)));
                *sum = vf_fma(w_min[p], vf_mul(vf_set1(scale), mins), *sum);
            } else if (f.mins) {
                memcpy(&scaled, place_row(s, t), sizeof scaled);
                *sum = vf_fma(w_min[p], vf_set1(scaled), *sum);
            }
        }
    }
}

/* TILE_MR tokens x np panels; nothing is stored for the first `skip` tokens, which another tile has. */
DOT_INLINE void compute(const int np, const form f, const ci_tile *tile, int32_t skip) {
    _Alignas(64) int32_t sums[2][MOST_PANELS * MOST_PARTS * MOST_TOKENS * CI_ROWS];
    vf16 acc[MOST_TOKENS * MOST_PANELS];
    const int32_t first = tile->begin / 32, blocks = tile->end / 32 - first;
    const ci_q8_row row = ci_q8_row_at(tile->x, tile->k);
    const char *x = tile->x + 32 * first;
    const uint8_t *panel = tile->panel;
    place d = place_next(place_at((const char *)row.scales, tile->x_stride), 4 * first);
    place s = place_next(place_at(f.halves ? (const char *)row.half_sums : (const char *)row.scaled, tile->x_stride),
                         4 * first);
#pragma GCC unroll 32
    for (int i = 0; i < TILE_MR * np; i++)
        acc[i] = first ? vf_load(tile->out + i / np * CI_STRIP + i % np * CI_ROWS) : vf_zero();
    dots(np, f, sums[0], panel, tile->panel_bytes, x, tile->x_stride);
    for (int32_t block = 0; block < blocks; block++) {
        x += 32;
        if (block + 1 < blocks)
            dots(np, f, sums[(block + 1) % 2], panel + tile_block_bytes(f), tile->panel_bytes, x, tile->x_stride);
        add_dots(np, f, sums[block % 2], panel, tile->panel_bytes, d, s, acc);
        d = place_next(d, 4);
        s = place_next(s, 4);
        panel += tile_block_bytes(f);
    }
#pragma GCC unroll 32
    for (int i = 0; i < TILE_MR * np; i++)
        if (i / np >= skip)
            vf_store(tile->out + i / np * CI_STRIP + i % np * CI_ROWS, acc[i]);
}

/* The last tile reaches back to TILE_MR tokens. */
DOT_INLINE void sweep(const form f, const ci_tile *whole, int32_t tokens, int32_t np) {
    ci_tile tile = *whole;
    for (int32_t done = 0; TILE_MR && done < tokens; done += TILE_MR) {
        const int32_t first = done + TILE_MR <= tokens ? done : tokens - TILE_MR;
        tile.x = whole->x + first * whole->x_stride;
        tile.out = whole->out + first * CI_STRIP;
        if (np == 2)
            compute(2, f, &tile, done - first);
        else
            compute(1, f, &tile, done - first);
    }
}

void ci_sweep_scale(const ci_tile *tile, int32_t tokens, int32_t np) {
    sweep(SCALE, tile, tokens, np);
}
void ci_sweep_min(const ci_tile *tile, int32_t tokens, int32_t np) {
    sweep(MIN, tile, tokens, np);
}
void ci_sweep_min_pairs(const ci_tile *tile, int32_t tokens, int32_t np) {
    sweep(MIN_PAIRS, tile, tokens, np);
}
void ci_sweep_parts(const ci_tile *tile, int32_t tokens, int32_t np) {
    sweep(PARTS, tile, tokens, np);
}
