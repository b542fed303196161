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

/* Along the depth B lies in segments (pages of V), each with pointers of its own. */
typedef struct ci_tile {
    const float *a; /* [rows][a_stride] */
    int64_t a_stride;
    const char *const *b;     /* [segments][columns], per 16 columns: [segment][b_stride] of b_type */
    const char *const *ahead; /* null, or as b: memory to prefetch, as many bytes as b takes */
    int64_t b_stride;         /* elements */
    int32_t b_type;           /* CI_F32, CI_F16, CI_BF16 or CI_I8 */
    int32_t columns;          /* pointers from one segment to the next */
    int32_t segment;          /* depth of a segment */
    int32_t begin, end;       /* the part of the depth that is summed */
    float *c;                 /* [rows][c_stride] */
    int64_t c_stride;
    int32_t accumulate;                /* 0: C starts from zero */
    const float *scale;                /* null, or what sums are multiplied by */
    const float *const *column_scales; /* null, or per 16 columns: [16], what sums are multiplied by before that */
} ci_tile;

/* Where a register tile stands in its tile: its first row and column. */
typedef struct ci_corner {
    int32_t row, column;
} ci_corner;

/* rows, width, type and ahead are constants wherever this is inlined, so the sums live in registers. */
ATTENTION_INLINE void tile_sum(const ci_tile *t, ci_corner at, vf16 *sum, const int rows, const int width,
                               const int type, const int ahead) {
    const float *a = t->a + at.row * t->a_stride;
    const int64_t a_stride = t->a_stride, b_stride = t->b_stride;
    const int bytes = VF_LANES * (type == CI_F32 ? 4 : type == CI_I8 ? 1 : 2); /* of a column in a step */
    int32_t segment = t->begin < t->segment ? 0 : t->begin / t->segment; /* mostly no division, which all waits for */
    for (int32_t k = t->begin; k < t->end; segment++) {
        const int64_t first = (int64_t)segment * t->columns + at.column;
        const int32_t start = segment * t->segment;
        const int32_t end = t->end < start + t->segment ? t->end : start + t->segment;
        const char *b[4], *next[4] = {0};
#pragma GCC unroll 4
        for (int x = 0; x < width; x++) {
            b[x] = t->b[first + x];
            if (ahead)
                next[x] = t->ahead[first + x] + (int64_t)(k - start) * bytes;
        }
        /* One step at a time, or loads of the next move up and sums spill. */
#pragma GCC unroll 1
        for (; k < end; k++) {
            attention_step(sum, a + k, a_stride, b, (k - start) * b_stride, rows, width, type);
#pragma GCC unroll 4
            for (int x = 0; ahead && x < width; x++) {
                __builtin_prefetch(next[x]);
                next[x] += bytes;
            }
        }
    }
}

ATTENTION_INLINE void tile_body(const ci_tile *t, ci_corner at, const int rows, const int width, const int type,
                                const int ahead) {
    vf16 sum[6 * 4];
    const int64_t c_stride = t->c_stride;
    float *c = t->c + at.row * c_stride + at.column * VF_LANES;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            sum[r * width + x] = t->accumulate ? vf_load(c + r * c_stride + x * VF_LANES) : vf_zero();
    tile_sum(t, at, sum, rows, width, type, ahead);
    if (t->column_scales)
#pragma GCC unroll 4
        for (int x = 0; x < width; x++) {
            const vf16 scale = vf_load(t->column_scales[at.column + x]);
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
ATTENTION_INLINE void tile_typed(const ci_tile *t, ci_corner at, const int rows, const int width) {
    if (!t->ahead)
        tile_body(t, at, rows, width, CI_F32, 0);
    else if (t->b_type == CI_F32)
        tile_body(t, at, rows, width, CI_F32, 1);
    else if (t->b_type == CI_F16)
        tile_body(t, at, rows, width, CI_F16, 1);
    else if (t->b_type == CI_BF16)
        tile_body(t, at, rows, width, CI_BF16, 1);
    else
        tile_body(t, at, rows, width, CI_I8, 1);
}

/* n columns (in vf16): the tile's own width while it fits, then one by one. */
#define TILE_ROWS(rows)                                                                                \
    static __attribute__((noinline)) void tile_rows_##rows(const ci_tile *t, int32_t row, int32_t n) { \
        ci_corner at = {row, 0};                                                                       \
        for (; at.column + ATTENTION_WIDTH(rows) <= n; at.column += ATTENTION_WIDTH(rows))             \
            tile_typed(t, at, rows, ATTENTION_WIDTH(rows));                                            \
        for (; at.column < n; at.column++)                                                             \
            tile_typed(t, at, rows, 1);                                                                \
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
static void tile_run(const ci_tile *t, int32_t rows, int32_t n) {
    const int32_t blocks = (rows + ATTENTION_MR - 1) / ATTENTION_MR, more = rows % blocks;
    for (int32_t i = 0, begin = 0, n_rows = rows / blocks + 1; i < blocks; i++, begin += n_rows) {
        n_rows -= i == more; /* the first `more` blocks have a row more */
        switch (n_rows) {
        case 1:
            tile_rows_1(t, begin, n);
            break;
        case 2:
            tile_rows_2(t, begin, n);
            break;
        case 3:
            tile_rows_3(t, begin, n);
            break;
        case 4:
            tile_rows_4(t, begin, n);
            break;
#if VF_GEMM_MR > 4
        case 5:
            tile_rows_5(t, begin, n);
            break;
        case 6:
            tile_rows_6(t, begin, n);
            break;
#endif
        default:
            break;
        }
    }
}
#endif
