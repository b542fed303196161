/* The embedding: gathers rows of a packed matrix. A row is one lane of a panel; see docs/design.md, section 2. */
#include "matmul.h"

enum { BLOCK = 32 };

/* Blocks of 32 columns are split over the team, so that one wide token is shared too. */
void ci_embed(const ci_op *op, const ci_step *step) {
    const ci_weight *w = &op->w[0];
    const ci_format *format = ci_format_of(w->type);
    const int64_t panel_bytes = format->panel_bytes(w->k);
    int32_t begin, end, blocks = (op->n + BLOCK - 1) / BLOCK;
    ci_team_share(&step->team, ci_rows(op, step) * blocks, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        int32_t t = i / blocks, k = i % blocks * BLOCK, row = step->batch->tokens[t];
        const uint8_t *panel = (const uint8_t *)w->data + row / CI_ROWS * panel_bytes;
        int32_t n = op->n - k < BLOCK ? op->n - k : BLOCK;
        format->decode((float *)ci_out_row(op, t) + k, panel, w->k, row % CI_ROWS, k, n);
    }
}
