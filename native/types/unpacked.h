/* The forms that panels are unpacked to for many tokens: bytes of codes, and scales as f32 or int16. Types whose codes
 * have as many bits, the same offset and as many scales and mins share one. */
#ifndef CPUINFER_UNPACKED_H
#define CPUINFER_UNPACKED_H
#include "../matmul_int.h"

/* Tokens from which unpacking a panel pays. Measured on Zen 3, weights in L2, with 12, 18, 24, 36, 48 tokens: Q4_0,
 * Q4_1 and IQ4_NL (nibbles under f16 scales) gain -7, -5, -2, 0, +2 %; Q5_K +13, +20, +36, +31, +33 %; the others are
 * about between. Codes that are bytes already gain nothing. */
enum { CI_FEW = 18, CI_MORE = 48, CI_NEVER = INT32_MAX };

#define CI_U4_8 ((form){.codes = CODES_U4, .offset = 8, .header = HEADER_UNPACKED})
#define CI_U4_MIN ((form){.codes = CODES_U4, .mins = 1, .header = HEADER_UNPACKED})
#define CI_U5_12 ((form){.codes = CODES_U5, .offset = 12, .header = HEADER_UNPACKED})
#define CI_U5_16 ((form){.codes = CODES_U5, .offset = 16, .header = HEADER_UNPACKED})
#define CI_U5_MIN ((form){.codes = CODES_U5, .mins = 1, .header = HEADER_UNPACKED})
#define CI_U8_128 ((form){.codes = CODES_U8, .offset = 128, .header = HEADER_UNPACKED})
#define CI_HALVES_U4_4 ((form){.codes = CODES_U4, .offset = 4, .halves = 1, .header = HEADER_UNPACKED})
#define CI_HALVES_U4_MIN ((form){.codes = CODES_U4, .mins = 1, .halves = 1, .header = HEADER_UNPACKED})
#define CI_HALVES_U6_32 ((form){.codes = CODES_U6, .offset = 32, .halves = 1, .header = HEADER_UNPACKED})

extern const ci_tiles ci_u4_8_tiles, ci_u4_min_tiles, ci_u5_12_tiles, ci_u5_16_tiles, ci_u5_min_tiles, ci_u8_128_tiles,
    ci_halves_u4_4_tiles, ci_halves_u4_min_tiles, ci_halves_u6_32_tiles;
#endif
