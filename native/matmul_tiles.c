/* Sweeps of a matrix unit: the unit makes a block's integer dots for a tile of tokens, which go through memory to the
 * tokens' sums, in registers. While the floats of one block are made, the dots of the next leave the unit and those of
 * the one after are begun, one at a time between the floats of a few tokens: a processor holds few tiles, and all that
 * follows the one it has no room for waits. */
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

/* Where a tile stands. */
typedef struct stand {
    const char *x; /* token 0's values of the block */
    place d, s;    /* the tokens' scales, and what the form takes of their sums */
    const uint8_t *panel;
    int32_t left; /* blocks */
} stand;

/* Begin dot i of n, of the block `ahead` of where the tile stands. */
DOT_INLINE void begin_dot(tile_unit *unit, const int n, const form f, const int odd, const int i, const ci_tile *tile,
                          const stand *at, const int ahead) {
    const int parts = tile_parts(f);
    const int8_t *codes = (const int8_t *)at->panel + ahead * tile_block_bytes(f) + tile_header_bytes(f);
    if (i == 0)
        tile_tokens(unit, (const int8_t *)at->x + 32 * ahead, tile->x_stride);
    tile_dot(unit, n, odd, i, codes + i / parts * tile->panel_bytes + i % parts * 512);
}

DOT_INLINE vf16 dot_at(const int32_t *sums, const int i, const int t) {
    vi16 dot;
    memcpy(&dot, sums + (i * TILE_MR + t) * CI_ROWS, sizeof dot);
    return vi_to_float(dot);
}

/* The headers of a block of each panel. */
typedef struct headers {
    vf16 scale[MOST_PANELS], min[MOST_PANELS];
} headers;

DOT_INLINE headers headers_at(const int np, const form f, const uint8_t *panel, int64_t panel_bytes) {
    headers w;
#pragma GCC unroll 2
    for (int p = 0; p < np; p++) {
        const float *header = (const float *)(const void *)(panel + p * panel_bytes);
        w.scale[p] = vf_load(header);
        w.min[p] = f.mins ? vf_load(header + CI_ROWS) : vf_zero();
    }
    return w;
}

/* Add one block of tokens first .. last-1 to acc[TILE_MR][np], as add_block of matmul_int.h does. */
DOT_INLINE void add_dots(const int np, const form f, const int first, const int last, const int32_t *sums,
                         const headers *w, int64_t panel_bytes, const stand *at, vf16 *acc) {
#pragma GCC unroll 16
    for (int t = first; t < last; t++) {
        float scale, scaled;
        memcpy(&scale, place_row(at->d, t), sizeof scale);
#pragma GCC unroll 2
        for (int p = 0; p < np; p++) {
            const int16_t *min_pairs = (const int16_t *)(const void *)(at->panel + p * panel_bytes + 128);
            const int i = p * tile_parts(f);
            vf16 *sum = &acc[t * np + p], dot = dot_at(sums, i, t);
            if (tile_parts(f) == 2) /* below 2^24: exact */
                dot = vf_fma(dot, vf_set1(128.0f), dot_at(sums, i + 1, t));
            *sum = vf_fma(dot, vf_mul(w->scale[p], vf_set1(scale)), *sum);
            if (f.mins && f.halves) {
                const vf16 mins = vi_to_float(vi_mul_pairs(min_pairs, place_row(at->s, t)));
                *sum = vf_fma(w->min[p], vf_mul(vf_set1(scale), mins), *sum);
            } else if (f.mins) {
                memcpy(&scaled, place_row(at->s, t), sizeof scaled);
                *sum = vf_fma(w->min[p], vf_set1(scaled), *sum);
            }
        }
    }
}

/* One block. Its dots are at `now`; those of the next, if there is one, go to `then`. `inner`: two more follow, and the
 * compiler knows it: branches between the unit's operations cost a fifth of the loop. */
DOT_INLINE void step(tile_unit *unit, const int np, const form f, const int odd, const int inner, const int32_t *now,
                     int32_t *then, const ci_tile *tile, stand *at, vf16 *acc) {
    const int n = np * tile_parts(f);
    const headers w = headers_at(np, f, at->panel, tile->panel_bytes);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        const int first = TILE_MR * i / n, middle = TILE_MR * (2 * i + 1) / (2 * n), last = TILE_MR * (i + 1) / n;
        if (inner || at->left > 1)
            tile_take(unit, n, !odd, i, then + i * TILE_MR * CI_ROWS);
        add_dots(np, f, first, middle, now, &w, tile->panel_bytes, at, acc);
        if (inner || at->left > 2)
            begin_dot(unit, n, f, odd, i, tile, at, 2);
        add_dots(np, f, middle, last, now, &w, tile->panel_bytes, at, acc);
    }
    at->x += 32;
    at->d = place_next(at->d, 4);
    at->s = place_next(at->s, 4);
    at->panel += tile_block_bytes(f);
    at->left--;
}

/* TILE_MR tokens x np panels; nothing is stored for the first `skip` tokens, which another tile has. */
DOT_INLINE void compute(const int np, const form f, const ci_tile *tile, int32_t skip) {
    /* Two blocks' sums in a row: loads that are as far as 4 KiB, or nearly, from a store yet to be done wait for it. */
    _Alignas(64) int32_t sums[2 * MOST_PANELS * MOST_PARTS * MOST_TOKENS * CI_ROWS];
    const int n = np * tile_parts(f);
    int32_t *other = sums + n * TILE_MR * CI_ROWS;
    tile_unit unit;
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
        acc[i] = first ? vf_load(tile->out + i / np * tile->out_stride + i % np * tile->out_step) : vf_zero();
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
        begin_dot(&unit, n, f, 0, i, tile, &at, 0);
        tile_take(&unit, n, 0, i, sums + i * TILE_MR * CI_ROWS);
    }
    if (at.left > 1)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            begin_dot(&unit, n, f, 1, i, tile, &at, 1);
    while (at.left > 3) {
        step(&unit, np, f, 0, 1, sums, other, tile, &at, acc);
        step(&unit, np, f, 1, 1, other, sums, tile, &at, acc);
    }
    while (at.left > 0) {
        step(&unit, np, f, 0, 0, sums, other, tile, &at, acc);
        if (at.left > 0)
            step(&unit, np, f, 1, 0, other, sums, tile, &at, acc);
    }
#pragma GCC unroll 32
    for (int i = 0; i < TILE_MR * np; i++)
        if (i / np >= skip)
            vf_store(tile->out + i / np * tile->out_stride + i % np * tile->out_step, acc[i]);
}

/* The last tile reaches back to TILE_MR tokens. */
DOT_INLINE void sweep(const form f, const ci_tile *whole, int32_t tokens, int32_t np) {
    ci_tile tile = *whole;
    for (int32_t done = 0; TILE_MR && done < tokens; done += TILE_MR) {
        const int32_t first = done + TILE_MR <= tokens ? done : tokens - TILE_MR;
        tile.x = whole->x + first * whole->x_stride;
        tile.out = whole->out + first * whole->out_stride;
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
