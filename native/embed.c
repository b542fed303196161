/* The embedding: gathers rows of a packed matrix. A row is one lane of a panel; see docs/design.md, section 2. */
#include <vec.h>

#include "kernels.h"

enum { BLOCK = 32, TILE = 64, PANEL = 16 };

/* Columns k .. k+n-1 (n <= 32) of one row, exactly. For quantised types k is a multiple of 32 and n is 32. */
typedef void decode_fn(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out);

static void decode_f32(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    const float *at = (const float *)w->data + ((int64_t)(row / PANEL) * w->k + k) * PANEL + row % PANEL;
    for (int32_t i = 0; i < n; i++)
        out[i] = at[i * PANEL];
}

static void decode_f16(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    const uint16_t *at = (const uint16_t *)w->data + ((int64_t)(row / PANEL) * w->k + k) * PANEL + row % PANEL;
    for (int32_t i = 0; i < n; i++)
        out[i] = f16_to_f32(at[i * PANEL]);
}

static void decode_bf16(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    int64_t pairs = ((int64_t)w->k + 1) / 2;
    const uint16_t *panel = (const uint16_t *)w->data + (row / PANEL) * pairs * PANEL * 2;
    for (int32_t i = 0; i < n; i++)
        out[i] = bf16_to_f32(panel[((int64_t)((k + i) / 2) * PANEL + row % PANEL) * 2 + (k + i) % 2]);
}

/* Where a block of 32 columns lies: its scale for the row (and 64 bytes on, its min), and its codes. */
static const uint8_t *find_tile(const ci_weight *w, int32_t row, int32_t k, int64_t tile_bytes) {
    int64_t tiles = ((int64_t)w->k + TILE - 1) / TILE;
    return (const uint8_t *)w->data + ((row / PANEL) * tiles + k / TILE) * tile_bytes;
}

static float tile_half(const uint8_t *tile, int32_t half, int32_t row) {
    uint16_t bits;
    memcpy(&bits, tile + (half * PANEL + row % PANEL) * 2, sizeof bits);
    return f16_to_f32(bits);
}

static void decode_q8_0(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    int32_t half = k / BLOCK % 2;
    const uint8_t *tile = find_tile(w, row, k, 64 + TILE * PANEL);
    const uint8_t *codes = tile + 64 + half * BLOCK * PANEL + row % PANEL * 4;
    float d = tile_half(tile, half, row);
    for (int32_t i = 0; i < n; i++)
        out[i] = (float)(codes[i / 4 * PANEL * 4 + i % 4] - 128) * d;
}

/* 16 bytes of nibbles of a row; the low ones are columns 0..15, the high ones 16..31. */
static void decode_q4(const uint8_t *codes, int32_t row, int32_t offset, float d, float m, float *out) {
    codes += row % PANEL * 4;
    for (int32_t i = 0; i < BLOCK / 2; i++) {
        uint8_t byte = codes[i / 4 * PANEL * 4 + i % 4];
        out[i] = (float)((byte & 15) - offset) * d + m;
        out[i + BLOCK / 2] = (float)((byte >> 4) - offset) * d + m;
    }
}

static void decode_q4_0(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    (void)n;
    int32_t half = k / BLOCK % 2;
    const uint8_t *tile = find_tile(w, row, k, 64 + TILE * PANEL / 2);
    decode_q4(tile + 64 + half * BLOCK * PANEL / 2, row, 8, tile_half(tile, half, row), 0.0f, out);
}

static void decode_q4_1(const ci_weight *w, int32_t row, int32_t k, int32_t n, float *out) {
    (void)n;
    int32_t half = k / BLOCK % 2;
    const uint8_t *tile = find_tile(w, row, k, 128 + TILE * PANEL / 2);
    float d = tile_half(tile, half, row), m = tile_half(tile + 64, half, row);
    decode_q4(tile + 128 + half * BLOCK * PANEL / 2, row, 0, d, m, out);
}

static decode_fn *find_decoder(int32_t type) {
    switch (type) {
    case CI_F16:
        return decode_f16;
    case CI_BF16:
        return decode_bf16;
    case CI_Q8_0:
        return decode_q8_0;
    case CI_Q4_0:
        return decode_q4_0;
    case CI_Q4_1:
        return decode_q4_1;
    default:
        return decode_f32;
    }
}

/* Blocks of 32 columns are split over the team, so that one wide token is shared too. */
void ci_embed(const ci_op *op, const ci_step *step) {
    decode_fn *decode = find_decoder(op->w[0].type);
    int32_t begin, end, blocks = (op->n + BLOCK - 1) / BLOCK;
    ci_team_share(&step->team, ci_rows(op, step) * blocks, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        int32_t t = i / blocks, k = i % blocks * BLOCK;
        int32_t n = op->n - k < BLOCK ? op->n - k : BLOCK;
        decode(&op->w[0], step->batch->tokens[t], k, n, (float *)ci_out_row(op, t) + k);
    }
}
