/* What this machine can do at most: reads of memory, and products. cpuinfer.machine.ceilings times them. */
#include <bf16_dot.h>
#include <dot.h>
#include <peaks.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Independent sums, enough to hide an addition's latency; each turn reads one vector for each of them. */
enum { SUMS = VF_GEMM_MR < 8 ? 4 : 8, UNIT = 128 };

typedef struct memory {
    float *x;
    int64_t units;
    int32_t streams, repetitions;
    float value;
    _Atomic int64_t sum;
} memory;

/* The units that a thread owns: contiguous. */
static int64_t first_unit(const ci_team *team, int64_t units, int32_t id) {
    return units * id / team->n;
}

static void fill_share(const ci_team *team, void *argument) {
    memory *m = argument;
    int64_t end = first_unit(team, m->units, team->id + 1) * UNIT;
    for (int64_t i = first_unit(team, m->units, team->id) * UNIT; i < end; i++)
        m->x[i] = m->value;
}

int32_t ci_fill(float *x, int64_t n, int32_t n_threads, float value) {
    if (n % UNIT)
        return -1;
    memory m = {.x = x, .units = n / UNIT, .value = value};
    ci_team_run(n_threads, fill_share, &m);
    return 0;
}

/* Add units * streams units of memory to the sums, as `streams` runs side by side. */
INLINE void read_runs(const int streams, const float *x, int64_t units, vf16 *sums) {
    for (int64_t i = 0; i < units * UNIT; i += UNIT)
#pragma GCC unroll 4
        for (int s = 0; s < streams; s++) {
            const float *p = x + s * units * UNIT + i;
#pragma GCC unroll 8
            for (int j = 0; j < UNIT / VF_LANES; j++)
                sums[j % SUMS] = vf_add(sums[j % SUMS], vf_load(p + j * VF_LANES));
        }
}

static void read_share(const ci_team *team, void *argument) {
    memory *m = argument;
    const float *x = m->x + first_unit(team, m->units, team->id) * UNIT;
    const int64_t units = first_unit(team, m->units, team->id + 1) - first_unit(team, m->units, team->id);
    const int64_t each = units / m->streams, in_streams = each * m->streams;
    vf16 sums[SUMS];
    for (int j = 0; j < SUMS; j++)
        sums[j] = vf_zero();
    for (int32_t repetition = 0; repetition < m->repetitions; repetition++) {
        if (m->streams == 4)
            read_runs(4, x, each, sums);
        else if (m->streams == 2)
            read_runs(2, x, each, sums);
        else
            read_runs(1, x, each, sums);
        read_runs(1, x + in_streams * UNIT, units - in_streams, sums);
        __asm__ volatile("" : : : "memory"); /* or the compiler reads once */
    }
    double sum = 0.0;
    for (int j = 0; j < SUMS; j++)
        sum += (double)vf_hsum(sums[j]);
    atomic_fetch_add(&m->sum, (int64_t)sum);
}

int64_t ci_read(const float *x, int64_t n, int32_t n_threads, int32_t streams, int32_t repetitions) {
    if (n % UNIT || (streams != 1 && streams != 2 && streams != 4))
        return -1;
    memory m = {.x = (float *)(uintptr_t)x, .units = n / UNIT, .streams = streams, .repetitions = repetitions};
    ci_team_run(n_threads, read_share, &m);
    return atomic_load(&m.sum);
}

/* Independent sums: as many as the level's GEMM keeps. A tile of bf16 is PAIR_MR tokens x PAIR_NP panels. */
enum {
    CHAINS = VF_GEMM_MR,
    PAIR_MR = BF16_MOST < 6 ? BF16_MOST : 6,
    PAIR_NP = BF16_MOST / PAIR_MR,
    INT_CHAINS = DOT_MR * DOT_NP
};

/* What the products are made of. */
typedef struct factors {
    _Alignas(64) uint8_t codes[DOT_NP][512]; /* a block of 32 k of DOT_NP panels */
    _Alignas(64) int8_t x[DOT_MR][64];
    _Alignas(64) float f32[VF_LANES];
    _Alignas(64) uint16_t panels[PAIR_NP][2 * VF_LANES]; /* a pair of k in bf16 */
    _Alignas(64) char pairs[PAIR_MR][BF16_PAIR_BYTES];   /* the tokens' own */
    float start[CHAINS];                                 /* of the sums: were they equal, one would do for all */
} factors;

static factors some_factors(void) {
    factors f;
    for (int p = 0; p < DOT_NP; p++)
        for (int i = 0; i < 512; i++)
            f.codes[p][i] = (uint8_t)(i % 16);
    for (int t = 0; t < DOT_MR; t++)
        for (int i = 0; i < 64; i++)
            f.x[t][i] = (int8_t)(i - 32);
    for (int i = 0; i < VF_LANES; i++)
        f.f32[i] = 0.5f;
    for (int p = 0; p < PAIR_NP; p++)
        for (int i = 0; i < 2 * VF_LANES; i++)
            f.panels[p][i] = f32_to_bf16(0.5f);
    memset(f.pairs, 0, sizeof f.pairs);
    for (int i = 0; i < CHAINS; i++)
        f.start[i] = (float)i;
    __asm__ volatile("" : : "r"(&f) : "memory"); /* the compiler knows none of it */
    return f;
}

