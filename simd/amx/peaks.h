/* Bare integer products: TDPBSSD on whole tiles, for codes of 4 and 8 bits alike. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>
#include <tiles.h>

#define PEAK_INTS 0
#define PEAK_TILES 1

/* Of one repetition. */
enum { PEAK_TILE_PRODUCTS = 4 * 16 * 16 * 64 };

DOT_INLINE void peak_tiles(const uint8_t *bytes, int64_t repetitions) {
    static const tile_config config = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16},
    };
    _tile_loadconfig(&config);
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
    _tile_release();
}
#endif
