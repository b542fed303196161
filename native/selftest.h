/* What the self-test's cases are made of: memory, numbers of an integer generator, and steps of one or two ops. */
#ifndef CPUINFER_SELFTEST_H
#define CPUINFER_SELFTEST_H
#include <string.h>

#include "kv.h"
#include "matmul.h"

enum { TEST_LINE = 64, TEST_VOCAB = 48, TEST_TOKENS = 320 };

/* A case while it runs. */
typedef struct ci_test {
    char *at; /* the memory that is left */
    int64_t left;
    uint64_t random;
    uint64_t hash;
    int32_t failed; /* 1: the memory was too little, or ci_run refused the op */
    ci_op ops[2];
    ci_kv kv;
    ci_batch batch;
} ci_test;

/* Memory full of 0xAA, 64-byte aligned; null and failed where there is none left. */
static inline void *test_take(ci_test *test, int64_t bytes) {
    int64_t room = (bytes + TEST_LINE - 1) / TEST_LINE * TEST_LINE;
    if (test->failed || room > test->left) {
        test->failed = 1;
        return NULL;
    }
    char *at = test->at;
    test->at += room;
    test->left -= room;
    return memset(at, 0xaa, (size_t)room);
}

/* FNV-1a of 64 bits (Fowler, Noll, Vo), by words of 4 bytes: bytes is a multiple of 4. */
static inline void test_hash(ci_test *test, const void *data, int64_t bytes) {
    for (int64_t i = 0; data && i < bytes; i += 4) {
        uint32_t word;
        memcpy(&word, (const char *)data + i, sizeof word);
        test->hash = (test->hash ^ word) * UINT64_C(0x100000001b3);
    }
}

/* 32 random bits (Knuth's MMIX generator, the upper half). */
static inline uint32_t test_bits(ci_test *test) {
    test->random = test->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(test->random >> 32);
}

/* A multiple of 2^-19 in [-1, 1): every step to it is exact. */
static inline float test_real(ci_test *test) {
    return (float)((int32_t)test_bits(test) >> 12) * 0x1p-19f;
}

/* n values in [-largest, largest), of which some are zero and some much smaller. */
static inline float *test_reals(ci_test *test, int64_t n, float largest) {
    float *x = test_take(test, n * (int64_t)sizeof(float));
    for (int64_t i = 0; x && i < n; i++) {
        float value = test_real(test) * largest;
        uint32_t kind = test_bits(test) >> 27;
        x[i] = kind == 0 ? 0.0f : kind == 1 ? value * 0x1p-9f : value;
    }
    return x;
}

/* What a panel of a type is made of. `head`: bytes of f16 at the start of a unit of columns (of one byte exponents for
 * MXFP4), in arrays of which the second half belongs to the second block of a tile. */
typedef struct ci_test_type {
    int32_t type, unit, head, k;
} ci_test_type;

static inline const ci_test_type *test_type(int32_t type) {
    static const ci_test_type types[] = {
        {CI_F32, 1, 0, 70},       {CI_F16, 1, 0, 70},      {CI_BF16, 2, 0, 70},     {CI_Q4_0, 64, 64, 192},
        {CI_Q4_1, 64, 128, 192},  {CI_Q5_0, 64, 64, 192},  {CI_Q5_1, 64, 128, 192}, {CI_Q8_0, 64, 64, 192},
        {CI_IQ4_NL, 64, 64, 192}, {CI_MXFP4, 64, 32, 192}, {CI_Q2_K, 256, 64, 512}, {CI_Q3_K, 256, 32, 512},
        {CI_Q4_K, 256, 64, 512},  {CI_Q5_K, 256, 64, 512}, {CI_Q6_K, 256, 32, 512}, {CI_IQ4_XS, 256, 32, 512},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == type)
            return &types[i];
    return NULL;
}

/* An f16 of magnitude 2^-9 to 2^-1. */
static inline uint16_t test_half(uint32_t bits) {
    return (uint16_t)((bits & 0x83ff) | ((bits >> 16) % 8 + 6) << 10);
}

/* One unit of 16 rows: scales of modest size, all other bits random. */
static inline void test_unit(ci_test *test, const ci_test_type *of, uint8_t *unit, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 4) {
        uint32_t word = test_bits(test);
        memcpy(unit + i, &word, sizeof word);
    }
    if (of->type == CI_MXFP4) {
        for (int32_t i = 0; i < of->head; i++)
            unit[i] = (uint8_t)(unit[i] < 16 ? unit[i] % 2 : 118 + unit[i] % 16);
        return;
    }
    for (int64_t i = 0; i < (of->type == CI_F16 ? bytes : of->head); i += 2) {
        uint16_t half = test_half(test_bits(test));
        memcpy(unit + i, &half, sizeof half);
    }
    for (int64_t i = 0; of->type == CI_BF16 && i < bytes; i += 2) {
        uint32_t bits = test_bits(test);
        uint16_t word = (uint16_t)((bits & 0x807f) | ((bits >> 16) % 8 + 120) << 7);
        memcpy(unit + i, &word, sizeof word);
    }
    for (int64_t i = 0; of->type == CI_F32 && i < bytes; i += 4) {
        float value = test_real(test);
        memcpy(unit + i, &value, sizeof value);
    }
}

