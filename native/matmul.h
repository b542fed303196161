/* Matrix products: what a weight type supplies, and the tile that it computes. */
#ifndef CPUINFER_MATMUL_H
#define CPUINFER_MATMUL_H

#include "kernels.h"

enum {
    CI_ROWS = 16,  /* output rows of a panel: the lanes of a vf16 */
    CI_MAX_MR = 8, /* most tokens of a tile on any level */
    CI_MAX_NP = 4, /* most panels of a tile, and of a strip */
    CI_STRIP = CI_MAX_NP * CI_ROWS
};

/* How far ahead of unpacking codes are fetched from memory, in bytes. Past the matrix's end a prefetch does nothing. */
enum { CI_AHEAD = 1024 };

/* One tile: out[t * out_stride + p * out_step + lane] += row 16 * p + lane of the panels times token t, over columns
 * begin .. end-1. Sums start at 0 where begin is 0. An f32 that is stored and loaded again is the same: where K is
 * divided does not show in the result. */
typedef struct ci_tile {
    const uint8_t *panel; /* its columns from `begin` on */
    int64_t panel_bytes;  /* from one panel of the tile to the next */
    const char *x;        /* token t's row, of the op's input type, at x + t * x_stride */
    int64_t x_stride;
    const char *prepared; /* token t's row as the format's prepare made it, or x itself */
    int64_t prepared_stride;
    int32_t k;          /* of the rows */
    int32_t begin, end; /* begin is a multiple of the columns that a weight type packs together */
    /* What integer tiles prefetch beside each block of each panel: ahead_step bytes, one after the other from `ahead`
     * on, for panel p ahead_stride further. */
    const uint8_t *ahead;
    int64_t ahead_step, ahead_stride;
    float *out;
    int64_t out_step, out_stride; /* floats from one panel of the tile, and one token, to the next */
} ci_tile;

typedef void ci_tile_fn(const ci_tile *tile);
/* The same for any number of tokens from the format's unpack_tokens on, and np (at most the format's) panels. */
typedef void ci_sweep_fn(const ci_tile *tile, int32_t tokens, int32_t np);

/* tiles[mr - 1][i]: mr tokens x (1, 2, 4)[i] panels; null where that does not fit the level's registers. */
typedef ci_tile_fn *const ci_tiles[CI_MAX_MR][3];

typedef struct ci_format {
    int32_t type;
    int32_t activation; /* what a product takes as input: CI_F32, CI_BF16 or CI_Q8A */
    int32_t mr;         /* most tokens of a tile */
    int32_t np;         /* most panels of a tile */
    int64_t (*panel_bytes)(int32_t k);
    const ci_tiles *tiles;
    /* What the tiles want of an input row beside it or in its place; prepared_bytes is 0 where that is nothing. */
    int64_t (*prepared_bytes)(int32_t k);
    void (*prepare)(char *out, const char *row, int32_t k);
    /* From unpack_tokens on: unpack a panel once (codes to bytes) and use other tiles on it. Null: nothing to gain. */
    int32_t unpack_tokens;
    int64_t (*unpacked_bytes)(int32_t k);
    void (*unpack)(uint8_t *out, const uint8_t *panel, int32_t k);
    const ci_tiles *unpacked_tiles;
    ci_sweep_fn *unpacked_sweep; /* in their place, where the level has a matrix unit; else null */
    /* Columns first .. first+n-1 (n <= 32) of one row (< 16) of a panel of k columns, as GGUF defines the values. Of
     * quantised types, first is a multiple of 32 and n is 32. */
    void (*decode)(float *out, const uint8_t *panel, int32_t k, int32_t row, int32_t first, int32_t n);
} ci_format;

/* Null for a type that is no matrix. */
const ci_format *ci_format_of(int32_t type);

/* Tables of tiles: TILE(mr, np) names the function. */
#define CI_TILE_ROW(TILE, mr) {TILE(mr, 1), TILE(mr, 2), TILE(mr, 4)}
#define CI_TILE_TABLE(TILE)                                                                  \
    {CI_TILE_ROW(TILE, 1), CI_TILE_ROW(TILE, 2), CI_TILE_ROW(TILE, 3), CI_TILE_ROW(TILE, 4), \
     CI_TILE_ROW(TILE, 5), CI_TILE_ROW(TILE, 6), CI_TILE_ROW(TILE, 7), CI_TILE_ROW(TILE, 8)}
/* DEFINE(mr, np) for every tile. */
/* clang-format off */
#define CI_EACH_TILE(DEFINE)                    \
    DEFINE(1, 1) DEFINE(1, 2) DEFINE(1, 4)      \
    DEFINE(2, 1) DEFINE(2, 2) DEFINE(2, 4)      \
    DEFINE(3, 1) DEFINE(3, 2) DEFINE(3, 4)      \
    DEFINE(4, 1) DEFINE(4, 2) DEFINE(4, 4)      \
    DEFINE(5, 1) DEFINE(5, 2) DEFINE(5, 4)      \
    DEFINE(6, 1) DEFINE(6, 2) DEFINE(6, 4)      \
    DEFINE(7, 1) DEFINE(7, 2) DEFINE(7, 4)      \
    DEFINE(8, 1) DEFINE(8, 2) DEFINE(8, 4)
/* clang-format on */
#endif
