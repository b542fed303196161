/* Attention of a few consecutive queries of one sequence, all heads of one kv head, over one chunk of its keys.
 * A row is (query, head): row = query * group + head. Every row does the same operations whatever rows go with it. */
#ifndef CPUINFER_ATTENTION_CHUNK_H
#define CPUINFER_ATTENTION_CHUNK_H
#include <vec.h>
#include <vmath.h>

#include "attention_tile.h"
#include "kernels.h"
#include "kv.h"

enum {
    /* Keys per online-softmax update, aligned to the position. 32 lose 3-8 % in prefill and 30 % in the decode of one
     * head (too few pages side by side to hide an FMA's latency); 128 win 2 % on long keys and lose 5 % on short. */
    ATTENTION_GROUP = 64,
    /* Keys per partial result: the unit in which the keys of a query are split over threads. Part of the result's
     * definition, so no setting. 256 keys of one kv head are 64 KB at head_dim 64 in f16: a few microseconds. */
    ATTENTION_CHUNK = 256,
    /* Rows that share one conversion of K and V to f32, at most. With 48 it takes 8 % of a long prefill; 96 halve that
     * and lose as much again to scores and outputs that leave L1. */
    ATTENTION_ROWS = 48,
    ATTENTION_PAGES = ATTENTION_GROUP / CI_PAGE,
    ATTENTION_SLICES = 16 /* of V, handed to a tile at once; at least 4 */
};

/* Softmax state of rows: maximum, sum and unnormalised output [rows][padded]. */
typedef struct ci_partial {
    float *max;
    float *sum;
    float *out;
} ci_partial;

/* Consecutive queries of one sequence against one kv head, and the scratch memory to do them in. */
typedef struct ci_attend {
    const ci_kv *kv;
    const int32_t *pages; /* block table of the sequence */
    int32_t layer;
    int32_t kv_head;
    int32_t head_dim;
    int32_t padded;   /* head_dim rounded up to whole vf16 */
    int32_t group;    /* query heads per kv head */
    int32_t queries;  /* in this tile */
    int32_t position; /* of the first query */
    float scale;
    float *q;      /* [rows][head_dim] */
    float *scores; /* [rows][ATTENTION_GROUP] */
    float *lanes;  /* [rows][16]: the sums, key = lane modulo 16 */
    float *k;      /* [ATTENTION_PAGES][head_dim][16] */
    float *v;      /* [padded / 16][ATTENTION_GROUP][16] */
} ci_attend;

