/* RMSNorm: y = x / sqrt(mean(x^2) + eps) * w. Zhang and Sennrich 2019, arXiv:1910.07467, equation 4. */
#include "quantize.h"

/* 1 / sqrt(mean(x^2) + eps). Lane i of one accumulator takes x[i], x[i+16], ... in order; then the fixed tree. */
static float inverse_rms(const float *x, int32_t n, float eps) {
    vf16 sum = vf_zero();
    for (int32_t at = 0; at < n; at += VF_LANES) {
        vf16 v = n - at < VF_LANES ? vf_load_n(x + at, n - at) : vf_load(x + at);
        sum = vf_fma(v, v, sum);
    }
    return 1.0f / sqrtf(vf_hsum(sum) / (float)n + eps);
}

/* Outputs at .. at+15; zeros from n on. */
static inline vf16 scaled(const float *x, const float *w, int32_t n, int32_t at, vf16 r) {
    if (at >= n)
        return vf_zero();
    if (n - at < VF_LANES)
        return vf_mul(vf_mul(vf_load_n(x + at, n - at), r), vf_load_n(w + at, n - at));
    return vf_mul(vf_mul(vf_load(x + at), r), vf_load(w + at));
}

/* Blocks of 32 columns of all rows are split over the team; threads that meet in a row each sum its squares. */
void ci_rmsnorm(const ci_op *op, const ci_step *step) {
    const float *w = op->w[0].data;
    int32_t begin, end, blocks = (op->n + CI_BLOCK - 1) / CI_BLOCK;
    ci_team_share(&step->team, ci_rows(op, step) * blocks, &begin, &end);
    vf16 r = vf_zero();
    for (int32_t i = begin; i < end; i++) {
        int32_t row = i / blocks, at = i % blocks * CI_BLOCK;
        const float *x = ci_in_row(op, row);
        if (i == begin || at == 0)
            r = vf_set1(inverse_rms(x, op->n, op->eps));
        ci_store32(ci_out_row(op, row), op->out_type, op->n, at, scaled(x, w, op->n, at, r),
                   scaled(x, w, op->n, at + VF_LANES, r));
    }
}
