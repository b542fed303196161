/* Bare integer products: SDOT, for codes of 4 and 8 bits alike. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 1
#define PEAK_TILES 0

DOT_INLINE vi16 peak_int4(vi16 sum, vi16 *w) {
#pragma GCC unroll 4
    VF_QUARTERS {
        int8x16_t bytes = vreinterpretq_s8_s32(w->v[i]);
        sum.v[i] = vdotq_s32(sum.v[i], bytes, bytes);
    }
    return sum;
}
DOT_INLINE vi16 peak_int8(vi16 sum, vi16 *w) {
    return peak_int4(sum, w);
}
#endif
