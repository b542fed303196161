/* QUANTIZE: f32 rows to the activation type that a matmul takes (q8 or bf16). */
#include "quantize.h"

static inline vf16 load16(const float *row, int32_t n, int32_t at) {
    if (at + VF_LANES <= n)
        return vf_load(row + at);
    return at < n ? vf_load_n(row + at, n - at) : vf_zero();
}

/* in[0] [rows, n] f32 -> out [rows, n] of out_type. The team shares the rows. */
void ci_quantize(const ci_op *op, const ci_step *step) {
    int32_t rows = ci_rows(op, step), per_row = (op->n + CI_BLOCK - 1) / CI_BLOCK, begin, end;
    ci_team_share(&step->team, rows, &begin, &end);
    int32_t first = 0, last = per_row;
    if (rows == 1) { /* a single row is shared by its blocks */
        begin = 0, end = 1;
        ci_team_share(&step->team, per_row, &first, &last);
    }
    for (int32_t r = begin; r < end; r++) {
        const float *x = ci_in_row(op, r);
        void *out = ci_out_row(op, r);
        for (int32_t b = first; b < last; b++) {
            int32_t at = b * CI_BLOCK;
            ci_store32(out, op->out_type, op->n, at, load16(x, op->n, at), load16(x, op->n, at + VF_LANES));
        }
    }
}
