/* The weight types: one entry for each. */
#include "matmul.h"

extern const ci_format ci_f32_format, ci_f16_format, ci_bf16_format, ci_q8_0_format, ci_q4_0_format, ci_q4_1_format,
    ci_q5_0_format, ci_q5_1_format, ci_q2_k_format, ci_q3_k_format, ci_q4_k_format, ci_q5_k_format, ci_q6_k_format,
    ci_iq4_nl_format, ci_iq4_xs_format, ci_mxfp4_format;

static const ci_format *const formats[] = {
    &ci_f32_format,  &ci_f16_format,    &ci_bf16_format,   &ci_q8_0_format,  &ci_q4_0_format, &ci_q4_1_format,
    &ci_q5_0_format, &ci_q5_1_format,   &ci_q2_k_format,   &ci_q3_k_format,  &ci_q4_k_format, &ci_q5_k_format,
    &ci_q6_k_format, &ci_iq4_nl_format, &ci_iq4_xs_format, &ci_mxfp4_format,
};

const ci_format *ci_format_of(int32_t type) {
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (formats[i]->type == type)
            return formats[i];
    return NULL;
}
