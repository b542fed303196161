/* Bare sequences of integer products, whose speed is a level's peak: without the loads that dot.h, which has them as
 * kernels run them, cannot do without. A level may have them (PEAK_INTS 1):
 *   vi16 peak_int4(vi16 sum, vi16 *w), vi16 peak_int8(vi16 sum, vi16 *w)
 * Each is 64 products and 64 sums of the bytes of w with themselves, in no order that anybody may rely on. A level with
 * a matrix unit has instead (PEAK_TILES 1)
 *   void peak_tiles(const uint8_t *bytes, int64_t repetitions)
 * whose repetition is PEAK_TILE_PRODUCTS products, and their sums, of the 64 bytes. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 0
#define PEAK_TILES 0
#endif
