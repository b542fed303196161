/* One register holds a vf16: the plain form again, not avx2's half by half. 6 rows of 4 columns are 24 sums beside 4
 * columns and a factor, of 32 registers, and take 10 loads for 24 FMAs where 6 of 2 take 8 for 12. */
#define ATTENTION_WIDTH(rows) 4
#include "../scalar/attention_step.h"
