/* Matrix products of every weight type over fixed pseudo-random panels, by the library whose file is named: a line
 * "type quantised matmul swiglu" of digests for each. Two levels agree where the output does. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

static struct {
    __typeof__(ci_run) *run;
    __typeof__(ci_thread_bytes) *thread_bytes;
    __typeof__(ci_shared_bytes) *shared_bytes;
    __typeof__(ci_q8_row_bytes) *q8_row_bytes;
} library;

static void *symbol(void *handle, const char *name) {
    void *found = dlsym(handle, name);
    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return found;
}

static void load(const char *path) {
    void *handle = dlopen(path, RTLD_NOW);
    if (!handle) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    library.run = symbol(handle, "ci_run");
    library.thread_bytes = symbol(handle, "ci_thread_bytes");
    library.shared_bytes = symbol(handle, "ci_shared_bytes");
    library.q8_row_bytes = symbol(handle, "ci_q8_row_bytes");
}

static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

static uint32_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* FNV-1a. */
static uint64_t digest(uint64_t before, const void *data, size_t n) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++)
        before = (before ^ bytes[i]) * UINT64_C(1099511628211);
    return before;
}

/* A tile of a panel is `bytes` for `columns` of K. How it starts, so that scales are ordinary numbers: f16 numbers,
 * then bytes from `least` to least + 63. Of Q2_K to IQ4_XS every other byte is as good as any. f16 and bf16 matrices
 * are f16 and bf16 numbers throughout. */
static const struct type {
    int32_t number, columns, bytes, halves, exponents;
} types[] = {
    {CI_F32, 1, 64, 0, 0},         {CI_F16, 1, 32, 16, 0},      {CI_BF16, 2, 64, 0, 0},
    {CI_Q8_0, 64, 1088, 32, 0},    {CI_Q4_0, 64, 576, 32, 0},   {CI_Q4_1, 64, 640, 64, 0},
    {CI_Q5_0, 64, 704, 32, 0},     {CI_Q5_1, 64, 768, 64, 0},   {CI_IQ4_NL, 64, 576, 32, 0},
    {CI_MXFP4, 64, 544, 0, 32},    {CI_Q2_K, 256, 1344, 32, 0}, {CI_Q3_K, 256, 1760, 16, 0},
    {CI_Q4_K, 256, 2304, 32, 0},   {CI_Q5_K, 256, 2816, 32, 0}, {CI_Q6_K, 256, 3360, 16, 0},
    {CI_IQ4_XS, 256, 2176, 16, 0},
};
enum { TYPES = sizeof types / sizeof *types, ROWS = 33, WIDTH = 768, TOKENS = 200 };

static uint16_t half(void) { /* magnitudes from 2^-7 to 1, either sign */
    return (uint16_t)((next() & 0x8000u) | (0x2000u + next() % 0x1c00u));
}
static uint32_t number(void) {
    return (next() & 0x80000000u) | (0x3c000000u + next() % 0x04000000u);
}

static void fill(const struct type *type, uint8_t *panels, size_t bytes) {
    for (size_t tile = 0; tile < bytes; tile += (size_t)type->bytes) {
        uint8_t *at = panels + tile;
        for (int32_t i = 0; i < type->bytes; i++)
            at[i] = (uint8_t)next();
        for (int32_t i = 0; i < type->halves; i++)
            ((uint16_t *)(void *)at)[i] = half();
        for (int32_t i = 0; i < type->exponents; i++)
            at[i] = (uint8_t)(96 + next() % 64);
        for (int32_t i = 0; type->number == CI_F32 && i < 16; i++)
            ((uint32_t *)(void *)at)[i] = number();
        for (int32_t i = 0; type->number == CI_BF16 && i < 32; i++)
            ((uint16_t *)(void *)at)[i] = (uint16_t)(number() >> 16);
    }
}

