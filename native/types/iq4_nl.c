/* IQ4_NL: nibbles, indices of a table. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_IQ4, .offset = 128, .header = HEADER_F16})

CI_INT_FORMAT_UNPACKED(iq4_nl, CI_IQ4_NL, FORM, CI_MORE, CI_U8_128, ci_u8_128_tiles);
