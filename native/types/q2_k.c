/* Q2_K: 2 bits; 4-bit scales and mins of halves. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_T, .mins = 1, .halves = 1, .header = HEADER_Q2_K})

CI_INT_FORMAT_UNPACKED(q2_k, CI_Q2_K, FORM, CI_FEW, CI_HALVES_U4_MIN, ci_halves_u4_min_tiles);
