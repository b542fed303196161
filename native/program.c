/* A step: walks the ops of a program inside one team of threads. */
#include <fpmode.h>
#include <string.h>

#include "kernels.h"
#include "kv.h"
#include "matmul.h"

enum {
    CI_ERROR_OP = -1,
    CI_ERROR_TYPE = -2,
    LINE = 64,
    /* Most values of an op with an out_slot in a small step: 14 rows of SmolLM2. Measured on 2 cores of Zen 3, both
     * busy with other work too: steps of 2 to 8 rows took 9-13 % less time for it, of 16 rows 5 %, of 32 nothing. */
    SMALL_VALUES = 8192,
    SLOT_BYTES = SMALL_VALUES * (int)sizeof(float)
};

static ci_kernel *const kernels[] = {
    [CI_OP_EMBED] = ci_embed,
    [CI_OP_RMSNORM] = ci_rmsnorm,
    [CI_OP_QUANTIZE] = ci_quantize,
    [CI_OP_MATMUL] = ci_matmul,
    [CI_OP_MATMUL_SWIGLU] = ci_matmul_swiglu,
    [CI_OP_MATMUL_QKV_ROPE] = ci_matmul_qkv_rope,
    [CI_OP_ROPE] = ci_rope,
    [CI_OP_KV_WRITE] = ci_kv_write,
    [CI_OP_ATTENTION] = ci_attention,
    [CI_OP_ADD] = ci_add,
    [CI_OP_SWIGLU] = ci_swiglu,
    [CI_OP_TAKE_ROWS] = ci_take_rows,
};
enum { KINDS = sizeof kernels / sizeof *kernels };

/* What a matrix product with this weight type takes as input; -1 for a type without a kernel. */
static int32_t activation_of(int32_t weight_type) {
    const ci_format *format = ci_format_of(weight_type);
    return format ? format->activation : -1;
}

static int is_activation(int32_t type) {
    return type == CI_F32 || type == CI_BF16 || type == CI_Q8A;
}

static int is_kv_type(int32_t type) {
    return type == CI_F32 || type == CI_F16 || type == CI_BF16 || type == CI_I8;
}

static int has_kernel(const ci_op *op, int32_t kv_type) {
    int plain_in = op->in_type == CI_F32, plain_out = op->out_type == CI_F32;
    switch (op->kind) {
    case CI_OP_EMBED:
        return activation_of(op->w[0].type) >= 0 && plain_out;
    case CI_OP_RMSNORM:
    case CI_OP_SWIGLU:
        return plain_in && is_activation(op->out_type);
    case CI_OP_QUANTIZE:
        return plain_in && is_activation(op->out_type) && !plain_out;
    case CI_OP_MATMUL:
        return op->in_type == activation_of(op->w[0].type) && plain_out;
    case CI_OP_MATMUL_SWIGLU:
        return op->in_type == activation_of(op->w[0].type) && op->in_type == activation_of(op->w[1].type) &&
               is_activation(op->out_type);
    case CI_OP_MATMUL_QKV_ROPE:
        for (int i = 0; i < 3; i++)
            if (op->in_type != activation_of(op->w[i].type))
                return 0;
        return is_kv_type(kv_type) && plain_out;
    case CI_OP_KV_WRITE:
        return is_kv_type(kv_type) && plain_in;
    case CI_OP_ATTENTION:
        return is_kv_type(kv_type) && plain_in && is_activation(op->out_type);
    default:
        return plain_in && plain_out;
    }
}

int32_t ci_check(const ci_op *ops, int32_t n_ops, int32_t kv_type) {
    for (int32_t i = 0; i < n_ops; i++) {
        const ci_op *op = &ops[i];
        if (op->kind < 0 || op->kind >= KINDS || !kernels[op->kind])
            return CI_ERROR_OP;
        if (!has_kernel(op, kv_type))
            return CI_ERROR_TYPE;
    }
    return 0;
}

