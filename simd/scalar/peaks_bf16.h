/* acc += w_odd * x_odd, then w_even * x_even, for 16 pairs of bf16: 4 operations a lane. */
#ifndef CPUINFER_PEAKS_BF16_H
#define CPUINFER_PEAKS_BF16_H
#include <vec.h>

/* 16 pairs as a kernel holds them. */
typedef struct {
    vf16 even, odd;
} peak_pairs;

static inline peak_pairs peak_load_pairs(const uint16_t *p) {
    peak_pairs w;
    vf_load_bf16_pairs(p, &w.even, &w.odd);
    return w;
}
static inline vf16 peak_bf16(vf16 acc, peak_pairs w, peak_pairs x) {
    return vf_fma(w.even, x.even, vf_fma(w.odd, x.odd, acc));
}
#endif
