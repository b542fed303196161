/* The self-test: every kernel once or more on known numbers. What they write must have the bits of the scalar level;
 * its hashes are kept in cpuinfer/machine/known_answers.py. Shapes are small, so that all of it takes milliseconds. */
#include "selftest.h"

enum { FEW = 8, MANY = 50, COLUMNS = 109 };

static int32_t activation_of(int32_t weight_type) {
    return ci_format_of(weight_type)->activation;
}

/* An op whose input x [.., k] f32 becomes what the weights take by a quantize op before it. Returns the op. */
static ci_op *after_quantize(ci_test *test, ci_op op, const float *x) {
    if (op.in_type == CI_F32) {
        op.in[0] = x;
        test->ops[0] = op;
        return &test->ops[0];
    }
    void *rows = test_take(test, ci_row_bytes(op.in_type, op.k) * test->batch.n_tokens);
    test->ops[0] = (ci_op){.kind = CI_OP_QUANTIZE,
                           .n = op.k,
                           .k = op.k,
                           .in_type = CI_F32,
                           .out_type = op.in_type,
                           .in[0] = x,
                           .out = rows};
    op.in[0] = rows;
    test->ops[1] = op;
    return &test->ops[1];
}

/* Run it and hash its output, which it makes room for. */
static void run_op(ci_test *test, ci_op op, const float *x) {
    ci_op *last = after_quantize(test, op, x);
    const int64_t bytes = ci_row_bytes(op.out_type, op.n) * test->batch.n_tokens;
    void *out = last->out = test_take(test, bytes);
    test_run(test, (int32_t)(last - test->ops) + 1);
    if (!test->failed)
        test_hash(test, out, bytes);
}

/* As run_op, for `tokens` of the rows x, all that it takes being given back. */
static void run_tokens(ci_test *test, ci_op op, const float *x, int32_t tokens, int32_t first) {
    char *at = test->at;
    const int64_t left = test->left;
    test_batch(test, tokens, first);
    if (!test->failed)
        run_op(test, op, x);
    test->at = at;
    test->left = left;
}

static ci_op product(ci_test *test, int32_t type, int32_t n, int32_t k) {
    return (ci_op){.kind = CI_OP_MATMUL,
                   .n = n,
                   .k = k,
                   .in_type = activation_of(type),
                   .out_type = CI_F32,
                   .w[0] = test_weight(test, type, n, k)};
}

/* Every height of a tile by one, two and four panels. */
static void matmul_few(ci_test *test, int32_t type) {
    const int32_t k = test_type(type)->k;
    const ci_op op = product(test, type, COLUMNS, k);
    const float *x = test_reals(test, (int64_t)FEW * k, 3.0f);
    for (int32_t tokens = 1; tokens <= FEW; tokens++)
        run_tokens(test, op, x, tokens, 0);
}

static void matmul_many(ci_test *test, int32_t type) {
    const int32_t k = test_type(type)->k / 2;
    const ci_op op = product(test, type, COLUMNS, k);
    run_tokens(test, op, test_reals(test, (int64_t)MANY * k, 3.0f), MANY, 0);
}

/* Rows longer than a stretch of four panels, and a residual. */
static void matmul_long(ci_test *test, int32_t type) {
    const int32_t k = type == CI_F32 ? 700 : 1280, n = 4 * CI_ROWS, tokens = 10;
    ci_op op = product(test, type, n, k);
    op.in[1] = test_reals(test, tokens * n, 5.0f);
    run_tokens(test, op, test_reals(test, tokens * k, 1.0f), tokens, 0);
}

/* type: of the weights; what goes out has the type that they take. */
static void matmul_swiglu(ci_test *test, int32_t type) {
    const int32_t n = 96, k = 64;
    ci_op op = product(test, type, n, k);
    op.kind = CI_OP_MATMUL_SWIGLU;
    op.out_type = op.in_type;
    op.w[1] = test_weight(test, type, n, k);
    const float *x = test_reals(test, MANY * k, type == CI_Q8_0 ? 0.02f : 1.0f); /* gates where exp matters */
    run_tokens(test, op, x, 3, 0);
    run_tokens(test, op, x, MANY, 0);
}

