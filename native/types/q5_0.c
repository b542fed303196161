/* Q5_0: 5 bits - 16. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_NB, .offset = 16, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(q5_0, CI_Q5_0, FORM, CI_FEW, CI_U5_16, ci_u5_16_tiles);
