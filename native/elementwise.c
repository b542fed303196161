/* Ops whose outputs each need their own inputs alone. Blocks of 32 columns of all rows are split over the team, so that
 * one wide token is shared too. */
#include <vmath.h>

#include "quantize.h"

typedef struct span {
    int32_t row, at, n; /* columns at .. at+n-1, n <= 32, of the row */
} span;

static inline int32_t span_count(const ci_op *op) {
    return (op->n + CI_BLOCK - 1) / CI_BLOCK;
}

static inline span span_of(const ci_op *op, int32_t i) {
    int32_t blocks = span_count(op), at = i % blocks * CI_BLOCK;
    return (span){i / blocks, at, op->n - at < CI_BLOCK ? op->n - at : CI_BLOCK};
}

/* Elements i .. i+15 of a span; zeros from n on. */
static inline vf16 load_part(const float *x, int32_t n, int32_t i) {
    if (n - i >= VF_LANES)
        return vf_load(x + i);
    return i < n ? vf_load_n(x + i, n - i) : vf_zero();
}

static inline const float *input(const ci_op *op, int32_t which, span s) {
    return (const float *)op->in[which] + (int64_t)op->n * s.row + s.at;
}

void ci_add(const ci_op *op, const ci_step *step) {
    int32_t begin, end;
    ci_team_share(&step->team, ci_rows(op, step) * span_count(op), &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        span s = span_of(op, i);
        const float *a = input(op, 0, s), *b = input(op, 1, s);
        ci_store32(ci_out_row(op, s.row), CI_F32, op->n, s.at, vf_add(load_part(a, s.n, 0), load_part(b, s.n, 0)),
                   vf_add(load_part(a, s.n, VF_LANES), load_part(b, s.n, VF_LANES)));
    }
}

void ci_swiglu(const ci_op *op, const ci_step *step) {
    int32_t begin, end;
    ci_team_share(&step->team, ci_rows(op, step) * span_count(op), &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        span s = span_of(op, i);
        const float *gate = input(op, 0, s), *up = input(op, 1, s);
        vf16 lo = vf_mul(vf_silu(load_part(gate, s.n, 0)), load_part(up, s.n, 0));
        vf16 hi = vf_mul(vf_silu(load_part(gate, s.n, VF_LANES)), load_part(up, s.n, VF_LANES));
        ci_store32(ci_out_row(op, s.row), op->out_type, op->n, s.at, lo, hi);
    }
}

void ci_take_rows(const ci_op *op, const ci_step *step) {
    int32_t begin, end;
    ci_team_share(&step->team, step->batch->n_rows * span_count(op), &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        span s = span_of(op, i);
        const float *x = (const float *)ci_in_row(op, step->batch->logit_rows[s.row]) + s.at;
        memcpy((float *)ci_out_row(op, s.row) + s.at, x, (size_t)s.n * sizeof *x);
    }
}
