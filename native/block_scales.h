/* What stands in front of the codes of a tile: scales, mins, and pairs of integer scales, by weight type.
 * docs/design.md section 2. */
#ifndef CPUINFER_BLOCK_SCALES_H
#define CPUINFER_BLOCK_SCALES_H
#include <dot.h>

#include "matmul.h"

/* The types whose headers are alike. */
enum {
    HEADER_F16,      /* [2 blocks][16] f16 scales, and mins likewise where the type has them */
    HEADER_E8M0,     /* [2][16] u8 exponents */
    HEADER_Q2_K,     /* [16] f16 d, [16] f16 dmin, [8][16][2] u8 */
    HEADER_Q3_K,     /* [16] f16 d, six-bit pairs of the halves' scales + 32 */
    HEADER_Q4_K,     /* [16] f16 d, [16] f16 dmin, six-bit pairs of scale and min */
    HEADER_Q6_K,     /* [16] f16 d, [8][16][2] i8 */
    HEADER_IQ4_XS,   /* [16] f16 d, [4][16] u8, [2][16] u8 */
    HEADER_UNPACKED, /* of one block: [16] f32 scale (or d), [16] f32 min (or -dmin) where the type has them; with
                      * halves also [16][2] int16 scales, and mins likewise */
};

/* A weight type as the kernels see it: always a constant, so every branch on it vanishes. */
typedef struct form {
    int codes;  /* of codes.h */
    int offset; /* taken from each code */
    int mins;   /* 1: blocks have mins */
    int halves; /* 1: either half of a block has a scale of its own, and a min where there are mins */
    int header;
} form;

DOT_INLINE int32_t tile_blocks(const form f) {
    return f.header == HEADER_UNPACKED ? 1 : f.header == HEADER_F16 || f.header == HEADER_E8M0 ? 2 : 8;
}
DOT_INLINE int32_t header_bytes(const form f) {
    switch (f.header) {
    case HEADER_F16:
        return 64 << f.mins;
    case HEADER_E8M0:
        return 32;
    case HEADER_Q2_K:
        return 320;
    case HEADER_Q3_K:
        return 224;
    case HEADER_Q4_K:
        return 256;
    case HEADER_Q6_K:
        return 288;
    case HEADER_IQ4_XS:
        return 128;
    default:
        return 64 << (f.mins + f.halves);
    }
}
DOT_INLINE int32_t tile_bytes(const form f) {
    return header_bytes(f) + tile_blocks(f) * codes_bytes(f.codes);
}

/* Bytes of a panel: whole tiles. */
DOT_INLINE int64_t form_bytes(const form f, int32_t k) {
    return ((int64_t)k / 32 + tile_blocks(f) - 1) / tile_blocks(f) * tile_bytes(f);
}

/* Where block i of a panel lies. */
DOT_INLINE const uint8_t *tile_of(const form f, const uint8_t *panel, int32_t i) {
    return panel + (int64_t)(i / tile_blocks(f)) * tile_bytes(f);
}
DOT_INLINE const uint8_t *codes_of(const form f, const uint8_t *tile, int32_t i) {
    return tile + header_bytes(f) + i % tile_blocks(f) * codes_bytes(f.codes);
}

/* One block's worth of a panel, CI_AHEAD further. */
DOT_INLINE void fetch_ahead(const form f, const uint8_t *codes) {
    for (int32_t i = 0; i < tile_bytes(f) / tile_blocks(f); i += 64)
        __builtin_prefetch(codes + CI_AHEAD + i);
}

/* 16 bytes at a time, as 16-bit elements: the shifts that every level has. */
typedef uint16_t bytes16 __attribute__((vector_size(16)));

