/* Writes what every function of vec.h and vmath.h gives for fixed pseudo-random inputs, once in the default mode and
 * once in the mode of a step: blocks of "name bytes\n" and that many bytes. Two levels agree where the output does. */
#include <fpmode.h>
#include <stdio.h>
#include <vec.h>
#include <vmath.h>

enum { VECTORS = 2000 };

static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

static uint32_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static float of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Half plain numbers in (-8, 8), a quarter any bits at all, a quarter the values at which things break. */
static float any_float(void) {
    static const uint32_t special[] = {
        0x00000000u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x00000001u, 0x80000001u, 0x007fffffu, 0x807fffffu,
        0x00800000u, 0x80800000u, 0x7f7fffffu, 0xff7fffffu, 0x3f800000u, 0xbf800000u, 0x3f000000u, 0x3fc00000u,
        0x40200000u, 0xc0200000u, 0x477fe000u, 0x477ff000u, 0x477fefffu, 0x38800000u, 0x387fffffu, 0x33000000u,
        0x33000001u, 0x33800000u, 0x3f808000u, 0x3f818000u, 0x7fc00000u, 0xffc12345u, 0x7f812345u, 0x42b00000u,
    };
    uint32_t kind = next() & 3u;
    if (kind == 0)
        return of_bits(special[next() % (sizeof special / sizeof *special)]);
    if (kind == 1)
        return of_bits(next());
    return ((float)(int32_t)next()) * 0x1p-28f;
}

static void fill(float *x, float (*make)(void)) {
    for (int i = 0; i < VF_LANES; i++)
        x[i] = make();
}

static float whole_exponent(void) {
    return (float)((int)(next() % 254u) - 126);
}
static float small(void) { /* ties between whole numbers among them */
    return (float)((int)(next() % 508u) - 254) * 0.5f +
           (next() & 1u ? 0.0f : ((float)(next() & 255u) - 128.0f) * 0x1p-10f);
}
static float byte_sized(void) {
    float x = small();
    return fabsf(x) < 127.5f ? x : 1.0f;
}

/* A NaN's sign and payload are nobody's contract once it went through arithmetic. */
static void put(const char *name, vf16 *results, int n) {
    printf("%s %zu\n", name, (size_t)n * VF_LANES * sizeof(float));
    for (int i = 0; i < n; i++) {
        float lanes[VF_LANES];
        vf_store(lanes, results[i]);
        for (int j = 0; j < VF_LANES; j++)
            if (isnan(lanes[j]))
                lanes[j] = of_bits(0x7fc00000u);
        fwrite(lanes, sizeof lanes, 1, stdout);
    }
}

static void put_bytes(const char *name, const void *bytes, size_t n) {
    printf("%s %zu\n", name, n);
    fwrite(bytes, n, 1, stdout);
}

static vf16 results[VECTORS];
static float in[VECTORS][3][VF_LANES];

static void refill(float (*a)(void), float (*b)(void), float (*c)(void)) {
    for (int i = 0; i < VECTORS; i++) {
        fill(in[i][0], a);
        fill(in[i][1], b);
        fill(in[i][2], c);
    }
}

