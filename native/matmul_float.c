/* Float weight types: F32 and F16 times f32 rows, acc = fma(w, x, acc) in K order; BF16 times bf16 rows, per pair
 * acc = fma(w_odd, x_odd, acc), then the even one (docs/design.md section 3). */
#include <bf16_dot.h>
#include <float_dot.h>

#include "matmul.h"

DOT_INLINE void compute(const int mr, const int np, const int32_t type, const ci_tile *tile) {
    vf16 acc[CI_MAX_MR * CI_MAX_NP];
    if (mr * np > (type == CI_BF16 ? BF16_MOST : FLOAT_MOST))
        return; /* not in the table: keep the compiler from building it */
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        acc[i] = tile->begin ? vf_load(tile->out + i / np * tile->out_stride + i % np * tile->out_step) : vf_zero();
    const uint8_t *panel = tile->panel;
    const int64_t panel_bytes = tile->panel_bytes;
    const int32_t end = tile->end;
    const int32_t x_bytes = type == CI_BF16 ? BF16_PAIR_BYTES / 2 : 4; /* of one k */
    dot_rows x = dot_rows_next(dot_rows_at(tile->prepared, tile->prepared_stride), x_bytes * tile->begin);
    if (type == CI_BF16)
        for (int32_t k = tile->begin; k < end; k += 2) {
            bf16_step(mr, np, acc, panel, panel_bytes, x);
            panel += CI_ROWS * 4;
            x = dot_rows_next(x, BF16_PAIR_BYTES);
        }
    else
        for (int32_t k = tile->begin; k < end; k++) {
            float_step(mr, np, type == CI_F16, acc, panel, panel_bytes, x);
            panel += CI_ROWS * (type == CI_F16 ? 2 : 4);
            x = dot_rows_next(x, 4);
        }
#pragma GCC unroll 32
    for (int i = 0; i < mr * np; i++)
        vf_store(tile->out + i / np * tile->out_stride + i % np * tile->out_step, acc[i]);
}

/* clang-format off */
#define DEFINE(mr, np) static void f32_##mr##x##np(const ci_tile *tile) { compute(mr, np, CI_F32, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void f16_##mr##x##np(const ci_tile *tile) { compute(mr, np, CI_F16, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
#define DEFINE(mr, np) static void bf16_##mr##x##np(const ci_tile *tile) { compute(mr, np, CI_BF16, tile); }
CI_EACH_TILE(DEFINE)
#undef DEFINE
/* clang-format on */

#define F32_TILE(mr, np) ((mr) * (np) <= FLOAT_MOST ? f32_##mr##x##np : NULL)
#define F16_TILE(mr, np) ((mr) * (np) <= FLOAT_MOST ? f16_##mr##x##np : NULL)
#define BF16_TILE(mr, np) ((mr) * (np) <= BF16_MOST ? bf16_##mr##x##np : NULL)
static const ci_tiles f32_tiles = CI_TILE_TABLE(F32_TILE);
static const ci_tiles f16_tiles = CI_TILE_TABLE(F16_TILE);
static const ci_tiles bf16_tiles = CI_TILE_TABLE(BF16_TILE);

/* Where the widest tile has several tokens, it is the best: its loads are the fewest for a product. */
#define MOST_TOKENS(sums) ((sums) / CI_MAX_NP > 1 ? (sums) / CI_MAX_NP : (sums))

static int64_t f32_bytes(int32_t k) {
    return (int64_t)k * CI_ROWS * 4;
}
static int64_t f16_bytes(int32_t k) {
    return (int64_t)k * CI_ROWS * 2;
}
static int64_t bf16_bytes(int32_t k) {
    return ((int64_t)k + 1) / 2 * CI_ROWS * 4;
}
static int64_t no_bytes(int32_t k) {
    (void)k;
    return 0;
}
/* Where a step takes pairs of f32, a bf16 row is widened, K rounded up to even, so that a tile broadcasts its elements
 * straight from memory. */
static int64_t bf16_prepared_bytes(int32_t k) {
    return BF16_PAIR_BYTES == 4 ? 0 : ((int64_t)k + 1) / 2 * BF16_PAIR_BYTES;
}
static void bf16_prepare(char *out, const char *row, int32_t k) {
    const uint16_t *x = (const uint16_t *)(const void *)row;
    float *y = (float *)(void *)out;
    int32_t n = (k + 1) / 2 * 2, i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(y + i, vf_load_bf16(x + i));
    for (; i < n; i++)
        y[i] = bf16_to_f32(x[i]);
}

static void f32_decode(float *out, const uint8_t *panel, int32_t k, int32_t row, int32_t first, int32_t n) {
    const float *at = (const float *)(const void *)panel + (int64_t)first * CI_ROWS + row;
    (void)k;
    for (int32_t i = 0; i < n; i++)
        out[i] = at[i * CI_ROWS];
}
static void f16_decode(float *out, const uint8_t *panel, int32_t k, int32_t row, int32_t first, int32_t n) {
    const uint16_t *at = (const uint16_t *)(const void *)panel + (int64_t)first * CI_ROWS + row;
    (void)k;
    for (int32_t i = 0; i < n; i++)
        out[i] = f16_to_f32(at[i * CI_ROWS]);
}
static void bf16_decode(float *out, const uint8_t *panel, int32_t k, int32_t row, int32_t first, int32_t n) {
    const uint16_t *pairs = (const uint16_t *)(const void *)panel;
    (void)k;
    for (int32_t i = first; i < first + n; i++)
        out[i - first] = bf16_to_f32(pairs[((int64_t)(i / 2) * CI_ROWS + row) * 2 + i % 2]);
}

const ci_format ci_f32_format = {.type = CI_F32,
                                 .activation = CI_F32,
                                 .mr = MOST_TOKENS(FLOAT_MOST),
                                 .np = CI_MAX_NP,
                                 .panel_bytes = f32_bytes,
                                 .tiles = &f32_tiles,
                                 .prepared_bytes = no_bytes,
                                 .decode = f32_decode};
const ci_format ci_f16_format = {.type = CI_F16,
                                 .activation = CI_F32,
                                 .mr = MOST_TOKENS(FLOAT_MOST),
                                 .np = CI_MAX_NP,
                                 .panel_bytes = f16_bytes,
                                 .tiles = &f16_tiles,
                                 .prepared_bytes = no_bytes,
                                 .decode = f16_decode};
const ci_format ci_bf16_format = {
    .type = CI_BF16,
    .activation = CI_BF16,
    .mr = MOST_TOKENS(BF16_MOST),
    .np = CI_MAX_NP,
    .panel_bytes = bf16_bytes,
    .tiles = &bf16_tiles,
    .prepared_bytes = bf16_prepared_bytes,
    .prepare = bf16_prepare,
    .decode = bf16_decode,
};
