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
    int32_t b_type;       /* CI_F32, CI_F16 or CI_BF16 */
    int32_t depth;
    float *c; /* [rows][c_stride] */
    int64_t c_stride;
    int32_t accumulate; /* 0: C starts from zero */
} ci_tile;

/* rows, width and type are constants wherever this is inlined, so the sums live in registers. */
ATTENTION_INLINE void tile_body(const ci_tile *t, const int rows, const int width, const int type) {
    vf16 sum[6 * 4];
    const float *a = t->a;
    const int64_t a_stride = t->a_stride, b_stride = t->b_stride, c_stride = t->c_stride, depth = t->depth;
    const char *b[4];
    float *c = t->c;
#pragma GCC unroll 4
    for (int x = 0; x < width; x++)
        b[x] = t->b[x];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            sum[r * width + x] = t->accumulate ? vf_load(c + r * c_stride + x * VF_LANES) : vf_zero();
    for (int64_t k = 0; k < depth; k++)
        attention_step(sum, a + k, a_stride, b, k * b_stride, rows, width, type);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            vf_store(c + r * c_stride + x * VF_LANES, sum[r * width + x]);
}

ATTENTION_INLINE void tile_typed(const ci_tile *t, const int rows, const int width) {
    if (t->b_type == CI_F32)
        tile_body(t, rows, width, CI_F32);
    else if (t->b_type == CI_F16)
        tile_body(t, rows, width, CI_F16);
    else
        tile_body(t, rows, width, CI_BF16);
}

/* n columns (in vf16): the tile's own width while it fits, then one by one. */
#define TILE_ROWS(rows)                                                            \
    static __attribute__((noinline)) void tile_rows_##rows(ci_tile t, int32_t n) { \
        for (int32_t x = 0; x < n;) {                                              \
            if (x + ATTENTION_WIDTH(rows) <= n) {                                  \
                tile_typed(&t, rows, ATTENTION_WIDTH(rows));                       \
                x += ATTENTION_WIDTH(rows);                                        \
                t.b += ATTENTION_WIDTH(rows);                                      \
                t.c += ATTENTION_WIDTH(rows) * VF_LANES;                           \
            } else {                                                               \
                tile_typed(&t, rows, 1);                                           \
                x++;                                                               \
                t.b++;                                                             \
                t.c += VF_LANES;                                                   \
            }                                                                      \
        }                                                                          \
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
