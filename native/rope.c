/* RoPE as an op of its own, and the write of keys and values into their pages. */
#include "rope.h"

#include <vec.h>

#include "kernels.h"
#include "kv.h"

/* Rows times heads are split over the team: every head of every token stands alone. */
void ci_rope(const ci_op *op, const ci_step *step) {
    int32_t begin, end, d = op->head_dim;
    ci_team_share(&step->team, ci_rows(op, step) * op->heads, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        int32_t row = i / op->heads, head = i % op->heads;
        const float *x = (const float *)ci_in_row(op, row) + (int64_t)head * d;
        float *y = (float *)ci_out_row(op, row) + (int64_t)head * d;
        const float *c = op->rope + (int64_t)step->batch->positions[row] * 2 * d;
        for (int32_t j = 0; j < d; j += VF_LANES) {
            int32_t n = d - j < VF_LANES ? d - j : VF_LANES;
            vf16 turned = rope_rotate(vf_load_n(x + j, n), vf_load_n(c + j, n), vf_load_n(c + d + j, n));
            vf_store_n(y + j, turned, n);
        }
    }
}

void ci_kv_write(const ci_op *op, const ci_step *step) {
    const ci_kv *kv = step->kv;
    int32_t begin, end, d = op->head_dim;
    int64_t width = (int64_t)op->kv_heads * d;
    ci_team_share(&step->team, step->batch->n_tokens * op->kv_heads, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        int32_t row = i / op->kv_heads, head = i % op->kv_heads;
        int32_t page = step->token_pages[row], lane = step->batch->positions[row] % CI_PAGE;
        for (int32_t which = 0; which < 2; which++) {
            const ci_slot slot = kv_slot(kv, op->layer, page, head, d, lane, which);
            kv_store(&slot, kv->type, (const float *)op->in[which] + width * row + (int64_t)head * d, d);
        }
    }
}
