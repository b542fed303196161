/* Weight types whose product is an integer dot per block of 32 times q8 activations, as one template over their form
 * (docs/design.md section 3). CI_INT_TILES makes the tiles of a form, CI_INT_FORMAT a weight type of them. */
#ifndef CPUINFER_MATMUL_INT_H
#define CPUINFER_MATMUL_INT_H
#include <dot.h>
#include <halves.h>

#include "block_scales.h"
#include "matmul.h"
#include "matmul_tiles.h"

/* Where a tile stands: at a block of every token, and of panel 0. */
typedef struct place {
    dot_rows q, d, s; /* the tokens' int8 values, scales, and what the form takes of their sums */
    const uint8_t *header, *codes;
    int32_t block; /* of those that share the header */
    const uint8_t *ahead;
} place;

DOT_INLINE float load_f32(const char *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}
/* The offset of codes as dot_block and dot_halves take them. */
DOT_INLINE int dot_offset(const form f) {
    return DOT_SIGNED8 && codes_bits(f.codes) == 8 ? 0 : f.offset;
}
/* Forms whose dots start at -offset * s, made once for a row: it costs no operation then. */
DOT_INLINE int has_starts(const form f) {
    return f.halves ? HALVES_STARTS && f.offset : dot_offset(f) != 0;
}
/* Bytes per block of a row of what place.s goes over: starts, sums of halves, or float sums. */
DOT_INLINE int32_t sums_bytes(const form f) {
    return f.halves && has_starts(f) ? 8 : 4;
}

/* Prefetch `bytes` bytes, at most what a block has. Unrolled, for one token's block is short: on Zen 3 with panels in
 * L3 a loop gave 23 and 32 GB/s of Q4_0 and Q8_0, this 27 and 37. */
DOT_INLINE void fetch(const form f, const uint8_t *ahead, int64_t bytes) {
#pragma GCC unroll 16
    for (int i = 0; i < (codes_bytes(f.codes) + header_bytes(f)) / 64 + 1; i++)
        if (64 * i < bytes)
            __builtin_prefetch(ahead + 64 * i);
}

/* Add one block to acc[mr][np]. */
DOT_INLINE void add_block(const int mr, const int np, const form f, const ci_tile *tile, const place *at, vf16 *acc) {
    const int64_t panel_bytes = tile->panel_bytes;
    const uint8_t *codes[CI_MAX_NP];
    const int16_t *pairs[CI_MAX_NP];
    int16_t room[CI_MAX_NP][2 * CI_ROWS], min_room[2 * CI_ROWS];
    vi16 dot[CI_MAX_MR * CI_MAX_NP];
    vf16 of_halves[CI_MAX_MR * CI_MAX_NP];
    for (int p = 0; p < np; p++) {
        codes[p] = at->codes + p * panel_bytes;
        pairs[p] = f.halves ? block_pairs(f, at->header + p * panel_bytes, at->block, room[p]) : NULL;
        fetch(f, at->ahead + p * tile->ahead_stride, tile->ahead_step);
    }
    if (f.halves)
        halves_floats(mr, np, of_halves, codes, f.codes, f.offset, pairs, at->q, at->s);
    else
        dot_block(mr, np, dot, codes, f.codes, at->q, has_starts(f) ? &at->s : NULL);
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const uint8_t *header = at->header + p * panel_bytes;
        vf16 w_scale = block_scale(f, header, at->block);
        vf16 w_min = f.mins ? block_min(f, header, at->block) : vf_zero();
        const int16_t *min_pairs = f.mins && f.halves ? block_min_pairs(f, header, at->block, min_room) : NULL;
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            int i = t * np + p;
            const char *s = dot_row(at->s, t);
            vf16 d = vf_set1(load_f32(dot_row(at->d, t)));
            acc[i] = vf_fma(f.halves ? of_halves[i] : vi_to_float(dot[i]), vf_mul(w_scale, d), acc[i]);
            if (f.mins && f.halves)
                acc[i] = vf_fma(w_min, vf_mul(d, vi_to_float(vi_mul_pairs(min_pairs, s))), acc[i]);
            else if (f.mins)
                acc[i] = vf_fma(w_min, vf_set1(load_f32(s)), acc[i]);
        }
    }
}

/* Most panels of a tile of mr tokens. One token's dots need few registers, and its panels are streams from memory. */
#define MOST_NP(mr) ((mr) == 1 ? CI_MAX_NP : DOT_NP)

