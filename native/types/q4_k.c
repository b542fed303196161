/* Q4_K: nibbles; 6-bit scales and mins. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_N, .mins = 1, .header = HEADER_Q4_K})

CI_INT_FORMAT_UNPACKED(q4_k, CI_Q4_K, FORM, CI_FEW, CI_U4_MIN, ci_u4_min_tiles);
