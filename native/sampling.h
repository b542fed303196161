/* The numbers of sampling: order of logits, integer weights, selection and random bits, as in cpuinfer/engine. */
#ifndef CPUINFER_SAMPLING_H
#define CPUINFER_SAMPLING_H
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 u128;

enum {
    BLOCK = 64,         /* logits with one maximum */
    SLICE = 64 * BLOCK, /* logits that one thread takes at once */
    STEPS = 64,         /* of the table per octave */
    OCTAVES = 45,       /* further down every weight rounds to 0 */
    KEY_DIGIT = 11,     /* bits of a key that one pass looks at */
    WEIGHT_DIGIT = 9,   /* bits of a weight that one pass looks at */
    KEY_INFINITE = 0x7f800000,
    KEY_NAN = INT32_MAX /* of a block that has one */
};
#define WEIGHT_BITS 44
#define TWO_52 \
    0x1p52 /* x + 2^52 rounds 0 <= x < 2^51 to the nearest integer, even of two, and has it as its low bits */

/* 2^(-i/64), correctly rounded. */
static const double octave[STEPS] = {
    0x1.0000000000000p+0, 0x1.fa7c1819e90d8p-1, 0x1.f50765b6e4540p-1, 0x1.efa1bee615a27p-1, 0x1.ea4afa2a490dap-1,
    0x1.e502ee78b3ff6p-1, 0x1.dfc97337b9b5fp-1, 0x1.da9e603db3285p-1, 0x1.d5818dcfba487p-1, 0x1.d072d4a07897cp-1,
    0x1.cb720dcef9069p-1, 0x1.c67f12e57d14bp-1, 0x1.c199bdd85529cp-1, 0x1.bcc1e904bc1d2p-1, 0x1.b7f76f2fb5e47p-1,
    0x1.b33a2b84f15fbp-1, 0x1.ae89f995ad3adp-1, 0x1.a9e6b5579fdbfp-1, 0x1.a5503b23e255dp-1, 0x1.a0c667b5de565p-1,
    0x1.9c49182a3f090p-1, 0x1.97d829fde4e50p-1, 0x1.93737b0cdc5e5p-1, 0x1.8f1ae99157736p-1, 0x1.8ace5422aa0dbp-1,
    0x1.868d99b4492edp-1, 0x1.82589994cce13p-1, 0x1.7e2f336cf4e62p-1, 0x1.7a11473eb0187p-1, 0x1.75feb564267c9p-1,
    0x1.71f75e8ec5f74p-1, 0x1.6dfb23c651a2fp-1, 0x1.6a09e667f3bcdp-1, 0x1.6623882552225p-1, 0x1.6247eb03a5585p-1,
    0x1.5e76f15ad2148p-1, 0x1.5ab07dd485429p-1, 0x1.56f4736b527dap-1, 0x1.5342b569d4f82p-1, 0x1.4f9b2769d2ca7p-1,
    0x1.4bfdad5362a27p-1, 0x1.486a2b5c13cd0p-1, 0x1.44e086061892dp-1, 0x1.4160a21f72e2ap-1, 0x1.3dea64c123422p-1,
    0x1.3a7db34e59ff7p-1, 0x1.371a7373aa9cbp-1, 0x1.33c08b26416ffp-1, 0x1.306fe0a31b715p-1, 0x1.2d285a6e4030bp-1,
    0x1.29e9df51fdee1p-1, 0x1.26b4565e27cddp-1, 0x1.2387a6e756238p-1, 0x1.2063b88628cd6p-1, 0x1.1d4873168b9aap-1,
    0x1.1a35beb6fcb75p-1, 0x1.172b83c7d517bp-1, 0x1.1429aaea92de0p-1, 0x1.11301d0125b51p-1, 0x1.0e3ec32d3d1a2p-1,
    0x1.0b5586cf9890fp-1, 0x1.0874518759bc8p-1, 0x1.059b0d3158574p-1, 0x1.02c9a3e778061p-1,
};

static inline int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Rises with x; equal for -0 and 0. A NaN's has no place in the order. */
static inline int32_t key_of(float x) {
    int32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

static inline float value_of(int32_t key) {
    float x;
    key ^= (key >> 31) & INT32_MAX;
    memcpy(&x, &key, sizeof x);
    return x;
}

static inline int32_t is_finite_key(int32_t key) {
    return key < KEY_INFINITE && key > (KEY_INFINITE ^ -1);
}

/* The largest key, or KEY_NAN. */
static int32_t block_maximum(const float *x, int32_t n) {
    int32_t most = INT32_MIN, magnitude = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t bits, key = key_of(x[i]);
        memcpy(&bits, &x[i], sizeof bits);
        bits &= INT32_MAX;
        most = key > most ? key : most;
        magnitude = bits > magnitude ? bits : magnitude;
    }
    return magnitude > KEY_INFINITE ? KEY_NAN : most;
}