/* Zero what a last unit that is half full must not have: the odd column of BF16, or the second block of a tile. */
static inline void test_half_unit(const ci_test_type *of, uint8_t *unit, int64_t bytes) {
    if (of->type == CI_BF16) {
        for (int32_t row = 0; row < CI_ROWS; row++)
            memset(unit + 4 * row + 2, 0, 2);
        return;
    }
    const int32_t array = of->head < 64 ? of->head : 64;
    for (int32_t i = 0; i < of->head; i += array)
        memset(unit + i + array / 2, 0, (size_t)array / 2);
    memset(unit + of->head + (bytes - of->head) / 2, 0, (size_t)(bytes - of->head) / 2);
}

/* A random matrix [n, k] in the packed layout of a type (docs/design.md, section 2). */
static inline ci_weight test_weight(ci_test *test, int32_t type, int32_t n, int32_t k) {
    const ci_test_type *of = test_type(type);
    const ci_format *format = ci_format_of(type);
    const int64_t unit = format->panel_bytes(of->unit), panel = format->panel_bytes(k);
    const int64_t units = panel / unit, panels = (n + CI_ROWS - 1) / CI_ROWS;
    uint8_t *data = test_take(test, panels * panel);
    for (int64_t i = 0; data && i < panels * units; i++) {
        test_unit(test, of, data + i * unit, unit);
        if ((i + 1) % units == 0 && k % of->unit)
            test_half_unit(of, data + i * unit, unit);
    }
    return (ci_weight){.data = data, .type = type, .n = n, .k = k};
}

/* A plain vector of n floats. */
static inline ci_weight test_vector(ci_test *test, int32_t n) {
    return (ci_weight){.data = test_reals(test, n, 2.0f), .type = CI_F32, .n = n, .k = 1};
}

/* n tokens of one sequence at positions first .. on pages that do not follow each other; every token is a row. */
static inline void test_batch(ci_test *test, int32_t n, int32_t first) {
    const int32_t pages = TEST_TOKENS / CI_PAGE;
    int32_t *at = test_take(test, (2 + 3 * (int64_t)n + pages) * (int64_t)sizeof *at);
    if (!at)
        return;
    test->batch = (ci_batch){.n_tokens = n, .n_seqs = 1, .n_rows = n, .block_stride = pages};
    test->batch.q_indptr = at;
    at[0] = 0, at[1] = n;
    int32_t *tokens = at + 2, *positions = tokens + n, *rows = positions + n, *table = rows + n;
    for (int32_t i = 0; i < n; i++) {
        tokens[i] = (i * 29 + 7) % TEST_VOCAB;
        positions[i] = first + i;
        rows[i] = (i * 5 + 3) % n;
    }
    for (int32_t i = 0; i < pages; i++)
        table[i] = (i * 7 + 3) % pages;
    test->batch.tokens = tokens, test->batch.positions = positions;
    test->batch.logit_rows = rows, test->batch.block_tables = table;
}

/* Empty pages of one layer for TEST_TOKENS tokens. */
static inline void test_pages(ci_test *test, int32_t type, int32_t kv_heads, int32_t head_dim) {
    const int64_t k_bytes = (int64_t)head_dim * CI_PAGE * kv_itemsize(type);
    const int64_t page = 2 * k_bytes + (type == CI_I8 ? 2 * CI_PAGE * 4 : 0);
    const int32_t pages = TEST_TOKENS / CI_PAGE;
    test->kv = (ci_kv){.layer_bytes = page * pages * kv_heads,
                       .head_bytes = page * pages,
                       .page_bytes = page,
                       .k_bytes = k_bytes,
                       .type = type,
                       .n_pages = pages,
                       .data = test_take(test, page * pages * kv_heads)};
}

/* Run the first n ops on one thread. */
static inline void test_run(ci_test *test, int32_t n_ops) {
    char *at = test->at;
    int64_t left = test->left;
    ci_program program = {.ops = test->ops, .n_ops = n_ops, .n_threads = 1, .kv = test->kv};
    program.thread_bytes = ci_thread_bytes(test->ops, n_ops, test->batch.n_tokens);
    program.shared_bytes = ci_shared_bytes(test->ops, n_ops, 1, test->batch.n_tokens, TEST_TOKENS);
    program.workspace = test_take(test, program.thread_bytes + program.shared_bytes);
    if (!test->failed)
        test->failed = ci_run(&program, &test->batch) != 0;
    test->at = at; /* the workspace is over */
    test->left = left;
}
#endif