#define A vf_load(in[i][0])
#define B vf_load(in[i][1])
#define C vf_load(in[i][2])
#define DUMP(expression)                    \
    do {                                    \
        for (int i = 0; i < VECTORS; i++)   \
            results[i] = (expression);      \
        put(#expression, results, VECTORS); \
    } while (0)

static void dump_arithmetic(void) {
    refill(any_float, any_float, any_float);
    DUMP(vf_set1(in[i][0][i % 16]));
    DUMP(vf_add(A, B));
    DUMP(vf_sub(A, B));
    DUMP(vf_mul(A, B));
    DUMP(vf_div(A, B));
    DUMP(vf_fma(A, B, C));
    DUMP(vf_max(A, B));
    DUMP(vf_min(A, B));
    DUMP(vf_abs(A));
    DUMP(vf_sqrt(A));
    DUMP(vf_swap_pairs(A));
    DUMP(vf_set1(vf_hsum(A)));
    DUMP(vf_set1(vf_hmax(A)));
    DUMP(vf_first_n(A, B, i % 17));
    DUMP(vf_load_n(in[i][0], 1 + i % 16));
    DUMP(vf_exp(A));
    DUMP(vf_silu(A));
    refill(any_float, whole_exponent, any_float);
    DUMP(vf_scale2(A, B));
    refill(small, small, small);
    DUMP(vf_round(A));
    DUMP(vf_set1(vf_hsum(A)));
    float cut[VF_LANES];
    for (int i = 0; i < VECTORS; i++) {
        memset(cut, 0x55, sizeof cut);
        vf_store_n(cut, A, 1 + i % 16);
        results[i] = vf_load(cut);
    }
    put("vf_store_n", results, VECTORS);
}

static void dump_bytes(void) {
    static int8_t signed_bytes[VECTORS][VF_LANES];
    refill(byte_sized, byte_sized, byte_sized);
    for (int i = 0; i < VECTORS; i++)
        vf_store_i8(signed_bytes[i], A);
    put_bytes("vf_store_i8", signed_bytes, sizeof signed_bytes);
    DUMP(vf_load_i8(signed_bytes[i]));
    DUMP(vf_load_u8((const uint8_t *)signed_bytes[i]));
}

static void dump_halves(void) {
    static uint16_t halves[65536];
    static float floats[65536];
    for (uint32_t i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
        floats[i] = f16_to_f32((uint16_t)i);
    }
    put_bytes("f16_to_f32", floats, sizeof floats);
    for (uint32_t i = 0; i < 65536; i += 16)
        vf_store(floats + i, vf_load_f16(halves + i));
    put_bytes("vf_load_f16", floats, sizeof floats);
    for (uint32_t i = 0; i < 65536; i++)
        floats[i] = bf16_to_f32((uint16_t)i);
    put_bytes("bf16_to_f32", floats, sizeof floats);
    for (uint32_t i = 0; i < 65536; i += 16)
        vf_store(floats + i, vf_load_bf16(halves + i));
    put_bytes("vf_load_bf16", floats, sizeof floats);
    for (uint32_t i = 0; i < 65536; i += 32) {
        vf16 even, odd;
        vf_load_bf16_pairs(halves + i, &even, &odd);
        vf_store(floats + i, even);
        vf_store(floats + i + 16, odd);
    }
    put_bytes("vf_load_bf16_pairs", floats, sizeof floats);
}

static void dump_narrowing(void) {
    static float floats[65536];
    static uint16_t halves[65536];
    for (uint32_t i = 0; i < 65536; i++)
        floats[i] = i % 2 ? any_float() : of_bits((next() & 0x80000000u) | (0x32000000u + next() % 0x16000000u));
    put_bytes("inputs", floats, sizeof floats);
    for (uint32_t i = 0; i < 65536; i++)
        halves[i] = f32_to_f16(floats[i]);
    put_bytes("f32_to_f16", halves, sizeof halves);
    for (uint32_t i = 0; i < 65536; i++)
        halves[i] = f32_to_bf16(floats[i]);
    put_bytes("f32_to_bf16", halves, sizeof halves);
    for (uint32_t i = 0; i < 65536; i += 16)
        vf_store_f16(halves + i, vf_load(floats + i));
    put_bytes("vf_store_f16", halves, sizeof halves);
    for (uint32_t i = 0; i < 65536; i += 16)
        vf_store_bf16(halves + i, vf_load(floats + i));
    put_bytes("vf_store_bf16", halves, sizeof halves);
}

static void dump(void) {
    dump_arithmetic();
    dump_bytes();
    dump_halves();
    dump_narrowing();
}

int main(void) {
    dump();
    uint64_t mode = fp_enter();
    dump();
    fp_leave(mode);
    return 0;
}
