/* Q5_1: 5 bits, with mins. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_NB, .mins = 1, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(q5_1, CI_Q5_1, FORM, CI_FEW, CI_U5_MIN, ci_u5_min_tiles);