static int32_t largest_key(const int32_t *keys, int32_t n) {
    int32_t most = INT32_MIN;
    for (int32_t i = 0; i < n; i++)
        most = keys[i] > most ? keys[i] : most;
    return most;
}

typedef union double_bits {
    double value;
    uint64_t bits;
} double_bits;

/* w[i] = round(2^44 exp((x[i] - top) / temperature)), scale = 64 log2(e) / temperature, n <= BLOCK: `weights` of
 * numerics.py, operation by operation. Two loops, each of one width of numbers, so that compilers make vectors. */
static void weigh_block(const float *x, int32_t n, double top, double scale, int64_t *w) {
    double steps[BLOCK];
    for (int32_t i = 0; i < n; i++) {
        double u = (top - (double)x[i]) * scale;
        steps[i] = u < STEPS * OCTAVES ? u : STEPS * OCTAVES;
    }
    for (int32_t i = 0; i < n; i++) {
        double_bits index = {.value = steps[i] + TWO_52};
        double u = (steps[i] - (index.value - TWO_52)) * (0.6931471805599453 / STEPS);
        double series = u * (1.0 / 24);
        series = (series + -1.0 / 6) * u;
        series = (series + 0.5) * u;
        series = (series + -1.0) * u;
        series += 1.0;
        double_bits power = {.bits = (1023 + WEIGHT_BITS - ((index.bits & 0xfff) / STEPS)) << 52};
        index.bits %= STEPS;
        double_bits rounded = {.value = series * (octave[index.bits] * power.value) + TWO_52};
        w[i] = (int64_t)(rounded.bits & ((UINT64_C(1) << 52) - 1));
    }
}

static int64_t sum_of(const int64_t *w, int32_t n) {
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += w[i];
    return sum;
}

/* The least integer that is at least p * total, for 0 <= p <= 1 and 0 <= total < 2^62. */
static int64_t portion(double p, int64_t total) {
    int exponent;
    double mantissa = frexp(p, &exponent);
    u128 product = (u128)(uint64_t)(mantissa * 0x1p53) * (u128)(uint64_t)total;
    int shift = 53 - exponent;
    if (shift > 126)
        return product > 0;
    return (int64_t)((product + (((u128)1 << shift) - 1)) >> shift);
}

/* The k-th largest of n >= k >= 1 keys, which are destroyed. */
static int32_t select_key(int32_t *keys, int32_t n, int32_t k) {
    for (int32_t left = 32; left > 0;) {
        int32_t digit_bits = min32(KEY_DIGIT, left), counts[1 << KEY_DIGIT] = {0};
        left -= digit_bits;
        uint32_t mask = (1u << digit_bits) - 1;
        for (int32_t i = 0; i < n; i++)
            counts[(((uint32_t)keys[i] ^ 0x80000000u) >> left) & mask]++;
        uint32_t digit = mask;
        for (; counts[digit] < k; digit--)
            k -= counts[digit];
        int32_t kept = 0;
        for (int32_t i = 0; i < n; i++) {
            int32_t key = keys[i];
            keys[kept] = key;
            kept += ((((uint32_t)key ^ 0x80000000u) >> left) & mask) == digit;
        }
        n = kept;
    }
    return keys[0];
}

/* The least of the weights that stays where one stays if those of larger weight together are less than `most`, for
 * 0 < most <= their sum. The weights are destroyed. */
static int64_t select_weight(int64_t *w, int32_t n, int64_t most) {
    for (int32_t left = WEIGHT_BITS + 1; left > 0;) {
        int64_t sums[1 << WEIGHT_DIGIT] = {0};
        left -= WEIGHT_DIGIT;
        const int64_t mask = (1 << WEIGHT_DIGIT) - 1;
        for (int32_t i = 0; i < n; i++)
            sums[(w[i] >> left) & mask] += w[i];
        int64_t digit = mask;
        for (; sums[digit] < most; digit--)
            most -= sums[digit];
        int32_t kept = 0;
        for (int32_t i = 0; i < n; i++) {
            int64_t weight = w[i];
            w[kept] = weight;
            kept += ((weight >> left) & mask) == digit;
        }
        n = kept;
    }
    return w[0];
}

/* 64 uniform bits: Philox4x32-10 of the counter (position, choice, 0, 0) and the key `seed`.
 * Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
static uint64_t random_bits(uint64_t seed, uint32_t choice, uint32_t position) {
    uint32_t x[4] = {position, choice, 0, 0}, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int32_t round = 0; round < 10; round++) {
        uint64_t left = (uint64_t)0xD2511F53u * x[0], right = (uint64_t)0xCD9E8D57u * x[2];
        x[0] = (uint32_t)(right >> 32) ^ x[1] ^ k0;
        x[1] = (uint32_t)right;
        x[2] = (uint32_t)(left >> 32) ^ x[3] ^ k1;
        x[3] = (uint32_t)left;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)x[1] << 32 | x[0];
}
#endif
