/* Sweeps of a matrix unit: the unit makes a block's integer dots for a tile of tokens, which go through memory to the
 * tokens' sums, in registers. It is two blocks ahead: its latency and that of its stores are as long as a block. */
#include "matmul_tiles.h"

#include <dot.h>

enum { MOST_TOKENS = TILE_MR ? TILE_MR : 1, MOST_PANELS = 2, MOST_PARTS = 2, AHEAD = 2 };

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

/* Where a tile stands. */
typedef struct stand {
    const char *x; /* token 0's values of the block */
    place d, s;    /* the tokens' scales, and what the form takes of their sums */
    const uint8_t *panel;
    int32_t left; /* blocks */
} stand;

/* The dots of the block `ahead` of where the tile stands. */
DOT_INLINE void make_dots(const int np, const form f, const int odd, int32_t *sums, const ci_tile *tile,
                          const stand *at, const int ahead) {
    const int8_t *codes[MOST_PANELS * MOST_PARTS];
    const int parts = tile_parts(f);
    const int8_t *first = (const int8_t *)at->panel + ahead * tile_block_bytes(f) + tile_header_bytes(f);
    for (int i = 0; i < np * parts; i++)
        codes[i] = first + i / parts * tile->panel_bytes + i % parts * 512;
    tile_dots(np * parts, odd, sums, (const int8_t *)at->x + 32 * ahead, tile->x_stride, codes);
}

DOT_INLINE vf16 dot_at(const int32_t *sums, const int i, const int t) {
    vi16 dot;
    memcpy(&dot, sums + (i * TILE_MR + t) * CI_ROWS, sizeof dot);
    return vi_to_float(dot);
}

/* Add one block to acc[TILE_MR][np], as add_block of matmul_int.h does. */
DOT_INLINE void add_dots(const int np, const form f, const int32_t *sums, int64_t panel_bytes, const stand *at,
                         vf16 *acc) {
    const uint8_t *panel = at->panel;
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
        memcpy(&scale, place_row(at->d, t), sizeof scale);
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            const int16_t *min_pairs = (const int16_t *)(const void *)(panel + p * panel_bytes + 128);
            const int i = p * tile_parts(f);
            vf16 *sum = &acc[t * np + p], dot = dot_at(sums, i, t);
            if (tile_parts(f) == 2) /* below 2^24: exact */
                dot = vf_fma(dot, vf_set1(128.0f), dot_at(sums, i + 1, t));
            *sum = vf_fma(dot, vf_mul(w_scale[p], vf_set1(scale)), *sum);
            if (f.mins && f.halves) {
                const vf16 mins = vi_to_float(vi_mul_pairs(min_pairs, place_row(at->s, t)));
                *sum = vf_fma(w_min[p], vf_mul(vf_set1(scale), mins), *sum);
            } else if (f.mins) {
                memcpy(&scaled, place_row(at->s, t), sizeof scaled);
                *sum = vf_fma(w_min[p], vf_set1(scaled), *sum);
            }
        }
    }
}

/* One block, or nothing where none is left: its dots are at `now`, those of the block two ahead go to `then`. */
DOT_INLINE void step(const int np, const form f, const int odd, const int32_t *now, int32_t *then, const ci_tile *tile,
                     stand *at, vf16 *acc) {
    if (at->left == 0)
        return;
    if (at->left > AHEAD)
        make_dots(np, f, odd, then, tile, at, AHEAD);
    add_dots(np, f, now, tile->panel_bytes, at, acc);
    at->x += 32;
    at->d = place_next(at->d, 4);
    at->s = place_next(at->s, 4);
    at->panel += tile_block_bytes(f);
    at->left--;
}

/* TILE_MR tokens x np panels; nothing is stored for the first `skip` tokens, which another tile has. */
DOT_INLINE void compute(const int np, const form f, const ci_tile *tile, int32_t skip) {
    enum { INTS = MOST_PANELS * MOST_PARTS * MOST_TOKENS * CI_ROWS };
    _Alignas(64) int32_t sums[2 * AHEAD][INTS];
    int32_t (*now)[INTS] = sums, (*then)[INTS] = sums + AHEAD;
    vf16 acc[MOST_TOKENS * MOST_PANELS];
    const int32_t first = tile->begin / 32;
    const ci_q8_row row = ci_q8_row_at(tile->x, tile->k);
    const char *s = f.halves ? (const char *)row.half_sums : (const char *)row.scaled;
    stand at = {
        .x = tile->x + 32 * first,
        .d = place_next(place_at((const char *)row.scales, tile->x_stride), 4 * first),
        .s = place_next(place_at(s, tile->x_stride), 4 * first),
        .panel = tile->panel,
        .left = tile->end / 32 - first,
    };
#pragma GCC unroll 32
    for (int i = 0; i < TILE_MR * np; i++)
        acc[i] = first ? vf_load(tile->out + i / np * CI_STRIP + i % np * tile->out_step) : vf_zero();
    make_dots(np, f, 0, now[0], tile, &at, 0);
    if (at.left > 1)
        make_dots(np, f, 1, now[1], tile, &at, 1);
    while (at.left > 0) {
        step(np, f, 0, now[0], then[0], tile, &at, acc);
        step(np, f, 1, now[1], then[1], tile, &at, acc);
        int32_t (*swap)[INTS] = now;
        now = then;
        then = swap;
    }
#pragma GCC unroll 32
    for (int i = 0; i < TILE_MR * np; i++)
        if (i / np >= skip)
            vf_store(tile->out + i / np * CI_STRIP + i % np * tile->out_step, acc[i]);
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
