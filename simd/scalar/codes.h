/* The codes of a block of 32 k and 16 rows, in every form that they are stored in (docs/design.md section 2): one
 * source for all levels, built on bytes.h. The form and the chunk are constants where this is inlined, so nothing is
 * left of the switch. */
#ifndef CPUINFER_CODES_H
#define CPUINFER_CODES_H
#include <bytes.h>

enum {
    CODES_N,   /* nibbles */
    CODES_NB,  /* nibbles, a plane of bits 4 */
    CODES_NT,  /* nibbles, two planes of bits 4-5 */
    CODES_T,   /* two planes of bits 0-1 */
    CODES_TB,  /* two planes of bits 0-1, a plane of bits 2 */
    CODES_IQ4, /* nibbles, indices of the table of IQ4_NL: codes are value + 128 */
    CODES_FP4, /* nibbles, e2m1 numbers: codes are 2 * value + 12 */
    CODES_U4,  /* bytes [8 chunks][16 rows][4], of 4 bits at most (U4), 5, 6, and 8 */
    CODES_U5,
    CODES_U6,
    CODES_U8
};

static const uint8_t codes_iq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t codes_iq4_signed[16] = {129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113};
static const uint8_t codes_fp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

/* Bits of a code. */
DOT_INLINE int codes_bits(const int form) {
    switch (form) {
    case CODES_T:
        return 2;
    case CODES_TB:
        return 3;
    case CODES_N:
    case CODES_U4:
        return 4;
    case CODES_NB:
    case CODES_FP4:
    case CODES_U5:
        return 5;
    case CODES_NT:
    case CODES_U6:
        return 6;
    default:
        return 8;
    }
}

/* Bytes of a block. */
DOT_INLINE int32_t codes_bytes(const int form) {
    switch (form) {
    case CODES_T:
        return 128;
    case CODES_TB:
        return 192;
    case CODES_N:
    case CODES_IQ4:
    case CODES_FP4:
        return 256;
    case CODES_NB:
        return 320;
    case CODES_NT:
        return 384;
    default:
        return 512;
    }
}

DOT_INLINE vc16 codes_nibbles(const uint8_t *block, const int c) {
    return vc_shift_and(vc_load(block + c % 4 * 64), c / 4 * 4, 15);
}
/* The bits of plane c / 4 of two, put at bit `at`. */
DOT_INLINE vc16 codes_pairs(const uint8_t *planes, const int c, const int at) {
    return vc_shift_and(vc_load(planes + c / 4 * 64), c % 4 * 2 - at, (uint8_t)(3 << at));
}
DOT_INLINE vc16 codes_bit(const uint8_t *plane, const int c, const int at) {
    return vc_shift_and(vc_load(plane), c - at, (uint8_t)(1 << at));
}

/* Chunk c: byte b of row r is the code of k = 4c + b. */
DOT_INLINE vc16 codes_chunk(const int form, const uint8_t *block, const int c) {
    switch (form) {
    case CODES_N:
        return codes_nibbles(block, c);
    case CODES_NB:
        return vc_or(codes_nibbles(block, c), codes_bit(block + 256, c, 4));
    case CODES_NT:
        return vc_or(codes_nibbles(block, c), codes_pairs(block + 256, c, 4));
    case CODES_T:
        return codes_pairs(block, c, 0);
    case CODES_TB:
        return vc_or(codes_pairs(block, c, 0), codes_bit(block + 128, c, 2));
    case CODES_IQ4:
        return vc_lookup(codes_nibbles(block, c), codes_iq4);
    case CODES_FP4:
        return vc_lookup(codes_nibbles(block, c), codes_fp4);
    default:
        return vc_load(block + 64 * c);
    }
}

/* Chunk c of a form of 8 bits as int8: code - 128. */
DOT_INLINE vc16 codes_signed(const int form, const uint8_t *block, const int c) {
    if (form == CODES_IQ4)
        return vc_lookup(codes_nibbles(block, c), codes_iq4_signed);
    return vc_xor1(codes_chunk(form, block, c), 128);
}
#endif
