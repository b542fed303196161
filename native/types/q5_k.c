/* Q5_K: 5 bits; 6-bit scales and mins. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_NB, .mins = 1, .header = HEADER_Q4_K})

CI_INT_FORMAT_UNPACKED(q5_k, CI_Q5_K, FORM, CI_FEW, CI_U5_MIN, ci_u5_min_tiles);
