/* Bare integer products: VPDPBUSD, for codes of 4 and 8 bits alike. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 1
#define PEAK_TILES 0

DOT_INLINE vi16 peak_int4(vi16 sum, vi16 *w) {
    return (vi16){_mm256_dpbusd_avx_epi32(sum.lo, w->lo, w->lo), _mm256_dpbusd_avx_epi32(sum.hi, w->hi, w->hi)};
}
DOT_INLINE vi16 peak_int8(vi16 sum, vi16 *w) {
    return peak_int4(sum, w);
}
#endif