/* Each returns the operations of one repetition. */
static int64_t run_f32(const factors *f, int64_t repetitions) {
    const vf16 w = vf_load(f->f32);
    vf16 acc[CHAINS];
    float out[VF_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++)
        acc[i] = vf_set1(f->start[i]);
    for (int64_t r = 0; r < repetitions; r++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++)
            acc[i] = vf_fma(w, w, acc[i]);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) {
        vf_store(out, acc[i]);
        __asm__ volatile("" : : "r"(out) : "memory");
    }
    return CHAINS * VF_LANES * 2;
}

/* Steps of the level's bf16 tile, loads included. */
static int64_t run_bf16(const factors *f, int64_t repetitions) {
    const uint8_t *panels = (const uint8_t *)f->panels;
    vf16 sum[PAIR_MR * PAIR_NP];
    float out[VF_LANES];
#pragma GCC unroll 32
    for (int i = 0; i < PAIR_MR * PAIR_NP; i++)
        sum[i] = vf_set1(f->start[i % CHAINS]);
    for (int64_t r = 0; r < repetitions; r++) {
        bf16_step(PAIR_MR, PAIR_NP, sum, panels, sizeof f->panels[0], dot_rows_at(f->pairs[0], BF16_PAIR_BYTES));
        __asm__ volatile("" : : : "memory"); /* the factors may be others */
    }
#pragma GCC unroll 32
    for (int i = 0; i < PAIR_MR * PAIR_NP; i++) {
        vf_store(out, sum[i]);
        __asm__ volatile("" : : "r"(out) : "memory");
    }
    return PAIR_MR * PAIR_NP * VF_LANES * 4;
}

/* A block of dot.h, loads included. */
INLINE int64_t run_block(const int bits, const factors *f, int64_t repetitions) {
    const uint8_t *codes[DOT_NP];
    vi16 dot[INT_CHAINS], out[INT_CHAINS];
    for (int p = 0; p < DOT_NP; p++)
        codes[p] = f->codes[p];
    for (int64_t r = 0; r < repetitions; r++) {
        const dot_rows x = dot_rows_at((const char *)f->x, sizeof f->x[0]);
        dot_block(DOT_MR, DOT_NP, dot, codes, bits == 4 ? CODES_U4 : CODES_U8, x, NULL);
#pragma GCC unroll 16
        for (int i = 0; i < INT_CHAINS; i++)
            out[i] = dot[i];
        __asm__ volatile("" : : "r"(out) : "memory"); /* the sums are wanted, and the factors may be others */
    }
    return INT_CHAINS * 16 * 32 * 2;
}

/* The level's bare sequence; 0 where it has none. */
INLINE int64_t run_ints(const int bits, const factors *f, int64_t repetitions) {
#if PEAK_INTS
    vi16 w, sums[INT_CHAINS], out[INT_CHAINS];
    memcpy(&w, f->codes, sizeof w);
#pragma GCC unroll 16
    for (int i = 0; i < INT_CHAINS; i++)
        sums[i] = vi_set1((int32_t)f->start[i % CHAINS] * (i + 1));
    for (int64_t r = 0; r < repetitions; r++)
#pragma GCC unroll 16
        for (int i = 0; i < INT_CHAINS; i++)
            sums[i] = bits == 4 ? peak_int4(sums[i], &w) : peak_int8(sums[i], &w);
#pragma GCC unroll 16
    for (int i = 0; i < INT_CHAINS; i++)
        out[i] = sums[i];
    __asm__ volatile("" : : "r"(out) : "memory");
    return INT_CHAINS * 64 * 2;
#elif PEAK_TILES
    (void)bits;
    peak_tiles(f->codes[0], repetitions);
    return PEAK_TILE_PRODUCTS * 2;
#else
    (void)bits, (void)f, (void)repetitions;
    return 0;
#endif
}

typedef struct products {
    int32_t kind;
    int64_t repetitions;
    _Atomic int64_t operations;
} products;

static void run_share(const ci_team *team, void *argument) {
    products *p = argument;
    const factors f = some_factors();
    int64_t each = 0;
    (void)team;
    switch (p->kind) {
    case CI_PEAK_F32:
        each = run_f32(&f, p->repetitions);
        break;
    case CI_PEAK_BF16_BLOCKS:
        each = run_bf16(&f, p->repetitions);
        break;
    case CI_PEAK_INT4:
        each = run_ints(4, &f, p->repetitions);
        break;
    case CI_PEAK_INT8:
        each = run_ints(8, &f, p->repetitions);
        break;
    case CI_PEAK_INT4_BLOCKS:
        each = run_block(4, &f, p->repetitions);
        break;
    default:
        each = run_block(8, &f, p->repetitions);
    }
    atomic_fetch_add(&p->operations, each * p->repetitions);
}

int64_t ci_peak(int32_t kind, int32_t n_threads, int64_t repetitions) {
    if (kind < CI_PEAK_F32 || kind > CI_PEAK_INT8_BLOCKS)
        return -1;
    products p = {.kind = kind, .repetitions = repetitions};
    ci_team_run(n_threads, run_share, &p);
    return atomic_load(&p.operations);
}