static void qkv_rope(ci_test *test, int32_t kv_type) {
    const int32_t heads = 3, dim = 32, k = 256, tokens = 20;
    ci_op op = product(test, CI_Q4_K, heads * dim, k);
    op.kind = CI_OP_MATMUL_QKV_ROPE;
    op.w[1] = test_weight(test, CI_Q8_0, dim, k);
    op.w[2] = test_weight(test, CI_Q6_K, dim, k);
    op.heads = heads, op.kv_heads = 1, op.head_dim = dim;
    op.rope = test_reals(test, (int64_t)TEST_TOKENS * 2 * dim, 1.0f);
    test_pages(test, kv_type, 1, dim);
    const float *x = test_reals(test, (int64_t)tokens * k, 2.0f);
    run_tokens(test, op, x, tokens, 5);
    run_tokens(test, op, x + k, 1, 5 + tokens);
    test_hash(test, test->kv.data, test->kv.layer_bytes);
}

static void embed(ci_test *test, int32_t type) {
    const int32_t k = test_type(type)->k;
    const ci_op op = {.kind = CI_OP_EMBED,
                      .n = k,
                      .k = k,
                      .in_type = CI_F32,
                      .out_type = CI_F32,
                      .w[0] = test_weight(test, type, TEST_VOCAB, k)};
    run_tokens(test, op, NULL, TEST_VOCAB, 0);
}

/* Ops of one or two f32 rows of a width; type: what goes out. */
static void row_op(ci_test *test, int32_t kind, int32_t type) {
    const int32_t n = type == CI_Q8A ? 160 : 101, tokens = 6;
    ci_op op = {.kind = kind, .n = n, .k = n, .in_type = CI_F32, .out_type = type, .eps = 1e-5f};
    if (kind == CI_OP_RMSNORM)
        op.w[0] = test_vector(test, n);
    op.in[1] = test_reals(test, tokens * n, 4.0f);
    float *x = test_reals(test, tokens * n, 1.0f);
    for (int32_t i = 0; x && i < tokens * n; i++) /* of every size; a row of ties; one too small for a scale */
        x[i] = i / n == 4   ? floorf(x[i] * 127.0f) * 0.5f
               : i / n == 5 ? x[i] * 0x1p-120f
                            : x[i] * (float)(1 << 2 * (i / n));
    run_tokens(test, op, x, tokens, 0);
}

static void quantize(ci_test *test, int32_t type) {
    row_op(test, CI_OP_QUANTIZE, type);
}
static void rmsnorm(ci_test *test, int32_t type) {
    row_op(test, CI_OP_RMSNORM, type);
}
static void swiglu(ci_test *test, int32_t type) {
    row_op(test, CI_OP_SWIGLU, type);
}
static void add(ci_test *test, int32_t type) {
    row_op(test, CI_OP_ADD, type);
}
static void take_rows(ci_test *test, int32_t type) {
    row_op(test, CI_OP_TAKE_ROWS, type);
}

static void rope(ci_test *test, int32_t type) {
    const int32_t heads = 3, dim = 22, tokens = 5;
    const ci_op op = {.kind = CI_OP_ROPE,
                      .n = heads * dim,
                      .k = heads * dim,
                      .in_type = CI_F32,
                      .out_type = type,
                      .heads = heads,
                      .head_dim = dim,
                      .rope = test_reals(test, (int64_t)TEST_TOKENS * 2 * dim, 1.0f)};
    run_tokens(test, op, test_reals(test, tokens * heads * dim, 2.0f), tokens, 200);
}

/* Keys or values. None is denormal as a half, since emulators (QEMU 7.2 to 11.1) flush such where processors do not. */
static const float *normal_halves(ci_test *test, int64_t n) {
    float *x = test_reals(test, n, 2.0f);
    for (int64_t i = 0; x && i < n; i++)
        if (x[i] > -0x1p-12f && x[i] < 0x1p-12f)
            x[i] = 0.0f;
    return x;
}

/* Keys and values of positions 0 .. tokens-1. */
static void write_kv(ci_test *test, int32_t kv_heads, int32_t dim, int32_t tokens) {
    char *at = test->at;
    const int64_t left = test->left;
    const int32_t width = kv_heads * dim;
    test_batch(test, tokens, 0);
    test->ops[0] =
        (ci_op){.kind = CI_OP_KV_WRITE,
                .n = width,
                .k = width,
                .in_type = CI_F32,
                .out_type = CI_F32,
                .kv_heads = kv_heads,
                .head_dim = dim,
                .in = {normal_halves(test, (int64_t)tokens * width), normal_halves(test, (int64_t)tokens * width)}};
    if (!test->failed)
        test_run(test, 1);
    test->at = at;
    test->left = left;
}

