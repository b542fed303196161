/* Bare integer products: TDPBSSD on tiles as tiles.h sets them up, for codes of 4 and 8 bits alike. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>
#include <tiles.h>

#define PEAK_INTS 0
#define PEAK_TILES 1

/* Of one repetition. */
enum { PEAK_TILE_PRODUCTS = 4 * TILE_MR * 16 * 32 };

DOT_INLINE void peak_tiles(const uint8_t *bytes, int64_t repetitions) {
    tiles_begin();
    _tile_loadd(4, bytes, 0);
    _tile_loadd(5, bytes, 0);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t r = 0; r < repetitions; r++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    tiles_end();
}
#endif
