/* The sequences of products whose speed is a level's peak, one step of one sum each. This header is the specification.
 * A level that multiplies bf16 in other instructions than two FMAs has its own peak_bf16. Integer products: dot.h has
 * the level's sequence as its kernels run it, with the loads; a level may give the bare one beside it (PEAK_INTS 1):
 *   vi16 peak_int4(vi16 sum, vi16 *w), vi16 peak_int8(vi16 sum, vi16 *w)
 * each 64 products and 64 sums of the bytes of w with themselves, in no order that anybody may rely on. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>
#include <peaks_bf16.h>

#define PEAK_INTS 0
#endif
