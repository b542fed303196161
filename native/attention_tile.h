/* The one product that both halves of attention are made of: C[rows][16 * n] (+)= A[rows][depth] * B[depth][16 * n].
 * Scores: A = queries, B = pages of K, depth = head_dim. Output: A = probabilities, B = V, depth = keys.
 * Every element is one sum over the depth in order, whatever the shape of the tile it falls in. */
#ifndef CPUINFER_ATTENTION_TILE_H
#define CPUINFER_ATTENTION_TILE_H
#include <attention_step.h>
#include <vec.h>

#include "kernels.h"

/* Rows of a register tile: what vec.h says fits. 6 rows of 1 or 2 columns have the 8 running sums that hide an FMA's
 * latency, so no level needs more. */
#define ATTENTION_MR (VF_GEMM_MR < 6 ? VF_GEMM_MR : 6)

typedef struct ci_tile {
    const float *a; /* [rows][a_stride] */
    int64_t a_stride;
    const char *const *b; /* per 16 columns: [depth][b_stride] of b_type */
    int64_t b_stride;     /* elements */
    int32_t b_type;       /* CI_F32, CI_F16, CI_BF16 or CI_I8 */
    int32_t depth;
    float *c; /* [rows][c_stride] */
    int64_t c_stride;
    int32_t accumulate;                /* 0: C starts from zero */
    const float *scale;                /* null, or what sums are multiplied by */
    const float *const *column_scales; /* null, or per 16 columns: [16], what sums are multiplied by before that */
    const char *const *ahead;          /* null, or per 16 columns: memory to prefetch, as many bytes as b takes */
} ci_tile;

/* rows, width, type and ahead are constants wherever this is inlined, so the sums live in registers. */
ATTENTION_INLINE void tile_sum(const ci_tile *t, vf16 *sum, const int rows, const int width, const int type,
                               const int ahead) {
    const float *a = t->a;
    const int64_t a_stride = t->a_stride, b_stride = t->b_stride, depth = t->depth;
    const int bytes = width * VF_LANES * (type == CI_F32 ? 4 : type == CI_I8 ? 1 : 2); /* of b in a step */
    const char *b[4];
    int64_t k = 0;
#pragma GCC unroll 4
    for (int x = 0; x < width; x++)
        b[x] = t->b[x];
    /* Column after column of what is ahead, as the steps go: each line once or twice. One step at a time, or loads of
     * the next move up and sums spill. */
    for (int x = 0; x < (ahead ? width : 1); x++) {
        const char *next = ahead ? t->ahead[x] : NULL;
        const int64_t end = ahead ? depth * (x + 1) / width : depth;
#pragma GCC unroll 1
        for (; k < end; k++) {
            attention_step(sum, a + k, a_stride, b, k * b_stride, rows, width, type);
#pragma GCC unroll 4
            for (int line = 0; ahead && line < bytes; line += 64)
                __builtin_prefetch(next + line);
            next += ahead ? bytes : 0;
        }
    }
}

ATTENTION_INLINE void tile_body(const ci_tile *t, const int rows, const int width, const int type, const int ahead) {
    vf16 sum[6 * 4];
    const int64_t c_stride = t->c_stride;
    float *c = t->c;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            sum[r * width + x] = t->accumulate ? vf_load(c + r * c_stride + x * VF_LANES) : vf_zero();
    tile_sum(t, sum, rows, width, type, ahead);
    if (t->column_scales)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++) {
            const vf16 scale = vf_load(t->column_scales[x]);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
                sum[r * width + x] = vf_mul(sum[r * width + x], scale);
        }
    if (t->scale) {
        const vf16 scale = vf_set1(*t->scale);
#pragma GCC unroll 24
        for (int i = 0; i < rows * width; i++)
            sum[i] = vf_mul(sum[i], scale);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            vf_store(c + r * c_stride + x * VF_LANES, sum[r * width + x]);
}

/* Pages read as they are (ahead), or their f32 copies. */
ATTENTION_INLINE void tile_typed(const ci_tile *t, const int rows, const int width) {
    if (!t->ahead)
        tile_body(t, rows, width, CI_F32, 0);
    else if (t->b_type == CI_F32)
        tile_body(t, rows, width, CI_F32, 1);
    else if (t->b_type == CI_F16)
        tile_body(t, rows, width, CI_F16, 1);
    else if (t->b_type == CI_BF16)
        tile_body(t, rows, width, CI_BF16, 1);
    else
        tile_body(t, rows, width, CI_I8, 1);
}

/* The next `width` columns of a tile. */
ATTENTION_INLINE void tile_columns(ci_tile *t, const int rows, const int width) {
    tile_typed(t, rows, width);
    t->b += width;
    t->c += width * VF_LANES;
    if (t->column_scales)
        t->column_scales += width;
    if (t->ahead)
        t->ahead += width;
}

/* n columns (in vf16): the tile's own width while it fits, then one by one. */
#define TILE_ROWS(rows)                                                            \
    static __attribute__((noinline)) void tile_rows_##rows(ci_tile t, int32_t n) { \
        int32_t x = 0;                                                             \
        for (; x + ATTENTION_WIDTH(rows) <= n; x += ATTENTION_WIDTH(rows))         \
            tile_columns(&t, rows, ATTENTION_WIDTH(rows));                         \
        for (; x < n; x++)                                                         \
            tile_columns(&t, rows, 1);                                             \
    }

TILE_ROWS(1)
TILE_ROWS(2)
TILE_ROWS(3)
TILE_ROWS(4)
#if VF_GEMM_MR > 4
TILE_ROWS(5)
TILE_ROWS(6)
#endif

/* Any number of rows: blocks of nearly equal size, since a lone last row would run at its latency. */
static void tile_run(ci_tile t, int32_t rows, int32_t n) {
    int32_t blocks = (rows + ATTENTION_MR - 1) / ATTENTION_MR;
    const float *a = t.a;
    float *c = t.c;
    for (int32_t i = 0; i < blocks; i++) {
        int32_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
        t.a = a + begin * t.a_stride;
        t.c = c + begin * t.c_stride;
        switch (end - begin) {
        case 1:
            tile_rows_1(t, n);
            break;
        case 2:
            tile_rows_2(t, n);
            break;
        case 3:
            tile_rows_3(t, n);
            break;
        case 4:
            tile_rows_4(t, n);
            break;
#if VF_GEMM_MR > 4
        case 5:
            tile_rows_5(t, n);
            break;
        case 6:
            tile_rows_6(t, n);
            break;
#endif
        default:
            break;
        }
    }
}
#endif
