/* A vf16 is four registers: 3 rows x 2 columns would need 24 sums, 8 for the columns and one for the factor, of 32. */
#define ATTENTION_WIDTH(rows) ((rows) <= 2 ? 2 : 1)
#include "../scalar/attention_step.h"
