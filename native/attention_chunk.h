/* Attention of a few consecutive queries of one sequence, all heads of one kv head, over one chunk of its keys. */
#ifndef CPUINFER_ATTENTION_CHUNK_H
#define CPUINFER_ATTENTION_CHUNK_H
#include "attention_softmax.h"
#include "attention_state.h"

ATTENTION_INLINE void attend_widen_k(float *to, const char *page, int32_t n, const int32_t type) {
    for (int32_t i = 0; i < n; i += VF_LANES)
        vf_store(to + i, attention_load(page, i, type));
}

/* Keys of a page of V, [key][head_dim], into [slice][key][16]; dimensions past head_dim become zero. */
ATTENTION_INLINE void attend_widen_v(float *to, const char *page, int32_t keys, int32_t head_dim, const int32_t type) {
    const int32_t tail = head_dim % VF_LANES, itemsize = kv_itemsize(type);
    for (int32_t d = 0; d + VF_LANES <= head_dim; d += VF_LANES)
        for (int32_t key = 0; key < keys; key++)
            vf_store(to + d * ATTENTION_GROUP + key * VF_LANES, attention_load(page, key * head_dim + d, type));
    for (int32_t key = 0; tail && key < keys; key++) {
        char padded[VF_LANES * sizeof(float)] = {0};
        memcpy(padded, page + ((key + 1) * head_dim - tail) * itemsize, (size_t)(tail * itemsize));
        vf_store(to + (head_dim - tail) * ATTENTION_GROUP + key * VF_LANES, attention_load(padded, 0, type));
    }
}

/* All pages of the group to f32, the codes of CI_I8 without their scales. V behind the last key is not read. */
ATTENTION_INLINE void attend_widen_typed(const ci_attend *at, ci_keys *keys, const int32_t type) {
    const int32_t page_floats = at->head_dim * CI_PAGE;
    for (int32_t i = 0; i < keys->pages; i++) {
        attend_widen_k(at->k + i * page_floats, keys->k[i], page_floats, type);
        attend_widen_v(at->v + i * CI_PAGE * VF_LANES, keys->v[i], attend_min(CI_PAGE, keys->n - i * CI_PAGE),
                       at->head_dim, type);
        keys->k[i] = (const char *)(at->k + i * page_floats);
    }
}

static void attend_widen(const ci_attend *at, ci_keys *keys) {
    switch (at->kv->type) {
    case CI_F32:
        attend_widen_typed(at, keys, CI_F32);
        break;
    case CI_F16:
        attend_widen_typed(at, keys, CI_F16);
        break;
    case CI_BF16:
        attend_widen_typed(at, keys, CI_BF16);
        break;
    default:
        attend_widen_typed(at, keys, CI_I8);
    }
}

/* The pages of the group at `start`, and of what follows it. */
static ci_keys attend_find(const ci_attend *at, int32_t start) {
    const ci_kv *kv = at->kv;
    ci_keys keys; /* what the type and the number of pages leave out stays unset: clearing all took 2 % of a decode */
    keys.start = start;
    keys.n = attend_min(ATTENTION_GROUP, at->position + at->queries - start);
    keys.pages = (keys.n + CI_PAGE - 1) / CI_PAGE;
    for (int32_t i = 0; i < keys.pages; i++) {
        const int32_t at_page = start / CI_PAGE + i, page = at->pages[at_page];
        const int32_t behind = start + ATTENTION_GROUP + i * CI_PAGE;
        keys.k[i] = kv_k(kv, at->layer, page, at->kv_head);
        keys.v[i] = keys.k[i] + kv->k_bytes;
        keys.k_ahead[i] = behind < at->end ? kv_k(kv, at->layer, at->pages[behind / CI_PAGE], at->kv_head)
                          : i < at->then.n ? kv_k(kv, at->layer, at->then.pages[i], at->then.kv_head)
                                           : keys.k[i];
        keys.v_ahead[i] = keys.k_ahead[i] + kv->k_bytes;
        if (kv->type == CI_I8) {
            keys.k_scales[i] = kv_scales(kv, at->layer, page, at->kv_head);
            keys.v_scales[i] = keys.k_scales[i] + CI_PAGE;
        }
    }
    return keys;
}

/* scores[row][key] = (sum over d of q[row][d] * k[d][key], in order) * k_scale[key] * scale for the queries `of`. Keys
 * a row does not see hold anything. */