static void kv_write(ci_test *test, int32_t kv_type) {
    test_pages(test, kv_type, 2, 22);
    write_kv(test, 2, 22, 40);
    test_hash(test, test->kv.data, test->kv.layer_bytes);
}

/* Attention of the last token of two chunks of keys, and of the last ones together. */
static void attend(ci_test *test, ci_op op, int32_t kv_type) {
    const int32_t context = 270, last = 11;
    op.kind = CI_OP_ATTENTION;
    op.n = op.k = op.heads * op.head_dim;
    op.in_type = CI_F32;
    op.scale = 0.25f;
    test_pages(test, kv_type, op.kv_heads, op.head_dim);
    write_kv(test, op.kv_heads, op.head_dim, context);
    const float *q = test_reals(test, (int64_t)last * op.n, 2.0f);
    run_tokens(test, op, q, 1, context - 1);
    run_tokens(test, op, q, last, context - last);
}

static void attention(ci_test *test, int32_t kv_type) {
    const int32_t out = kv_type == CI_BF16 ? CI_BF16 : kv_type == CI_F32 ? CI_F32 : CI_Q8A;
    attend(test, (ci_op){.heads = 3, .kv_heads = 1, .head_dim = 32, .out_type = out}, kv_type);
}
static void attention_window(ci_test *test, int32_t kv_type) {
    attend(test, (ci_op){.heads = 2, .kv_heads = 2, .head_dim = 22, .window = 70, .out_type = CI_F32}, kv_type);
}
static void attention_softcap(ci_test *test, int32_t kv_type) {
    attend(test, (ci_op){.heads = 2, .kv_heads = 1, .head_dim = 16, .softcap = 3.0f, .out_type = CI_F32}, kv_type);
}
static void attention_sinks(ci_test *test, int32_t kv_type) {
    ci_op op = {.heads = 4, .kv_heads = 2, .head_dim = 16, .out_type = CI_F32};
    op.w[0] = test_vector(test, op.heads);
    attend(test, op, kv_type);
}

enum { LOGITS = 700, LISTED = 12 };

static void sample(ci_test *test, int32_t threads) {
    static const ci_choice kinds[] = {
        {.temperature = 0.0, .top_p = 1.0},
        {.temperature = 0.8, .top_p = 1.0, .seed = 5},
        {.temperature = 1.3, .top_p = 0.9, .seed = 6},
        {.temperature = 0.7, .top_p = 0.95, .top_k = 40, .seed = 7, .position = 3},
        {.temperature = 1.0, .top_p = 1.0, .min_p = 0.05, .seed = 8, .choice = 2},
    };
    enum { N = sizeof kinds / sizeof *kinds };
    ci_choice *choices = test_take(test, sizeof kinds);
    float *logits = test_reals(test, (int64_t)N * LOGITS, 9.0f);
    void *workspace = test_take(test, ci_sample_bytes(LOGITS, threads));
    if (test->failed)
        return;
    memcpy(choices, kinds, sizeof kinds);
    for (int32_t i = 0; i < N; i++)
        choices[i].row = i;
    ci_sampling call = {.logits = logits, .vocab = LOGITS, .n = N, .n_threads = threads};
    call.choices = choices;
    call.workspace = workspace;
    for (int32_t draw = 0; draw < 8; draw++) {
        ci_sample(&call);
        for (int32_t i = 0; i < N; i++) {
            test_hash(test, &choices[i].token, sizeof choices[i].token);
            choices[i].position++;
        }
    }
}

static void score(ci_test *test, int32_t threads) {
    ci_score scores[2] = {{.row = 0, .token = 3, .n = LISTED}, {.row = 1, .token = 400, .list_begin = LISTED}};
    int32_t *lists = test_take(test, 2 * LISTED * (int64_t)sizeof(int32_t));
    float *values = test_take(test, LISTED * (int64_t)sizeof(float));
    float *logits = test_reals(test, 2 * LOGITS, 9.0f);
    void *workspace = test_take(test, ci_sample_bytes(LOGITS, threads));
    if (test->failed)
        return;
    ci_scoring call = {.logits = logits, .vocab = LOGITS, .n = 2, .n_threads = threads};
    call.scores = scores;
    call.ids = lists, call.ranks = lists + LISTED, call.values = values;
    call.workspace = workspace;
    ci_score_tokens(&call);
    for (int32_t i = 0; i < 2; i++) {
        test_hash(test, &scores[i].total, sizeof scores[i].total);
        test_hash(test, &scores[i].value, sizeof scores[i].value);
        test_hash(test, &scores[i].rank, sizeof scores[i].rank);
    }
    test_hash(test, lists, 2 * LISTED * (int64_t)sizeof(int32_t));
    test_hash(test, values, LISTED * (int64_t)sizeof(float));
}

