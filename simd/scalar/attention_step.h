/* One step along the depth of an attention tile: sum[r][x] = fma(a[r], b[x], sum[r][x]) for `rows` rows and `width`
 * vf16 columns. rows, width and type are constants where this is inlined. */
#ifndef CPUINFER_ATTENTION_STEP_H
#define CPUINFER_ATTENTION_STEP_H
#include <vec.h>

#include "kernels.h"

/* Columns (vf16) that a tile of `rows` rows takes at a time, at most 4: few rows take more, for 8 sums in flight. */
#ifndef ATTENTION_WIDTH
#define ATTENTION_WIDTH(rows) \
    ((rows) == 1 || (rows) * 4 <= VF_GEMM_MR ? 4 : (rows) == 2 || (rows) * 2 <= VF_GEMM_MR ? 2 : 1)
#endif

#define ATTENTION_INLINE static inline __attribute__((always_inline))

/* 16 elements of a KV type (CI_F32, CI_F16, CI_BF16, or the codes of CI_I8) from element i on. */
ATTENTION_INLINE vf16 attention_load(const char *p, int64_t i, const int32_t type) {
    if (type == CI_F32)
        return vf_load((const float *)(const void *)p + i);
    if (type == CI_I8)
        return vf_load_i8((const int8_t *)p + i);
    const uint16_t *halves = (const uint16_t *)(const void *)p + i;
    return type == CI_F16 ? vf_load_f16(halves) : vf_load_bf16(halves);
}

ATTENTION_INLINE void attention_step(vf16 *sum, const float *a, int64_t a_stride, const char *const *b, int64_t i,
                                     const int rows, const int width, const int32_t type) {
    vf16 column[4];
#pragma GCC unroll 4
    for (int x = 0; x < width; x++)
        column[x] = attention_load(b[x], i, type);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vf16 factor = vf_set1(a[r * a_stride]);
#pragma GCC unroll 4
        for (int x = 0; x < width; x++)
            sum[r * width + x] = vf_fma(factor, column[x], sum[r * width + x]);
    }
}
#endif
