/* Q4_1: nibbles, with mins. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_N, .mins = 1, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(q4_1, CI_Q4_1, FORM, CI_MORE, CI_U4_MIN, ci_u4_min_tiles);
