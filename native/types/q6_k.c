/* Q6_K: 6 bits - 32; 8-bit scales of halves. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_NT, .offset = 32, .halves = 1, .header = HEADER_Q6_K})

CI_INT_FORMAT_UNPACKED(q6_k, CI_Q6_K, FORM, CI_FEW, CI_HALVES_U6_32, ci_halves_u6_32_tiles);
