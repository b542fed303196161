/* Q8_0: 8 bits. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_U8, .offset = 128, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(q8_0, CI_Q8_0, FORM, CI_NEVER, CI_U8_128, ci_u8_128_tiles);
