/* Q3_K: 3 bits - 4; 6-bit scales of halves. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_TB, .offset = 4, .halves = 1, .header = HEADER_Q3_K})

CI_INT_FORMAT_UNPACKED(q3_k, CI_Q3_K, FORM, CI_FEW, CI_HALVES_U4_4, ci_halves_u4_4_tiles);