DOT_INLINE void compute(const int mr, const int np, const form f, const ci_tile *tile) {
    vf16 acc[CI_MAX_MR * CI_MAX_NP];
    const int side = np < DOT_NP ? np : DOT_NP; /* panels whose dots run together */
    if (mr > DOT_MR || np > MOST_NP(mr) || (TILE_MR && f.header == HEADER_UNPACKED))
        return; /* not in the table, or a sweep takes its place: keep the compiler from building it */
    const int32_t first = tile->begin / 32, blocks = tile->end / 32 - first;
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        acc[i] = first ? vf_load(tile->out + i / np * tile->out_stride + i % np * tile->out_step) : vf_zero();
    const ci_q8_row row = ci_q8_row_at(tile->x, tile->k);
    const char *sums = (const char *)(f.halves ? (const void *)row.half_sums : row.scaled);
    const dot_rows starts = dot_rows_at(tile->prepared, tile->prepared_stride);
    place at = {
        .q = dot_rows_next(dot_rows_at(tile->x, tile->x_stride), 32 * first),
        .d = dot_rows_next(dot_rows_at((const char *)row.scales, tile->x_stride), 4 * first),
        .s = dot_rows_next(has_starts(f) ? starts : dot_rows_at(sums, tile->x_stride), sums_bytes(f) * first),
        .header = tile->panel,
        .codes = tile->panel + header_bytes(f),
        .ahead = tile->ahead,
    };
    for (int32_t block = 0; block < blocks; block++) {
#pragma GCC unroll 4
        for (int p = 0; p < np; p += side) {
            place here = at;
            here.header += p * tile->panel_bytes;
            here.codes += p * tile->panel_bytes;
            here.ahead += p * tile->ahead_stride;
            add_block(mr, side, f, tile, &here, acc + p);
        }
        at.ahead += tile->ahead_step;
        at.q = dot_rows_next(at.q, 32);
        at.d = dot_rows_next(at.d, 4);
        at.s = dot_rows_next(at.s, sums_bytes(f));
        at.codes += codes_bytes(f.codes);
        if (++at.block == tile_blocks(f)) {
            at.block = 0;
            at.header = at.codes;
            at.codes += header_bytes(f);
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        vf_store(tile->out + i / np * tile->out_stride + i % np * tile->out_step, acc[i]);
}

/* [K / 32] int32, with halves [K / 32][2]: where the dots of a row's blocks start. */
DOT_INLINE int64_t starts_bytes(const form f, int32_t k) {
    return has_starts(f) ? (int64_t)k / 32 * sums_bytes(f) : 0;
}
DOT_INLINE void make_starts(const form f, char *out, const char *row, int32_t k) {
    const ci_q8_row at = ci_q8_row_at(row, k);
    int32_t *starts = (int32_t *)(void *)out;
    for (int32_t i = 0; i < k / 32 * sums_bytes(f) / 4; i++)
        starts[i] = f.halves ? (i % 2 ? 0 : HALVES_BIAS) - f.offset * at.half_sums[i] : -dot_offset(f) * at.sums[i];
}

/* A panel of form f as one of form `wide`, whose header is HEADER_UNPACKED and whose codes are bytes. */
DOT_INLINE void unpack(const form f, const form wide, uint8_t *out, const uint8_t *panel, int32_t k) {
    for (int32_t block = 0; block < k / 32; block++) {
        const uint8_t *header = tile_of(f, panel, block), *codes = codes_of(f, header, block);
        int i = block % tile_blocks(f);
        int16_t room[2 * CI_ROWS];
        fetch_ahead(f, codes);
        vf_store((float *)(void *)out, block_scale(f, header, i));
        out += 64;
        if (f.mins) {
            vf_store((float *)(void *)out, block_min(f, header, i));
            out += 64;
        }
        if (f.halves) {
            memcpy(out, block_pairs(f, header, i, room), sizeof room);
            out += 64;
        }
        if (f.mins && f.halves) {
            memcpy(out, block_min_pairs(f, header, i, room), sizeof room);
            out += 64;
        }
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++)
            vc_store(out + 64 * c, codes_chunk(f.codes, codes, c));
        out += codes_bytes(wide.codes);
    }
}

/* scale * (code - offset) (+ min), as GGUF has it: (d * sc) * (code - offset) (+ -dmin * m) with halves. */
DOT_INLINE void decode(const form f, float *out, const uint8_t *panel, int32_t row, int32_t first) {
    int32_t block = first / 32, i = block % tile_blocks(f);
    const uint8_t *header = tile_of(f, panel, block), *codes = codes_of(f, header, block);
    float scales[CI_ROWS], mins[CI_ROWS];
    int16_t room[2 * CI_ROWS];
    uint8_t chunk[64];
    vf_store(scales, block_scale(f, header, i));
    float scale[2] = {scales[row], scales[row]}, min[2] = {0.0f, 0.0f};
    if (f.halves) {
        const int16_t *pairs = block_pairs(f, header, i, room);
        scale[0] *= (float)pairs[2 * row];
        scale[1] *= (float)pairs[2 * row + 1];
    }
    if (f.mins) {
        vf_store(mins, block_min(f, header, i));
        min[0] = min[1] = mins[row];
    }
    if (f.mins && f.halves) {
        const int16_t *pairs = block_min_pairs(f, header, i, room);
        min[0] *= (float)pairs[2 * row];
        min[1] *= (float)pairs[2 * row + 1];
    }
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) {
        vc_store(chunk, codes_chunk(f.codes, codes, c));
        for (int b = 0; b < 4; b++) {
            float value = scale[c / 4] * (float)(chunk[4 * row + b] - f.offset);
            out[4 * c + b] = f.mins ? value + min[c / 4] : value;
        }
    }
}

