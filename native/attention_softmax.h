/* One online-softmax update: scores of a group of keys become probabilities, and what there is is rescaled. */
#ifndef CPUINFER_ATTENTION_SOFTMAX_H
#define CPUINFER_ATTENTION_SOFTMAX_H
#include <math.h>
#include <vec.h>
#include <vmath.h>

#include "attention_state.h"

/* Lanes low .. high-1 of key i's vector keep x, the others take y. */
ATTENTION_INLINE vf16 attend_mask(vf16 x, vf16 y, int32_t i, const int32_t low, const int32_t high) {
    if (high - i < VF_LANES)
        x = vf_first_n(x, y, high - i);
    if (low > i)
        x = vf_first_n(y, x, low - i);
    return x;
}

/* The maximum of `old` and one row's scores s of keys low .. high-1 of a group. Scores are capped on the way. */
ATTENTION_INLINE float attend_maximum(const ci_attend *at, float *s, const int32_t low, const int32_t high, float old) {
    vf16 top = vf_set1(old);
    for (int32_t i = low / VF_LANES * VF_LANES; i < high; i += VF_LANES) {
        vf16 x = vf_load(s + i);
        if (at->softcap > 0.0f) {
            const vf16 cap = vf_set1(at->softcap);
            x = vf_mul(cap, vf_tanh(vf_div(x, cap)));
            vf_store(s + i, x);
        }
        top = vf_max(top, attend_mask(x, vf_set1(-INFINITY), i, low, high));
    }
    return vf_hmax(top);
}

/* What rows have so far is rescaled by exp(old - max) to their new maxima at->tops, unless that is 1 (same maximum) or
 * there is nothing yet (first group of the chunk). */
static void attend_rescale(const ci_attend *at, int32_t first, int32_t rows, const ci_partial *partial) {
    for (int32_t i = 0; i < rows; i += VF_LANES) {
        const int32_t n = attend_min(rows - i, VF_LANES);
        const vf16 change = vf_sub(vf_load_n(partial->max + first + i, n), vf_load(at->tops + i));
        vf_store(at->factors + i, vf_exp_nonpositive(change));
    }
    for (int32_t i = 0; i < rows; i++) {
        const int64_t row = first + i;
        const float old = partial->max[row];
        if (at->tops[i] == old)
            continue;
        partial->max[row] = at->tops[i];
        if (old == -INFINITY)
            continue;
        const vf16 factor = vf_set1(at->factors[i]);
        float *out = partial->out + row * at->padded, *lanes = at->lanes + row * VF_LANES;
        vf_store(lanes, vf_mul(vf_load(lanes), factor));
        for (int32_t d = 0; d < at->padded; d += VF_LANES)
            vf_store(out + d, vf_mul(vf_load(out + d), factor));
    }
}

/* Scores of one row become probabilities relative to its maximum and join its sums; then, of CI_I8, they are
 * multiplied by the scales of V. */
ATTENTION_INLINE void attend_exp(const ci_attend *at, const ci_keys *keys, float *s, int32_t row, const int32_t low,
                                 const int32_t high, const ci_partial *partial) {
    const vf16 max = vf_set1(partial->max[row]);
    vf16 sum = vf_load(at->lanes + row * VF_LANES);
    for (int32_t i = low / VF_LANES * VF_LANES; i < high; i += VF_LANES) {
        vf16 p = vf_exp_nonpositive(vf_sub(vf_load(s + i), max));
        p = attend_mask(p, vf_zero(), i, low, high);
        sum = vf_add(sum, p);
        if (at->kv->type == CI_I8)
            p = vf_mul(p, vf_load(keys->v_scales[i / CI_PAGE]));
        vf_store(s + i, p);
    }
    vf_store(at->lanes + row * VF_LANES, sum);
}

/* One update of the queries `of`, whose scores start at at->scores. In each pass rows overlap in the pipeline. Queries
 * at either end of what they see have a range of keys of their own; that of the others is a constant. */
static void attend_softmax(const ci_attend *at, const ci_keys *keys, ci_queries of, const ci_partial *partial) {
    const int32_t group = at->group, first = of.first * group, rows = of.last * group - first;
    int32_t low, high;
    for (int32_t query = of.first, i = 0; query < of.last; query++) {
        attend_visible(at, keys->start, query, &low, &high);
        for (const int32_t end = i + group; i < end; i++) {
            float *s = at->scores + i * ATTENTION_GROUP;
            const float old = partial->max[first + i];
            at->tops[i] = high - low == ATTENTION_GROUP ? attend_maximum(at, s, 0, ATTENTION_GROUP, old)
                                                        : attend_maximum(at, s, low, high, old);
        }
    }
    attend_rescale(at, first, rows, partial);
    for (int32_t query = of.first, i = 0; query < of.last; query++) {
        attend_visible(at, keys->start, query, &low, &high);
        for (const int32_t end = i + group; i < end; i++) {
            float *s = at->scores + i * ATTENTION_GROUP;
            if (high - low == ATTENTION_GROUP)
                attend_exp(at, keys, s, first + i, 0, ATTENTION_GROUP, partial);
            else
                attend_exp(at, keys, s, first + i, low, high, partial);
        }
    }
}
#endif