static int64_t round_up(int64_t bytes) {
    return (bytes + LINE - 1) / LINE * LINE;
}

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int is_matmul(const ci_op *op) {
    return op->kind == CI_OP_MATMUL || op->kind == CI_OP_MATMUL_SWIGLU || op->kind == CI_OP_MATMUL_QKV_ROPE;
}

/* A thread's area: what the kernels use, then the slots, the last first. */
int64_t ci_thread_bytes(const ci_op *ops, int32_t n_ops, int32_t max_tokens) {
    int64_t bytes = LINE, slots = 0;
    for (int32_t i = 0; i < n_ops; i++) {
        slots = largest(slots, ops[i].out_slot);
        if (is_matmul(&ops[i]))
            bytes = largest(bytes, ci_matmul_thread_bytes(&ops[i], max_tokens));
        else if (ops[i].kind == CI_OP_ATTENTION)
            bytes = largest(bytes, ci_attention_thread_bytes(&ops[i], max_tokens));
    }
    return round_up(bytes) + slots * SLOT_BYTES;
}

/* The shared area: the ops' work counters, the tokens' pages, then what the kernels share. */
static int64_t counter_bytes(int32_t n_ops) {
    return round_up((int64_t)n_ops * (int64_t)sizeof(int32_t));
}

int64_t ci_shared_bytes(const ci_op *ops, int32_t n_ops, int32_t n_threads, int32_t max_tokens, int32_t max_context) {
    int64_t bytes = 0;
    for (int32_t i = 0; i < n_ops; i++)
        if (ops[i].kind == CI_OP_ATTENTION)
            bytes = largest(bytes, ci_attention_shared_bytes(&ops[i], n_threads, max_tokens, max_context));
    return counter_bytes(n_ops) + round_up((int64_t)max_tokens * (int64_t)sizeof(int32_t)) + round_up(bytes);
}

int64_t ci_q8_row_bytes(int32_t n) {
    return ci_row_bytes(CI_Q8A, n);
}

/* A step as its team sees it. */
typedef struct run {
    const ci_program *program;
    const ci_batch *batch;
    int32_t n_ops; /* that this step needs */
    int32_t small;
    _Atomic int32_t *counters; /* [n_ops] */
    int32_t *token_pages;      /* [T] */
    char *kernels_area;
} run;

static int64_t rows_of(const ci_op *op, const ci_batch *batch) {
    return op->rows_are_logits ? batch->n_rows : batch->n_tokens;
}

static int32_t is_small(const ci_program *program, const ci_batch *batch) {
    for (int32_t i = 0; i < program->n_ops; i++)
        if (program->ops[i].out_slot && rows_of(&program->ops[i], batch) * program->ops[i].n > SMALL_VALUES)
            return 0;
    return 1;
}

/* Where nobody wants logits, what comes after the last write of keys and values is for nothing. */
static int32_t needed_ops(const ci_program *program, const ci_batch *batch) {
    for (int32_t n = program->n_ops; batch->n_rows == 0 && n > 0; n--) {
        int32_t kind = program->ops[n - 1].kind;
        if (kind == CI_OP_KV_WRITE || kind == CI_OP_MATMUL_QKV_ROPE)
            return n;
    }
    return program->n_ops;
}

static run open_run(const ci_program *program, const ci_batch *batch) {
    char *shared = (char *)program->workspace + program->n_threads * program->thread_bytes;
    char *pages = shared + counter_bytes(program->n_ops);
    return (run){
        .program = program,
        .batch = batch,
        .n_ops = needed_ops(program, batch),
        .small = is_small(program, batch),
        .counters = (_Atomic int32_t *)(void *)shared,
        .token_pages = (int32_t *)(void *)pages,
        .kernels_area = pages + round_up((int64_t)batch->n_tokens * (int64_t)sizeof(int32_t)),
    };
}

static int32_t all_below(const int32_t *values, int32_t n, int32_t end) {
    int32_t outside = 0;
    for (int32_t i = 0; i < n; i++)
        outside |= values[i] < 0 || values[i] >= end;
    return !outside;
}

