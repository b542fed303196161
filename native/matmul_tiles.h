/* Products of many tokens by a matrix unit (tiles.h): what panels are unpacked to for it, and the sweeps over them. */
#ifndef CPUINFER_MATMUL_TILES_H
#define CPUINFER_MATMUL_TILES_H
#include <tiles.h>

#include "block_scales.h"
#include "matmul.h"

/* A block of 32 k as it is unpacked: [16] f32 scales (or d), then [16] f32 mins (or -dmin) and with halves [16][2]
 * int16 mins where the type has mins, then its codes as signed bytes with their offset taken off. Integer scales of
 * halves are multiplied into the codes. Where that does not fit a byte there are two parts: what is above 7 bits, and
 * those. The dot of a block is then 128 times the one's plus the other's, the same integer. */
DOT_INLINE int tile_parts(const form f) {
    return f.halves && f.header != HEADER_Q2_K ? 2 : 1; /* Q2_K: at most 3 * 15 */
}
DOT_INLINE int32_t tile_header_bytes(const form f) {
    return 64 * (1 + f.mins + (f.mins && f.halves));
}
DOT_INLINE int32_t tile_block_bytes(const form f) {
    return tile_header_bytes(f) + 512 * tile_parts(f);
}
DOT_INLINE int64_t tile_panel_bytes(const form f, int32_t k) {
    return (int64_t)k / 32 * tile_block_bytes(f);
}

DOT_INLINE void tile_unpack(const form f, uint8_t *out, const uint8_t *panel, int32_t k) {
    for (int32_t block = 0; block < k / 32; block++, out += tile_block_bytes(f)) {
        const uint8_t *header = tile_of(f, panel, block), *codes = codes_of(f, header, block);
        const int i = block % tile_blocks(f);
        int16_t room[2 * CI_ROWS];
        int8_t *bytes = (int8_t *)out + tile_header_bytes(f);
        fetch_ahead(f, codes);
        vf_store((float *)(void *)out, block_scale(f, header, i));
        if (f.mins)
            vf_store((float *)(void *)(out + 64), block_min(f, header, i));
        if (f.mins && f.halves)
            memcpy(out + 128, block_min_pairs(f, header, i, room), sizeof room);
        const int16_t *pairs = f.halves ? block_pairs(f, header, i, room) : NULL;
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++) {
            const vc16 chunk = codes_chunk(f.codes, codes, c);
            int8_t *at = bytes + 64 * c;
            if (f.halves)
                tile_scaled(at, tile_parts(f) == 2 ? at + 512 : NULL, chunk, f.offset, pairs, c / 4);
            else
                tile_codes(at, chunk, f.offset);
        }
    }
}

/* Sweeps by what a block has: a scale; a min as well; integer mins of halves; two parts. */
extern ci_sweep_fn ci_sweep_scale, ci_sweep_min, ci_sweep_min_pairs, ci_sweep_parts;

DOT_INLINE ci_sweep_fn *tile_sweep(const form f) {
    if (tile_parts(f) == 2)
        return ci_sweep_parts;
    return f.mins && f.halves ? ci_sweep_min_pairs : f.mins ? ci_sweep_min : ci_sweep_scale;
}
#endif
