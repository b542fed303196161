/* IQ4_XS: nibbles, indices of a table; 6-bit scales. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_IQ4, .offset = 128, .header = HEADER_IQ4_XS})

CI_INT_FORMAT_UNPACKED(iq4_xs, CI_IQ4_XS, FORM, CI_FEW, CI_U8_128, ci_u8_128_tiles);
