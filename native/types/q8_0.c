/* Q8_0: 8 bits. */
#include "../matmul_int.h"

#define FORM ((form){.codes = CODES_U8, .offset = 128, .header = HEADER_F16})

CI_INT_FORMAT(q8_0, CI_Q8_0, FORM);
