/* A step: walks the ops of a program inside one team of threads. */
#include <fpmode.h>
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "kv.h"

enum { CI_ERROR_OP = -1, CI_ERROR_TYPE = -2, LINE = 64 };

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
    switch (weight_type) {
    case CI_F32:
    case CI_F16:
        return CI_F32;
    case CI_BF16:
        return CI_BF16;
    case CI_Q4_0:
    case CI_Q4_1:
    case CI_Q8_0:
        return CI_Q8A;
    default:
        return -1;
    }
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

int64_t ci_thread_bytes(const ci_op *ops, int32_t n_ops, int32_t max_tokens) {
    int64_t bytes = LINE;
    for (int32_t i = 0; i < n_ops; i++) {
        if (is_matmul(&ops[i]))
            bytes = largest(bytes, ci_matmul_thread_bytes(&ops[i], max_tokens));
        else if (ops[i].kind == CI_OP_ATTENTION)
            bytes = largest(bytes, ci_attention_thread_bytes(&ops[i], max_tokens));
    }
    return round_up(bytes);
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
    _Atomic int32_t *counters; /* [n_ops] */
    int32_t *token_pages;      /* [T] */
    char *kernels_area;
} run;

static run open_run(const ci_program *program, const ci_batch *batch) {
    char *shared = (char *)program->workspace + program->n_threads * program->thread_bytes;
    char *pages = shared + counter_bytes(program->n_ops);
    return (run){
        .program = program,
        .batch = batch,
        .counters = (_Atomic int32_t *)(void *)shared,
        .token_pages = (int32_t *)(void *)pages,
        .kernels_area = pages + round_up((int64_t)batch->n_tokens * (int64_t)sizeof(int32_t)),
    };
}

static void find_token_pages(const ci_batch *batch, int32_t *pages) {
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        const int32_t *table = batch->block_tables + (int64_t)s * batch->block_stride;
        for (int32_t t = batch->q_indptr[s]; t < batch->q_indptr[s + 1]; t++)
            pages[t] = table[batch->positions[t] / CI_PAGE];
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void walk(const ci_team *team, void *argument) {
    const run *r = argument;
    const ci_program *program = r->program;
    double *seconds = team->id == 0 ? program->op_seconds : NULL;
    uint64_t mode = fp_enter();
    ci_step step = {
        .batch = r->batch,
        .kv = &program->kv,
        .team = *team,
        .thread_area = (char *)program->workspace + team->id * program->thread_bytes,
        .shared_area = r->kernels_area,
        .token_pages = r->token_pages,
    };
    double last = seconds ? now() : 0.0;
    for (int32_t i = 0; i < program->n_ops; i++) {
        const ci_op *op = &program->ops[i];
        step.counter = &r->counters[i];
        if (op->barrier_before)
            ci_team_meet(team);
        if (seconds && i > 0) { /* the wait for the others belongs to the op that they were late in */
            double t = now();
            seconds[i - 1] += t - last;
            last = t;
        }
        kernels[op->kind](op, &step);
    }
    if (program->op_seconds && program->n_ops > 0) {
        ci_team_meet(team);
        if (seconds)
            seconds[program->n_ops - 1] += now() - last;
    }
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

typedef struct reading {
    const uint64_t *words;
    int64_t n;
    int32_t repetitions;
    _Atomic uint64_t sum;
} reading;

static void read_share(const ci_team *team, void *argument) {
    reading *r = argument;
    int64_t begin = r->n * team->id / team->n, end = r->n * (team->id + 1) / team->n;
    uint64_t sum = 0;
    for (int32_t repetition = 0; repetition < r->repetitions; repetition++) {
        for (int64_t i = begin; i < end; i++)
            sum += r->words[i];
        __asm__ volatile("" : : : "memory"); /* or the compiler reads once and multiplies */
    }
    atomic_fetch_add(&r->sum, sum);
}

uint64_t ci_read_words(const uint64_t *words, int64_t n, int32_t n_threads, int32_t repetitions) {
    reading r = {.words = words, .n = n, .repetitions = repetitions};
    ci_team_run(n_threads, read_share, &r);
    return atomic_load(&r.sum);
}