static inline int32_t attend_min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static inline int32_t attend_max(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* First query that sees the key at `position`. */
static inline int32_t attend_first_query(const ci_attend *at, int32_t position) {
    return position > at->position ? position - at->position : 0;
}

static inline int32_t attend_page(const ci_attend *at, int32_t position) {
    return at->pages[position / CI_PAGE];
}

ATTENTION_INLINE void attend_widen(float *to, const char *from, int32_t n, const int32_t type) {
    for (int32_t i = 0; i < n; i += VF_LANES)
        vf_store(to + i, attention_load(from, i, type));
}

/* One page of K as f32. */
static void attend_widen_k(float *to, const char *page, int32_t n, int32_t type) {
    if (type == CI_F32)
        attend_widen(to, page, n, CI_F32);
    else if (type == CI_F16)
        attend_widen(to, page, n, CI_F16);
    else
        attend_widen(to, page, n, CI_BF16);
}

/* Keys of a page of V, [key][head_dim], into [slice][key][16]; dimensions past head_dim become zero. */
ATTENTION_INLINE void attend_widen_v(float *to, const char *page, int32_t keys, int32_t head_dim, const int32_t type) {
    const int32_t tail = head_dim % VF_LANES, itemsize = type == CI_F32 ? 4 : 2;
    for (int32_t d = 0; d + VF_LANES <= head_dim; d += VF_LANES)
        for (int32_t key = 0; key < keys; key++)
            vf_store(to + d * ATTENTION_GROUP + key * VF_LANES, attention_load(page, key * head_dim + d, type));
    for (int32_t key = 0; tail && key < keys; key++) {
        char padded[VF_LANES * sizeof(float)] = {0};
        memcpy(padded, page + ((key + 1) * head_dim - tail) * itemsize, (size_t)(tail * itemsize));
        vf_store(to + (head_dim - tail) * ATTENTION_GROUP + key * VF_LANES, attention_load(padded, 0, type));
    }
}

/* V of the keys of a group, page by page; what lies behind them is not read. */
static void attend_widen_group(const ci_attend *at, int32_t start, int32_t keys) {
    for (int32_t key = 0; key < keys; key += CI_PAGE) {
        const char *page = kv_v(at->kv, at->layer, attend_page(at, start + key), at->kv_head, at->head_dim);
        const int32_t n = attend_min(CI_PAGE, keys - key);
        float *to = at->v + key * VF_LANES;
        if (at->kv->type == CI_F32)
            attend_widen_v(to, page, n, at->head_dim, CI_F32);
        else if (at->kv->type == CI_F16)
            attend_widen_v(to, page, n, at->head_dim, CI_F16);
        else
            attend_widen_v(to, page, n, at->head_dim, CI_BF16);
    }
}

/* scores[row][key] = sum over d of q[row][d] * k[d][key], in order. Keys a row does not see hold anything. */
static void attend_scores(const ci_attend *at, int32_t start, int32_t keys, int32_t direct) {
    const int32_t n_pages = (keys + CI_PAGE - 1) / CI_PAGE, page_floats = at->head_dim * CI_PAGE;
    const int32_t step = ATTENTION_WIDTH(attend_min(at->queries * at->group, ATTENTION_MR));
    for (int32_t first = 0; first < n_pages; first += step) {
        const char *columns[ATTENTION_PAGES];
        int32_t n = attend_min(step, n_pages - first);
        for (int32_t i = 0; i < n; i++) {
            int32_t page = attend_page(at, start + (first + i) * CI_PAGE);
            columns[i] = kv_k(at->kv, at->layer, page, at->kv_head, at->head_dim);
            if (!direct) {
                attend_widen_k(at->k + i * page_floats, columns[i], page_floats, at->kv->type);
                columns[i] = (const char *)(at->k + i * page_floats);
            }
        }
        int32_t row = attend_first_query(at, start + first * CI_PAGE) * at->group;
        ci_tile tile = {.a = at->q + (int64_t)row * at->head_dim,
                        .a_stride = at->head_dim,
                        .b = columns,
                        .b_stride = CI_PAGE,
                        .b_type = direct ? at->kv->type : CI_F32,
                        .depth = at->head_dim,
                        .c = at->scores + row * ATTENTION_GROUP + first * CI_PAGE,
                        .c_stride = ATTENTION_GROUP};
        tile_run(tile, at->queries * at->group - row, n);
    }
}

/* The new maximum of one row from its first n keys of a group, scores scaled. What the row has so far is rescaled by
 * exp(old - max) unless that is 1 (same maximum) or there is nothing yet (first group of the chunk). */
ATTENTION_INLINE void attend_maximum(const ci_attend *at, int32_t row, const int32_t n, const ci_partial *partial) {
    float *s = at->scores + row * ATTENTION_GROUP, *out = partial->out + (int64_t)row * at->padded;
    const float old = partial->max[row];
    vf16 top = vf_set1(old);
    for (int32_t i = 0; i < n; i += VF_LANES) {
        vf16 x = vf_mul(vf_load(s + i), vf_set1(at->scale));
        if (n - i < VF_LANES)
            x = vf_first_n(x, vf_set1(-INFINITY), n - i);
        vf_store(s + i, x);
        top = vf_max(top, x);
    }
    const float max = vf_hmax(top);
    partial->max[row] = max;
    if (max != old && old != -INFINITY) {
        const vf16 factor = vf_exp_nonpositive(vf_set1(old - max));
        vf_store(at->lanes + row * VF_LANES, vf_mul(vf_load(at->lanes + row * VF_LANES), factor));
        for (int32_t d = 0; d < at->padded; d += VF_LANES)
            vf_store(out + d, vf_mul(vf_load(out + d), factor));
    }
}

/* Scores of one row become probabilities relative to its maximum, and join its sums. */
ATTENTION_INLINE void attend_exp(const ci_attend *at, int32_t row, const int32_t n, const ci_partial *partial) {
    float *s = at->scores + row * ATTENTION_GROUP;
    const vf16 max = vf_set1(partial->max[row]);
    vf16 sum = vf_load(at->lanes + row * VF_LANES);
    for (int32_t i = 0; i < n; i += VF_LANES) {
        vf16 p = vf_exp_nonpositive(vf_sub(vf_load(s + i), max));
        if (n - i < VF_LANES)
            p = vf_first_n(p, vf_zero(), n - i);
        vf_store(s + i, p);
        sum = vf_add(sum, p);
    }
    vf_store(at->lanes + row * VF_LANES, sum);
}

/* One online-softmax update of every row from query `first` on. Two passes: in each, rows overlap in the pipeline. */
static void attend_softmax(const ci_attend *at, int32_t start, int32_t first, const ci_partial *partial) {
    const int32_t group = at->group, rows = at->queries * group;
    const int32_t full = attend_min(attend_first_query(at, start + ATTENTION_GROUP - 1), at->queries) * group;
    const int32_t seen = at->position + 1 - start; /* keys that query 0 sees */
    for (int32_t row = first * group; row < full; row++)
        attend_maximum(at, row, seen + row / group, partial);
    for (int32_t row = attend_max(full, first * group); row < rows; row++)
        attend_maximum(at, row, ATTENTION_GROUP, partial);
    for (int32_t row = first * group; row < full; row++)
        attend_exp(at, row, seen + row / group, partial);
    for (int32_t row = attend_max(full, first * group); row < rows; row++)
        attend_exp(at, row, ATTENTION_GROUP, partial);
}

/* out[row] += sum over the first n keys of p[row][key] * v[key], in order, for `rows` rows that all see n keys. V past
 * them is not touched. */
static void attend_output(const ci_attend *at, int32_t start, int32_t row, int32_t rows, int32_t n, int32_t direct,
                          const ci_partial *partial) {
    const int32_t n_slices = at->padded / VF_LANES, itemsize = kv_itemsize(at->kv);
    float *const out = partial->out + (int64_t)row * at->padded;
    const char *columns[ATTENTION_SLICES];
    ci_tile tile = {.a = at->scores + row * ATTENTION_GROUP,
                    .a_stride = ATTENTION_GROUP,
                    .b = columns,
                    .b_stride = direct ? at->head_dim : VF_LANES,
                    .b_type = direct ? at->kv->type : CI_F32,
                    .depth = n,
                    .c_stride = at->padded,
                    .accumulate = 1};
    if (!direct) {
        /* Few slices at a time over all rows, so that their part of V stays in L1. */
        const int32_t step = ATTENTION_WIDTH(ATTENTION_MR);
        for (int32_t first = 0; first < n_slices; first += step) {
            for (int32_t i = first; i < attend_min(first + step, n_slices); i++)
                columns[i - first] = (const char *)(at->v + i * ATTENTION_GROUP * VF_LANES);
            tile.c = out + first * VF_LANES;
            tile_run(tile, rows, attend_min(step, n_slices - first));
        }
        return;
    }
    for (int32_t key = 0; key < n; key += CI_PAGE, tile.a += CI_PAGE) {
        const char *v = kv_v(at->kv, at->layer, attend_page(at, start + key), at->kv_head, at->head_dim);
        tile.depth = attend_min(CI_PAGE, n - key);
        for (int32_t first = 0; first < n_slices; first += ATTENTION_SLICES) {
            for (int32_t i = first; i < attend_min(first + ATTENTION_SLICES, n_slices); i++)
                columns[i - first] = v + i * VF_LANES * itemsize;
            tile.c = out + first * VF_LANES;
            tile_run(tile, rows, attend_min(ATTENTION_SLICES, n_slices - first));
        }
    }
}

/* Keys start .. start+ATTENTION_GROUP-1, as far as the queries see them. */
static void attend_group(const ci_attend *at, int32_t start, const ci_partial *partial) {
    const int32_t first = attend_first_query(at, start), group = at->group;
    const int32_t keys = attend_min(ATTENTION_GROUP, at->position + at->queries - start);
    const int32_t rows = (at->queries - first) * group;
    /* Rows that fit one register tile read the pages as they are; more rows share one conversion to f32. */
    const int32_t direct = rows <= ATTENTION_MR && at->head_dim % VF_LANES == 0;
    attend_scores(at, start, keys, direct);
    attend_softmax(at, start, first, partial);
    if (!direct)
        attend_widen_group(at, start, keys);
    /* Queries on the diagonal see different numbers of keys: one query at a time. The others: all at once. */
    const int32_t full = attend_min(attend_first_query(at, start + keys - 1), at->queries);
    for (int32_t query = first; query < full; query++)
        attend_output(at, start, query * group, group, at->position + query + 1 - start, direct, partial);
    if (full < at->queries)
        attend_output(at, start, full * group, (at->queries - full) * group, keys, direct, partial);
}

/* The partial result of every query that sees a key of the chunk; rows of the others are left alone. */
static void attend_chunk(const ci_attend *at, int32_t chunk, const ci_partial *partial) {
    const int32_t start = chunk * ATTENTION_CHUNK, rows = at->queries * at->group;
    const int32_t row = attend_first_query(at, start) * at->group;
    const int32_t end = attend_min(start + ATTENTION_CHUNK, at->position + at->queries);
    for (int32_t r = row; r < rows; r++)
        partial->max[r] = -INFINITY;
    memset(at->lanes + row * VF_LANES, 0, (size_t)(rows - row) * VF_LANES * sizeof(float));
    memset(partial->out + (int64_t)row * at->padded, 0, (size_t)(rows - row) * (size_t)at->padded * sizeof(float));
    for (int32_t key = start; key < end; key += ATTENTION_GROUP)
        attend_group(at, key, partial);
    for (int32_t r = row; r < rows; r++)
        partial->sum[r] = vf_hsum(vf_load(at->lanes + r * VF_LANES));
}

/* One row of `into` takes in the same row of the next chunk. */
static void attend_merge(const ci_partial *into, const ci_partial *next, int64_t row, int32_t padded) {
    const float old = into->max[row], other = next->max[row], max = other > old ? other : old;
    const vf16 keep = vf_exp_nonpositive(vf_set1(old - max)), take = vf_exp_nonpositive(vf_set1(other - max));
    const vf16 sum = vf_fma(vf_set1(into->sum[row]), keep, vf_mul(vf_set1(next->sum[row]), take));
    float *to = into->out + row * padded;
    const float *from = next->out + row * padded;
    for (int32_t d = 0; d < padded; d += VF_LANES)
        vf_store(to + d, vf_fma(vf_load(to + d), keep, vf_mul(vf_load(from + d), take)));
    into->max[row] = max;
    vf_store_n(into->sum + row, sum, 1);
}
#endif