typedef struct known_case {
    const char *name;
    void (*run)(ci_test *test, int32_t type);
    int32_t type;
} known_case;

/* clang-format off */
#define WEIGHT_CASES(NAME) \
    {"embed." #NAME, embed, CI_##NAME}, {"matmul." #NAME " few", matmul_few, CI_##NAME}, \
    {"matmul." #NAME " many", matmul_many, CI_##NAME}
#define KV_CASES(NAME) \
    {"kv_write." #NAME, kv_write, CI_##NAME}, {"attention." #NAME, attention, CI_##NAME}, \
    {"matmul_qkv_rope." #NAME, qkv_rope, CI_##NAME}
#define ROW_CASES(NAME) {"rmsnorm." #NAME, rmsnorm, CI_##NAME}, {"swiglu." #NAME, swiglu, CI_##NAME}
/* clang-format on */

static const known_case known_cases[] = {
    {"quantize.Q8A", quantize, CI_Q8A},
    {"quantize.BF16", quantize, CI_BF16},
    ROW_CASES(F32),
    ROW_CASES(BF16),
    ROW_CASES(Q8A),
    {"add", add, CI_F32},
    {"take_rows", take_rows, CI_F32},
    {"rope", rope, CI_F32},
    WEIGHT_CASES(F32),
    WEIGHT_CASES(F16),
    WEIGHT_CASES(BF16),
    WEIGHT_CASES(Q4_0),
    WEIGHT_CASES(Q4_1),
    WEIGHT_CASES(Q5_0),
    WEIGHT_CASES(Q5_1),
    WEIGHT_CASES(Q8_0),
    WEIGHT_CASES(Q2_K),
    WEIGHT_CASES(Q3_K),
    WEIGHT_CASES(Q4_K),
    WEIGHT_CASES(Q5_K),
    WEIGHT_CASES(Q6_K),
    WEIGHT_CASES(IQ4_NL),
    WEIGHT_CASES(IQ4_XS),
    WEIGHT_CASES(MXFP4),
    {"matmul.F32 long", matmul_long, CI_F32},
    {"matmul.Q8_0 long", matmul_long, CI_Q8_0},
    {"matmul_swiglu.F32", matmul_swiglu, CI_F32},
    {"matmul_swiglu.BF16", matmul_swiglu, CI_BF16},
    {"matmul_swiglu.Q8_0", matmul_swiglu, CI_Q8_0},
    KV_CASES(F32),
    KV_CASES(F16),
    KV_CASES(BF16),
    KV_CASES(I8),
    {"attention window", attention_window, CI_F16},
    {"attention softcap", attention_softcap, CI_F16},
    {"attention sinks", attention_sinks, CI_F16},
    {"sample", sample, 1},
    {"score", score, 1},
};
enum { N_CASES = sizeof known_cases / sizeof *known_cases };

int64_t ci_selftest_bytes(void) {
    return INT64_C(1) << 20;
}

const char *ci_selftest_name(int32_t index) {
    return index >= 0 && index < N_CASES ? known_cases[index].name : NULL;
}

uint64_t ci_selftest_run(int32_t index, void *memory) {
    if (index < 0 || index >= N_CASES)
        return 0;
    const int64_t skipped = -(int64_t)((uintptr_t)memory % TEST_LINE) & (TEST_LINE - 1);
    ci_test test = {
        .at = (char *)memory + skipped,
        .left = ci_selftest_bytes() - skipped,
        .hash = UINT64_C(0xcbf29ce484222325),
    };
    for (const char *name = known_cases[index].name; *name; name++) /* so that a new case changes no other's answer */
        test.random = (test.random ^ (uint64_t)*name) * UINT64_C(0x100000001b3);
    known_cases[index].run(&test, known_cases[index].type);
    return test.failed ? 0 : test.hash;
}