static void attend_scores(const ci_attend *at, const ci_keys *keys, ci_queries of) {
    const int32_t seen = (at->position + of.last - 1 - keys->start) / CI_PAGE + 1; /* pages, by the last of them */
    const int32_t pages = attend_min(keys->pages, seen), one = (of.last - of.first) * at->group <= ATTENTION_MR;
    const int32_t step = one ? pages : ATTENTION_WIDTH(ATTENTION_MR);
    for (int32_t first = 0; first < pages; first += step) {
        const int32_t n = attend_min(step, pages - first), key = keys->start + first * CI_PAGE;
        const ci_queries seeing = attend_seeing(at, of, key, key + n * CI_PAGE - 1);
        const int64_t row = (int64_t)seeing.first * at->group, skipped = row - (int64_t)of.first * at->group;
        const ci_tile tile = {.a = at->q + row * at->head_dim,
                              .a_stride = at->head_dim,
                              .b = keys->k + first,
                              .ahead = keys->direct ? keys->k_ahead + first : NULL,
                              .b_stride = CI_PAGE,
                              .b_type = at->kv->type,
                              .columns = n,
                              .segment = at->head_dim,
                              .end = at->head_dim,
                              .c = at->scores + skipped * ATTENTION_GROUP + first * CI_PAGE,
                              .c_stride = ATTENTION_GROUP,
                              .scale = &at->scale,
                              .column_scales = at->kv->type == CI_I8 ? keys->k_scales + first : NULL};
        if (seeing.first < seeing.last)
            tile_run(&tile, (seeing.last - seeing.first) * at->group, n);
    }
}

/* out[row] += sum over keys low .. high-1 of p[row][key] * v[key], in order, for `rows` rows that all see just those.
 * p: of the first of the rows. */
static void attend_output(const ci_attend *at, const float *p, int32_t rows, int32_t low, int32_t high, float *out) {
    const int32_t n_slices = at->padded / VF_LANES;
    const char *columns[ATTENTION_SLICES];
    ci_tile tile = {.a = p,
                    .a_stride = ATTENTION_GROUP,
                    .b = columns,
                    .b_stride = VF_LANES,
                    .segment = ATTENTION_GROUP,
                    .begin = low,
                    .end = high,
                    .c_stride = at->padded,
                    .accumulate = 1};
    /* Few slices at a time over all rows, so that their part of V stays in L1. */
    const int32_t step = ATTENTION_WIDTH(ATTENTION_MR);
    for (int32_t first = 0; first < n_slices; first += step) {
        for (int32_t i = first; i < attend_min(first + step, n_slices); i++)
            columns[i - first] = (const char *)(at->v + i * ATTENTION_GROUP * VF_LANES);
        tile.c = out + first * VF_LANES;
        tile_run(&tile, rows, attend_min(step, n_slices - first));
    }
}

/* The same from the pages themselves. */
static void attend_output_direct(const ci_attend *at, const ci_keys *keys, const float *p, int32_t rows, int32_t low,
                                 int32_t high, float *out) {
    const int32_t n_slices = at->padded / VF_LANES, itemsize = kv_itemsize(at->kv->type);
    const char *columns[ATTENTION_PAGES][ATTENTION_SLICES], *ahead[ATTENTION_PAGES][ATTENTION_SLICES];
    ci_tile tile = {.a = p,
                    .a_stride = ATTENTION_GROUP,
                    .b = columns[0],
                    .ahead = ahead[0],
                    .b_stride = at->head_dim,
                    .b_type = at->kv->type,
                    .columns = ATTENTION_SLICES,
                    .segment = CI_PAGE,
                    .begin = low,
                    .end = high,
                    .c_stride = at->padded,
                    .accumulate = 1};
    for (int32_t first = 0; first < n_slices; first += ATTENTION_SLICES) {
        const int32_t n = attend_min(ATTENTION_SLICES, n_slices - first);
        for (int32_t page = low / CI_PAGE; page * CI_PAGE < high; page++)
            for (int32_t i = 0; i < n; i++) {
                columns[page][i] = keys->v[page] + (first + i) * VF_LANES * itemsize;
                ahead[page][i] = keys->v_ahead[page] + (first + i) * CI_PAGE * VF_LANES * itemsize;
            }
        tile.c = out + first * VF_LANES;
        tile_run(&tile, rows, n);
    }
}