/* The tiles of a form: functions called name##_##mr##x##np, and their table. */
/* clang-format off */
#define CI_INT_TILE(name, form, mr, np) \
    static void name##_##mr##x##np(const ci_tile *tile) { compute(mr, np, form, tile); }
#define CI_INT_TILES_OF(name, form, mr) \
    CI_INT_TILE(name, form, mr, 1) CI_INT_TILE(name, form, mr, 2) CI_INT_TILE(name, form, mr, 4)
#define CI_INT_TILES(name, form)                                                                \
    CI_INT_TILES_OF(name, form, 1) CI_INT_TILES_OF(name, form, 2) CI_INT_TILES_OF(name, form, 3) \
    CI_INT_TILES_OF(name, form, 4) CI_INT_TILES_OF(name, form, 5) CI_INT_TILES_OF(name, form, 6) \
    CI_INT_TILES_OF(name, form, 7) CI_INT_TILES_OF(name, form, 8)
#define CI_INT_ENTRY(name, mr, np) ((mr) <= DOT_MR && (np) <= MOST_NP(mr) ? name##_##mr##x##np : NULL)
#define CI_INT_ENTRIES(name, mr) {CI_INT_ENTRY(name, mr, 1), CI_INT_ENTRY(name, mr, 2), CI_INT_ENTRY(name, mr, 4)}
#define CI_INT_TABLE(name)                                                                      \
    {CI_INT_ENTRIES(name, 1), CI_INT_ENTRIES(name, 2), CI_INT_ENTRIES(name, 3),                 \
     CI_INT_ENTRIES(name, 4), CI_INT_ENTRIES(name, 5), CI_INT_ENTRIES(name, 6),                 \
     CI_INT_ENTRIES(name, 7), CI_INT_ENTRIES(name, 8)}

/* A weight type of a form: its ci_format ci_##name##_format. Its tiles read panels as they are stored for any number of
 * tokens, unless further fields say how to unpack one. */
#define CI_INT_FORMAT(name, number, form, ...)                                                  \
    CI_INT_TILES(name, form)                                                                    \
    static const ci_tiles name##_tiles = CI_INT_TABLE(name);                                    \
    static int64_t name##_bytes(int32_t k) { return form_bytes(form, k); }                      \
    static int64_t name##_prepared_bytes(int32_t k) { return starts_bytes(form, k); }           \
    static void name##_prepare(char *out, const char *row, int32_t k) { make_starts(form, out, row, k); } \
    static void name##_decode(float *out, const uint8_t *panel, int32_t k, int32_t row, int32_t first, int32_t n) { \
        (void)k;                                                                                \
        (void)n;                                                                                \
        decode(form, out, panel, row, first);                                                   \
    }                                                                                           \
    extern const ci_format ci_##name##_format;                                                  \
    const ci_format ci_##name##_format = {                                                      \
        .type = number,                                                                         \
        .activation = CI_Q8A,                                                                   \
        .mr = DOT_MR,                                                                           \
        .np = DOT_NP,                                                                           \
        .panel_bytes = name##_bytes,                                                            \
        .tiles = &name##_tiles,                                                                 \
        .prepared_bytes = name##_prepared_bytes,                                                \
        .prepare = name##_prepare,                                                              \
        .decode = name##_decode,                                                                \
        __VA_ARGS__                                                                             \
    }
/* The same, unpacked from `tokens` tokens on to the form `wide`, whose tiles another file makes; with a matrix unit, from
 * TILE_MR tokens on to what its sweep takes. CI_NEVER tokens: only there. */
#define CI_INT_FORMAT_UNPACKED(name, number, form, tokens, wide, wide_tiles)                    \
    static int64_t name##_unpacked_bytes(int32_t k) {                                           \
        return TILE_MR ? tile_panel_bytes(form, k) : form_bytes(wide, k);                       \
    }                                                                                           \
    static void name##_unpack(uint8_t *out, const uint8_t *panel, int32_t k) {                  \
        if (TILE_MR)                                                                            \
            tile_unpack(form, out, panel, k);                                                   \
        else                                                                                    \
            unpack(form, wide, out, panel, k);                                                  \
    }                                                                                           \
    static void name##_sweep(const ci_tile *tile, int32_t n, int32_t np) { (*tile_sweep(form))(tile, n, np); } \
    CI_INT_FORMAT(name, number, form, .unpack_tokens = TILE_MR ? TILE_MR : tokens,              \
                  .unpacked_bytes = name##_unpacked_bytes,                                      \
                  .unpack = TILE_MR || (tokens) != CI_NEVER ? name##_unpack : NULL,             \
                  .unpacked_tiles = &wide_tiles, .unpacked_sweep = TILE_MR ? name##_sweep : NULL)
/* clang-format on */
#endif
