/* As scalar/attention_step.h, ymm by ymm. A tile of 3 x 2 has 12 sums: with 3 factors and one column at a time it just
 * fits 16 registers, where whole vf16 columns spill a sum in every step (decode of 3 heads per kv head: half the rate).
 */
#ifndef CPUINFER_ATTENTION_STEP_H
#define CPUINFER_ATTENTION_STEP_H
#include <vec.h>

#include "kernels.h"

#define ATTENTION_WIDTH(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)

#define ATTENTION_INLINE static inline __attribute__((always_inline))

ATTENTION_INLINE __m256 attention_load_half(const char *p, int64_t i, const int32_t type) {
    if (type == CI_F32)
        return _mm256_loadu_ps((const float *)(const void *)p + i);
    if (type == CI_I8)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + i))));
    const __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i));
    return type == CI_F16 ? _mm256_cvtph_ps(halves) : vf_widen_bf16(halves);
}

ATTENTION_INLINE vf16 attention_load(const char *p, int64_t i, const int32_t type) {
    return (vf16){attention_load_half(p, i, type), attention_load_half(p, i + 8, type)};
}

ATTENTION_INLINE void attention_step(vf16 *sum, const float *a, int64_t a_stride, const char *const *b, int64_t i,
                                     const int rows, const int width, const int32_t type) {
    if (rows > 3) { /* the column stays, the factors pass */
        const vf16 column = attention_load(b[0], i, type);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            sum[r] = vf_fma(vf_set1(a[r * a_stride]), column, sum[r]);
        return;
    }
    __m256 factor[3];
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
        factor[r] = _mm256_broadcast_ss(a + r * a_stride);
#pragma GCC unroll 4
    for (int x = 0; x < width; x++) {
        const __m256 lo = attention_load_half(b[x], i, type);
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
            sum[r * width + x].lo = _mm256_fmadd_ps(factor[r], lo, sum[r * width + x].lo);
        const __m256 hi = attention_load_half(b[x], i + 8, type);
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
            sum[r * width + x].hi = _mm256_fmadd_ps(factor[r], hi, sum[r * width + x].hi);
    }
}
#endif