DOT_INLINE bytes16 bytes16_load(const uint8_t *p) {
    bytes16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
DOT_INLINE vf16 bytes16_to_float(bytes16 a) {
    uint8_t bytes[16];
    memcpy(bytes, &a, sizeof bytes);
    return vf_load_u8(bytes);
}

/* Six-bit pairs (a, b) of block i of 8. */
typedef struct six_bits {
    bytes16 a, b;
} six_bits;

DOT_INLINE six_bits six_bits_at(const uint8_t *packed, int i) {
    bytes16 low = bytes16_load(packed + 16 * i), high = bytes16_load(packed + 128 + i / 2 * 16) >> (i % 2 * 4);
    return (six_bits){(low & 0x0f0f) | ((high << 4) & 0x3030), ((low >> 4) & 0x0f0f) | ((high << 2) & 0x3030)};
}

DOT_INLINE vf16 header_f16(const uint8_t *header, int32_t at) {
    return vf_load_f16((const uint16_t *)(const void *)(header + at));
}
DOT_INLINE vf16 header_f32(const uint8_t *header, int32_t at) {
    return vf_load((const float *)(const void *)(header + at));
}

typedef uint8_t exponents8 __attribute__((vector_size(16)));
typedef uint16_t exponents16 __attribute__((vector_size(32)));

/* 2^(e - 128), and 0 for e < 2: bf16 numbers of exponent e - 1. (Through float's bits in memory GCC 13.3 at -O3 reads
 * them before it writes them.) */
DOT_INLINE vf16 header_e8m0(const uint8_t *exponents) {
    exponents8 bytes;
    uint16_t halves[CI_ROWS];
    memcpy(&bytes, exponents, sizeof bytes);
    exponents16 e = __builtin_convertvector(bytes, exponents16);
    e = (e + (exponents16)(e > 0)) << 7; /* a comparison that holds is -1 */
    memcpy(halves, &e, sizeof halves);
    return vf_load_bf16(halves);
}

DOT_INLINE vf16 iq4_xs_scale(const uint8_t *header, int i) {
    bytes16 low = bytes16_load(header + 32 + i / 2 * 16) >> (i % 2 * 4);
    bytes16 high = bytes16_load(header + 96 + i / 4 * 16) >> (i % 4 * 2);
    return vf_sub(bytes16_to_float((low & 0x0f0f) | ((high << 4) & 0x3030)), vf_set1(32.0f));
}

/* The f32 scales of block i of a tile; with halves, what multiplies the integer scales. */
DOT_INLINE vf16 block_scale(const form f, const uint8_t *header, int i) {
    switch (f.header) {
    case HEADER_UNPACKED:
        return header_f32(header, 0);
    case HEADER_F16:
        return header_f16(header, 32 * i);
    case HEADER_E8M0:
        return header_e8m0(header + 16 * i);
    case HEADER_Q4_K:
        return vf_mul(header_f16(header, 0), bytes16_to_float(six_bits_at(header + 64, i).a));
    case HEADER_IQ4_XS:
        return vf_mul(header_f16(header, 0), iq4_xs_scale(header, i));
    default:
        return header_f16(header, 0);
    }
}

/* The f32 mins of block i of a tile; with halves, what multiplies the integer mins. */
DOT_INLINE vf16 block_min(const form f, const uint8_t *header, int i) {
    const vf16 minus = vf_set1(-1.0f);
    switch (f.header) {
    case HEADER_UNPACKED:
        return header_f32(header, 64);
    case HEADER_F16:
        return header_f16(header, 64 + 32 * i);
    case HEADER_Q4_K:
        return vf_mul(vf_mul(minus, header_f16(header, 32)), bytes16_to_float(six_bits_at(header + 64, i).b));
    default:
        return vf_mul(minus, header_f16(header, 32));
    }
}

/* The integer scales [16 rows][2 halves] of block i of a tile; made in `room` [32] where they are not there. */
DOT_INLINE const int16_t *block_pairs(const form f, const uint8_t *header, int i, int16_t *room) {
    const uint8_t *bytes = header + (f.header == HEADER_Q2_K ? 64 : 32) + 32 * i;
    if (f.header == HEADER_UNPACKED)
        return (const int16_t *)(const void *)(header + (64 << f.mins));
    if (f.header == HEADER_Q3_K) {
        six_bits pair = six_bits_at(header + 32, i);
        uint8_t a[CI_ROWS], b[CI_ROWS];
        memcpy(a, &pair.a, sizeof a);
        memcpy(b, &pair.b, sizeof b);
        bytes_beside(room, a, b, -32);
        return room;
    }
    for (int r = 0; r < 2 * CI_ROWS; r++)
        room[r] = (int16_t)(f.header == HEADER_Q2_K ? bytes[r] & 15 : (int8_t)bytes[r]);
    return room;
}

/* The integer mins [16 rows][2 halves], likewise. */
DOT_INLINE const int16_t *block_min_pairs(const form f, const uint8_t *header, int i, int16_t *room) {
    if (f.header == HEADER_UNPACKED)
        return (const int16_t *)(const void *)(header + 192);
    for (int r = 0; r < 2 * CI_ROWS; r++)
        room[r] = (int16_t)(header[64 + 32 * i + r] >> 4);
    return room;
}
#endif
