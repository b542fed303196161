/* Weight types whose product is an integer dot per block of 32: Q8_0, Q4_0, Q4_1 times q8 activations.
 * docs/design.md section 3: acc = fma((float)(dot - offset * s), w_scale * d, acc), then for mins
 * acc = fma(w_min, d * (float)s, acc), block after block. */
#include <dot.h>

#include "matmul.h"

enum { NIBBLES, CODES4, CODES8 }; /* the forms of codes; see dot.h */

/* What distinguishes a type: always a constant, so every branch on it vanishes. offset = 1 << offset_bits, or 0. */
typedef struct form {
    int codes;
    int offset_bits;
    int mins;
} form;

#define Q8_0 ((form){CODES8, DOT_SIGNED8 ? 0 : 7, 0})
#define Q4_0 ((form){NIBBLES, 3, 0})
#define Q4_1 ((form){NIBBLES, 0, 1})
#define Q4_0_UNPACKED ((form){CODES4, 3, 0})
#define Q4_1_UNPACKED ((form){CODES4, 0, 1})

enum { HALVES = 2 * CI_ROWS }; /* f16 numbers of one kind in a tile of two blocks */

DOT_INLINE int32_t code_bytes(form f) {
    return f.codes == NIBBLES ? 256 : 512;
}
/* A tile starts with the scales of its two blocks, then their mins. */
DOT_INLINE int32_t header_bytes(form f) {
    return HALVES * 2 * (1 + f.mins);
}
DOT_INLINE int32_t tile_bytes(form f) {
    return header_bytes(f) + 2 * code_bytes(f);
}

/* Where a tile stands: at a block of every token, and of panel 0. */
typedef struct place {
    dot_rows q, d, s;       /* the tokens' int8 values, scales, sums */
    const uint16_t *scales; /* the panel's f16 scales; its mins HALVES further */
    const uint8_t *codes;
} place;

/* Add one block to acc[mr][np]. */
DOT_INLINE void add_block(const int mr, const int np, const form f, int64_t panel_bytes, const place *at, vf16 *acc) {
    const uint8_t *codes[CI_MAX_NP];
    vi16 dot[CI_MAX_MR * CI_MAX_NP];
    for (int p = 0; p < np; p++)
        codes[p] = at->codes + p * panel_bytes;
    if (f.codes == CODES8)
        dot_codes8(mr, np, dot, codes, at->q);
    else if (f.codes == CODES4)
        dot_codes4(mr, np, dot, codes, at->q);
    else
        dot_nibbles(mr, np, dot, codes, at->q);
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const uint16_t *scales = at->scales + p * (panel_bytes / 2);
        vf16 w_scale = vf_load_f16(scales), w_min = f.mins ? vf_load_f16(scales + HALVES) : vf_zero();
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            int i = t * np + p;
            float d;
            int32_t s;
            memcpy(&d, dot_row(at->d, t), sizeof d);
            memcpy(&s, dot_row(at->s, t), sizeof s);
            vi16 exact = f.offset_bits ? vi_sub(dot[i], vi_mul_pow2(vi_set1(s), f.offset_bits)) : dot[i];
            acc[i] = vf_fma(vi_to_float(exact), vf_mul(w_scale, vf_set1(d)), acc[i]);
            if (f.mins)
                acc[i] = vf_fma(w_min, vf_mul(vf_set1(d), vi_to_float(vi_set1(s))), acc[i]);
        }
    }
}

DOT_INLINE void compute(const int mr, const int np, const form f, const ci_tile *tile) {
    vf16 acc[CI_MAX_MR * CI_MAX_NP];
    if (mr > DOT_MR || np > DOT_NP)
        return; /* not in the table: keep the compiler from building it */
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        acc[i] = vf_zero();
    const int32_t blocks = tile->k / 32;
    const int64_t panel_bytes = tile->panel_bytes;
    const char *scales = tile->x + tile->k;
    place at = {
        .q = dot_rows_at(tile->x, tile->x_stride),
        .d = dot_rows_at(scales, tile->x_stride),
        .s = dot_rows_at(scales + blocks * 4, tile->x_stride),
        .scales = (const uint16_t *)(const void *)tile->panel,
        .codes = tile->panel + header_bytes(f),
    };
    for (int32_t block = 0; block < blocks; block++) {
        add_block(mr, np, f, panel_bytes, &at, acc);
        at.q = dot_rows_next(at.q, 32);
        at.d = dot_rows_next(at.d, 4);
        at.s = dot_rows_next(at.s, 4);
        at.codes += code_bytes(f) + block % 2 * header_bytes(f);
        at.scales += block % 2 ? tile_bytes(f) / 2 - CI_ROWS : CI_ROWS;
    }
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        vf_store(tile->out + i / np * CI_STRIP + i % np * CI_ROWS, acc[i]);
}