/* Queries at either end of what they see, with keys of their own each, one by one; the others all at once. */
static void attend_outputs(const ci_attend *at, const ci_keys *keys, ci_queries of, const ci_partial *partial) {
    const ci_queries all = attend_seeing_all(at, of, keys->start, keys->start + ATTENTION_GROUP - 1);
    for (int32_t query = of.first, n; query < of.last; query += n) {
        const int32_t together = query == all.first && all.first < all.last;
        const float *p = at->scores + (query - of.first) * at->group * ATTENTION_GROUP;
        float *out = partial->out + (int64_t)query * at->group * at->padded;
        int32_t low, high;
        attend_visible(at, keys->start, query, &low, &high);
        n = together ? all.last - all.first : 1;
        if (keys->direct)
            attend_output_direct(at, keys, p, n * at->group, low, high, out);
        else
            attend_output(at, p, n * at->group, low, high, out);
    }
}

/* Fetch the pages that follow those of the group into L2, the share of block i of n: what is converted next then lies
 * near, and memory rests less. */
static void attend_fetch(const ci_attend *at, const ci_keys *keys, int32_t i, int32_t n) {
    for (int32_t page = keys->pages * i / n; page < keys->pages * (i + 1) / n; page++)
        for (int64_t line = 0; line < 2 * at->kv->k_bytes; line += 64)
            __builtin_prefetch(keys->k_ahead[page] + line, 0, 2);
}

/* The group of keys at `start`, for the queries that see one of them. */
static void attend_group(const ci_attend *at, int32_t start, const ci_partial *partial) {
    const ci_queries tile = {0, at->queries};
    const ci_queries of = attend_seeing(at, tile, start, start + ATTENTION_GROUP - 1);
    const int32_t block = attend_max(ATTENTION_BLOCK / at->group, 1);
    ci_keys keys = attend_find(at, start);
    /* Rows that fit one register tile read the pages as they are; more rows share one conversion to f32. */
    keys.direct = (of.last - of.first) * at->group <= ATTENTION_MR && at->head_dim % VF_LANES == 0;
    if (!keys.direct)
        attend_widen(at, &keys);
    const int32_t blocks = (of.last - of.first + block - 1) / block;
    for (int32_t i = 0; i < blocks; i++) {
        const int32_t query = of.first + i * block;
        const ci_queries now = {query, attend_min(query + block, of.last)};
        if (!keys.direct)
            attend_fetch(at, &keys, i, blocks);
        attend_scores(at, &keys, now);
        attend_softmax(at, &keys, now, partial);
        attend_outputs(at, &keys, now, partial);
    }
}

/* The partial result of every query that sees a key of the chunk, which are returned; rows of the others are left
 * alone.
 */
static ci_queries attend_chunk(const ci_attend *at, int32_t chunk, const ci_partial *partial) {
    const ci_queries tile = {0, at->queries};
    const int32_t start = chunk * ATTENTION_CHUNK;
    const ci_queries of = attend_seeing(at, tile, start, start + ATTENTION_CHUNK - 1);
    const int32_t first = of.first * at->group, last = of.last * at->group, rows = last - first;
    const int32_t begin = chunk_begin(chunk, at->position, at->window);
    const int32_t end = attend_min(start + ATTENTION_CHUNK, at->position + at->queries);
    for (int32_t r = first; r < last; r++)
        partial->max[r] = -INFINITY;
    memset(at->lanes + first * VF_LANES, 0, (size_t)rows * VF_LANES * sizeof(float));
    memset(partial->out + (int64_t)first * at->padded, 0, (size_t)rows * (size_t)at->padded * sizeof(float));
    for (int32_t key = begin; key < end; key += ATTENTION_GROUP)
        attend_group(at, key, partial);
    for (int32_t r = first; r < last; r++)
        partial->sum[r] = vf_hsum(vf_load(at->lanes + r * VF_LANES));
    return of;
}

/* One row of `into` becomes that of its first chunk. */
static void attend_copy(const ci_partial *into, const ci_partial *first, int64_t row, int32_t padded) {
    into->max[row] = first->max[row];
    into->sum[row] = first->sum[row];
    memcpy(into->out + row * padded, first->out + row * padded, (size_t)padded * sizeof(float));
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