static void *room(int64_t bytes, int fill_byte) {
    size_t whole = ((size_t)bytes + 127) / 64 * 64;
    void *memory = aligned_alloc(64, whole);
    if (!memory)
        abort();
    return memset(memory, fill_byte, whole);
}

static void run(const ci_op *op, int32_t tokens, int32_t threads) {
    static const int32_t none[TOKENS];
    const ci_batch batch = {.n_tokens = tokens,
                            .n_rows = tokens,
                            .tokens = none,
                            .positions = none,
                            .q_indptr = none,
                            .block_tables = none,
                            .logit_rows = none};
    ci_program program = {.ops = op, .n_ops = 1, .n_threads = threads};
    program.thread_bytes = (library.thread_bytes(op, 1, tokens) + 63) / 64 * 64;
    program.shared_bytes = library.shared_bytes(op, 1, threads, tokens, 16);
    program.workspace = room(program.thread_bytes * threads + program.shared_bytes, 0xff);
    if (library.run(&program, &batch))
        abort();
    free(program.workspace);
}

static int32_t activation_of(const struct type *type) {
    return type->columns == 1 ? CI_F32 : type->columns == 2 ? CI_BF16 : CI_Q8A;
}

/* bf16 comes in pairs. */
static int64_t row_bytes(int32_t activation, int32_t k) {
    if (activation == CI_Q8A)
        return library.q8_row_bytes(k);
    return activation == CI_BF16 ? (int64_t)(k + 1) / 2 * 4 : (int64_t)k * 4;
}

static void product(const struct type *type) {
    static const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 40, TOKENS};
    const int32_t activation = activation_of(type);
    uint64_t quantised = 0, plain = 0, gated = 0;
    for (int32_t k = type->columns < 256 ? 96 : 256; k <= WIDTH; k *= 3) { /* 96 and 288: half a tile left */
        const int64_t bytes = (int64_t)((k + type->columns - 1) / type->columns) * type->bytes * ((ROWS + 15) / 16);
        const int64_t row = row_bytes(activation, k);
        uint8_t *w[2] = {room(bytes, 0), room(bytes, 0)};
        float *x = room((int64_t)TOKENS * k * 4, 0);
        void *in = room(row * TOKENS, 0), *out = room((int64_t)TOKENS * ROWS * 4, 0);
        fill(type, w[0], (size_t)bytes);
        fill(type, w[1], (size_t)bytes);
        for (int32_t i = 0; i < TOKENS * k; i++)
            x[i] = (float)(int32_t)next() * 0x1p-30f;
        if (activation == CI_F32)
            memcpy(in, x, (size_t)(row * TOKENS));
        else
            run(&(ci_op){.kind = CI_OP_QUANTIZE, .n = k, .k = k, .out_type = activation, .in = {x}, .out = in}, TOKENS,
                1);
        quantised = digest(quantised, in, (size_t)(row * TOKENS));
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            ci_op op = {.kind = CI_OP_MATMUL, .n = ROWS, .k = k, .in_type = activation, .in = {in}, .out = out};
            for (int side = 0; side < 2; side++)
                op.w[side] = (ci_weight){w[side], type->number, ROWS, k, 0};
            const size_t written = (size_t)tokens[i] * ROWS * 4;
            run(&op, tokens[i], 1 + (int32_t)(i % 2));
            plain = digest(plain, out, written);
            op.kind = CI_OP_MATMUL_SWIGLU;
            run(&op, tokens[i], 1);
            gated = digest(gated, out, written);
        }
        free(w[0]);
        free(w[1]);
        free(x);
        free(in);
        free(out);
    }
    printf("%d %016llx %016llx %016llx\n", type->number, (unsigned long long)quantised, (unsigned long long)plain,
           (unsigned long long)gated);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s LIBRARY\n", argv[0]);
        return 2;
    }
    load(argv[1]);
    for (int i = 0; i < TYPES; i++)
        product(&types[i]);
    return 0;
}