static int64_t panel_bytes(int32_t k, form f) {
    return ((int64_t)k / 32 + 1) / 2 * tile_bytes(f);
}

/* Codes of a panel to bytes; the headers of its tiles stay. An absent second block is zero bytes in both. */
DOT_INLINE void unpack_nibbles(uint8_t *out, const uint8_t *panel, int32_t k, form packed) {
    for (int32_t block = 0; block < k / 32; block += 2) {
        memcpy(out, panel, (size_t)header_bytes(packed));
        panel += header_bytes(packed);
        out += header_bytes(packed);
        for (int half = 0; half < 2; half++, panel += 256, out += 512)
            for (int i = 0; i < 256; i++) {
                out[i] = panel[i] & 15;
                out[i + 256] = panel[i] >> 4;
            }
    }
}

static int64_t no_bytes(int32_t k) {
    (void)k;
    return 0;
}
#define IN_TABLE(name, mr, np) ((mr) <= DOT_MR && (np) <= DOT_NP ? name##_##mr##x##np : NULL)

/* clang-format off */
#define DEFINE(mr, np) static void q8_0_##mr##x##np(const ci_tile *tile) { compute(mr, np, Q8_0, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void q4_0_##mr##x##np(const ci_tile *tile) { compute(mr, np, Q4_0, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void q4_1_##mr##x##np(const ci_tile *tile) { compute(mr, np, Q4_1, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void q4_0u_##mr##x##np(const ci_tile *tile) { compute(mr, np, Q4_0_UNPACKED, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void q4_1u_##mr##x##np(const ci_tile *tile) { compute(mr, np, Q4_1_UNPACKED, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
/* clang-format on */

#define Q8_0_TILE(mr, np) IN_TABLE(q8_0, mr, np)
#define Q4_0_TILE(mr, np) IN_TABLE(q4_0, mr, np)
#define Q4_1_TILE(mr, np) IN_TABLE(q4_1, mr, np)
#define Q4_0U_TILE(mr, np) IN_TABLE(q4_0u, mr, np)
#define Q4_1U_TILE(mr, np) IN_TABLE(q4_1u, mr, np)
static const ci_tiles q8_0_tiles = CI_TILE_TABLE(Q8_0_TILE);
static const ci_tiles q4_0_tiles = CI_TILE_TABLE(Q4_0_TILE);
static const ci_tiles q4_1_tiles = CI_TILE_TABLE(Q4_1_TILE);
static const ci_tiles q4_0u_tiles = CI_TILE_TABLE(Q4_0U_TILE);
static const ci_tiles q4_1u_tiles = CI_TILE_TABLE(Q4_1U_TILE);

static int64_t q8_0_bytes(int32_t k) {
    return panel_bytes(k, Q8_0);
}
static int64_t q4_0_bytes(int32_t k) {
    return panel_bytes(k, Q4_0);
}
static int64_t q4_1_bytes(int32_t k) {
    return panel_bytes(k, Q4_1);
}
static int64_t q4_0_unpacked_bytes(int32_t k) {
    return panel_bytes(k, Q4_0_UNPACKED);
}
static int64_t q4_1_unpacked_bytes(int32_t k) {
    return panel_bytes(k, Q4_1_UNPACKED);
}
static void q4_0_unpack(uint8_t *out, const uint8_t *panel, int32_t k) {
    unpack_nibbles(out, panel, k, Q4_0);
}
static void q4_1_unpack(uint8_t *out, const uint8_t *panel, int32_t k) {
    unpack_nibbles(out, panel, k, Q4_1);
}

const ci_format ci_q8_0_format = {
    .type = CI_Q8_0,
    .mr = DOT_MR,
    .np = DOT_NP,
    .panel_bytes = q8_0_bytes,
    .tiles = &q8_0_tiles,
    .prepared_bytes = no_bytes,
};
const ci_format ci_q4_0_format = {
    .type = CI_Q4_0,
    .mr = DOT_MR,
    .np = DOT_NP,
    .panel_bytes = q4_0_bytes,
    .tiles = &q4_0_tiles,
    .prepared_bytes = no_bytes,
    .unpacked_bytes = q4_0_unpacked_bytes,
    .unpack = q4_0_unpack,
    .unpacked_tiles = &q4_0u_tiles,
};
const ci_format ci_q4_1_format = {
    .type = CI_Q4_1,
    .mr = DOT_MR,
    .np = DOT_NP,
    .panel_bytes = q4_1_bytes,
    .tiles = &q4_1_tiles,
    .prepared_bytes = no_bytes,
    .unpacked_bytes = q4_1_unpacked_bytes,
    .unpack = q4_1_unpack,
    .unpacked_tiles = &q4_1u_tiles,
};
