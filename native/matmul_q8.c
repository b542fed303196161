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

/* Add one block to acc[mr][np]. scales: panel 0's f16 scales of the block; codes: its codes. */
DOT_INLINE void add_block(const int mr, const int np, const form f, const ci_tile *tile, int32_t block,
                          const uint16_t *scales, const uint8_t *codes, vf16 *acc) {
    const uint8_t *panel_codes[CI_MAX_NP];
    vi16 dot[CI_MAX_MR * CI_MAX_NP];
    for (int p = 0; p < np; p++)
        panel_codes[p] = codes + p * tile->panel_bytes;
    if (f.codes == CODES8)
        dot_codes8(mr, np, dot, panel_codes, tile->prepared + (int64_t)block * DOT_BYTES8, tile->prepared_stride);
    else if (f.codes == CODES4)
        dot_codes4(mr, np, dot, panel_codes, tile->x + (int64_t)block * 32, tile->x_stride);
    else
        dot_nibbles(mr, np, dot, panel_codes, tile->x + (int64_t)block * 32, tile->x_stride);
    const char *d_at = tile->x + tile->k + (int64_t)block * 4, *s_at = d_at + tile->k / 32 * 4;
#pragma GCC unroll 4
    for (int p = 0; p < np; p++) {
        const uint16_t *halves = scales + p * (tile->panel_bytes / 2);
        vf16 w_scale = vf_load_f16(halves), w_min = f.mins ? vf_load_f16(halves + HALVES) : vf_zero();
#pragma GCC unroll 8
        for (int t = 0; t < mr; t++) {
            int i = t * np + p;
            float d;
            int32_t s;
            memcpy(&d, d_at + t * tile->x_stride, sizeof d);
            memcpy(&s, s_at + t * tile->x_stride, sizeof s);
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
    const uint8_t *panel = tile->panel;
    for (int32_t block = 0; block < tile->k / 32; panel += tile_bytes(f)) {
        const uint16_t *scales = (const uint16_t *)(const void *)panel;
        const uint8_t *codes = panel + header_bytes(f);
        const int32_t end = block + 2 < tile->k / 32 ? block + 2 : tile->k / 32;
#pragma GCC unroll 1
        for (; block < end; block++, scales += CI_ROWS, codes += code_bytes(f))
            add_block(mr, np, f, tile, block, scales, codes, acc);
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
static int64_t prepared_bytes8(int32_t k) {
    return DOT_BYTES8 == 32 ? 0 : (int64_t)k / 32 * DOT_BYTES8;
}
static void prepare8(char *out, const char *row, int32_t k) {
    for (int32_t block = 0; block < k / 32; block++)
        dot_prepare8(out + (int64_t)block * DOT_BYTES8, (const int8_t *)row + (int64_t)block * 32);
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
    .prepared_bytes = prepared_bytes8,
    .prepare = prepare8,
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
