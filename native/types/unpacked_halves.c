/* Tiles of unpacked panels. */
#include "unpacked.h"

CI_INT_TILES(halves_u4_4, CI_HALVES_U4_4)
const ci_tiles ci_halves_u4_4_tiles = CI_INT_TABLE(halves_u4_4);
CI_INT_TILES(halves_u4_min, CI_HALVES_U4_MIN)
const ci_tiles ci_halves_u4_min_tiles = CI_INT_TABLE(halves_u4_min);
CI_INT_TILES(halves_u6_32, CI_HALVES_U6_32)
const ci_tiles ci_halves_u6_32_tiles = CI_INT_TABLE(halves_u6_32);
