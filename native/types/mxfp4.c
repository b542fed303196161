/* MXFP4: e2m1 numbers, scales that are powers of two. */
#include "unpacked.h"

#define FORM ((form){.codes = CODES_FP4, .offset = 12, .header = HEADER_E8M0})

CI_INT_FORMAT_UNPACKED(mxfp4, CI_MXFP4, FORM, CI_FEW, CI_U5_12, ci_u5_12_tiles);
