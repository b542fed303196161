/* Bare integer products: USMMLA, for codes of 4 and 8 bits alike. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 1
#define PEAK_TILES 0

/* 32 products each. */
DOT_INLINE vi16 peak_int4(vi16 sum, vi16 *w) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        sum.v[i] = vusmmlaq_s32(sum.v[i], vreinterpretq_u8_s32(w->v[i]), vreinterpretq_s8_s32(w->v[i]));
    return sum;
}
DOT_INLINE vi16 peak_int8(vi16 sum, vi16 *w) {
    return peak_int4(sum, w);
}
#endif
