/* Q4_0: nibbles - 8. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_N, .offset = 8, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(q4_0, CI_Q4_0, FORM, CI_MORE, CI_U4_8, ci_u4_8_tiles);
