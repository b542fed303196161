/* Kernels: one function per op kind. Every thread of the team calls it with the same op; each does its share. A kernel
 * allocates nothing, prints nothing and knows no model. Shapes: see ci_op in api.h. */
#ifndef CPUINFER_KERNELS_H
#define CPUINFER_KERNELS_H
#include <stddef.h>
#include <stdint.h>

/* api.h is also read by cffi, so what it declares is exported from here. */
#pragma GCC visibility push(default)
#include "api.h"
#pragma GCC visibility pop
#include "team.h"

typedef struct ci_step {
    const ci_batch *batch;
    const ci_kv *kv;
    ci_team team;
    char *thread_area;                 /* this thread's workspace, 64-byte aligned, ci_thread_bytes() long */
    char *shared_area;                 /* the team's workspace, 64-byte aligned, ci_shared_bytes() long */
    const int32_t *token_pages;        /* [T] the KV page of each token's own position */
    const ci_fetch_ahead *fetch_ahead; /* the program's */
    _Atomic int32_t *counter;          /* a work counter of this op alone, zero when the op starts */
} ci_step;

typedef void ci_kernel(const ci_op *op, const ci_step *step);

ci_kernel ci_embed, ci_rmsnorm, ci_quantize, ci_matmul, ci_matmul_swiglu, ci_matmul_qkv_rope, ci_rope, ci_kv_write,
    ci_attention, ci_add, ci_swiglu, ci_take_rows;

/* Workspace of single kernels, for ci_thread_bytes and ci_shared_bytes. */
int64_t ci_attention_thread_bytes(const ci_op *op, int32_t max_tokens);
int64_t ci_attention_shared_bytes(const ci_op *op, int32_t n_threads, int32_t max_tokens, int32_t max_context);
int64_t ci_matmul_thread_bytes(const ci_op *op, int32_t max_tokens);

/* Rows that the op runs over. */
static inline int32_t ci_rows(const ci_op *op, const ci_step *step) {
    return op->rows_are_logits ? step->batch->n_rows : step->batch->n_tokens;
}

static inline int64_t ci_row_bytes(int32_t type, int32_t n) {
    switch (type) {
    case CI_Q8A:
        return ((int64_t)n + n / 32 * 16 + 63) / 64 * 64;
    case CI_BF16:
        return ((int64_t)n + 1) / 2 * 4;
    default:
        return (int64_t)n * 4;
    }
}

/* The parts of a CI_Q8A row of width n; see api.h. */
typedef struct ci_q8_row {
    int8_t *q;
    float *scales;
    int32_t *sums;
    float *scaled;
    int16_t *half_sums;
} ci_q8_row;

static inline ci_q8_row ci_q8_row_at(const void *row, int32_t n) {
    char *scales = (char *)row + n;
    const int64_t part = (int64_t)(n / 32) * 4;
    return (ci_q8_row){
        .q = (int8_t *)row,
        .scales = (float *)(void *)scales,
        .sums = (int32_t *)(void *)(scales + part),
        .scaled = (float *)(void *)(scales + 2 * part),
        .half_sums = (int16_t *)(void *)(scales + 3 * part),
    };
}

static inline const void *ci_in_row(const ci_op *op, int32_t row) {
    return (const char *)op->in[0] + ci_row_bytes(op->in_type, op->k) * row;
}

static inline void *ci_out_row(const ci_op *op, int32_t row) {
    return (char *)op->out + ci_row_bytes(op->out_type, op->n) * row;
}
#endif