int32_t ci_batch_is_sound(const ci_batch *batch, int32_t vocab, int32_t max_context, int32_t n_pages) {
    int32_t n_tokens = batch->n_tokens;
    if (!all_below(batch->tokens, n_tokens, vocab) || !all_below(batch->positions, n_tokens, max_context) ||
        !all_below(batch->logit_rows, batch->n_rows, n_tokens))
        return 0;
    for (int32_t s = 0, begin = 0; s < batch->n_seqs; s++) {
        int32_t end = batch->q_indptr[s + 1];
        if (batch->q_indptr[s] != begin || end <= begin || end > n_tokens)
            return 0;
        for (int32_t t = begin + 1; t < end; t++)
            if (batch->positions[t] != batch->positions[t - 1] + 1)
                return 0;
        int32_t blocks = batch->positions[end - 1] / CI_PAGE + 1;
        if (blocks > batch->block_stride ||
            !all_below(batch->block_tables + (int64_t)s * batch->block_stride, blocks, n_pages))
            return 0;
        begin = end;
    }
    return batch->q_indptr[batch->n_seqs] == n_tokens;
}

static void find_token_pages(const ci_batch *batch, int32_t *pages) {
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t *table = batch->block_tables + (int64_t)s * batch->block_stride;
        for (int32_t t = batch->q_indptr[s]; t < batch->q_indptr[s + 1]; t++)
            pages[t] = table[batch->positions[t] / CI_PAGE];
    }
}

static char *slot_at(const ci_program *program, const ci_step *step, int32_t slot) {
    return step->thread_area + program->thread_bytes - (int64_t)slot * SLOT_BYTES;
}

/* An op of a small step: what has slots is there, and this thread computes what goes into one alone. */
static void run_private(const ci_program *program, ci_op op, ci_step step) {
    for (int i = 0; i < 2; i++)
        if (op.in_slot[i])
            op.in[i] = slot_at(program, &step, op.in_slot[i]);
    if (op.out_slot) {
        op.out = slot_at(program, &step, op.out_slot);
        step.team = (ci_team){.id = 0, .n = 1, .barrier = step.team.barrier};
    }
    kernels[op.kind](&op, &step);
}

static void walk(const ci_team *team, void *argument) {
    const run *r = argument;
    const ci_program *program = r->program;
    double *seconds = team->id == 0 ? program->op_seconds : NULL;
    double waited = 0.0;
    uint64_t mode = fp_enter();
    ci_step step = {
        .batch = r->batch,
        .kv = &program->kv,
        .team = *team,
        .thread_area = (char *)program->workspace + team->id * program->thread_bytes,
        .shared_area = r->kernels_area,
        .token_pages = r->token_pages,
        .fetch_ahead = &program->fetch_ahead,
    };
    double last = seconds ? os_seconds() : 0.0;
    for (int32_t i = 0; i < r->n_ops; i++) {
        const ci_op *op = &program->ops[i];
        step.counter = &r->counters[i];
        if (r->small ? op->barrier_if_small : op->barrier_before)
            waited += ci_team_meet(team);
        if (seconds && i > 0) { /* the wait for the others belongs to the op that they were late in */
            double t = os_seconds();
            seconds[i - 1] += t - last;
            last = t;
        }
        if (r->small && (op->out_slot || op->in_slot[0] || op->in_slot[1]))
            run_private(program, *op, step);
        else
            kernels[op->kind](op, &step);
    }
    if (program->op_seconds && r->n_ops > 0) {
        ci_team_meet(team);
        if (seconds)
            seconds[r->n_ops - 1] += os_seconds() - last;
    }
    if (team->id == 0 && program->waited)
        *program->waited += waited;
    fp_leave(mode);
}

int32_t ci_run(const ci_program *program, const ci_batch *batch) {
    int32_t error = ci_check(program->ops, program->n_ops, program->kv.type);
    if (error)
        return error;
    run r = open_run(program, batch);
    memset((void *)r.counters, 0, (size_t)counter_bytes(program->n_ops));
    find_token_pages(batch, r.token_pages);
    ci_team_run(program->n_threads, walk, &r);
    return 0;
}
