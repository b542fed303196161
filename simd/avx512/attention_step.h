/* One register holds a vf16: the plain form again, not avx2's half by half. */
#include "../scalar/attention_step.h"
