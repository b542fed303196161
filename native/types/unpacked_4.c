/* Tiles of unpacked panels. */
#include "unpacked.h"

CI_INT_TILES(u4_8, CI_U4_8)
const ci_tiles ci_u4_8_tiles = CI_INT_TABLE(u4_8);
CI_INT_TILES(u4_min, CI_U4_MIN)
const ci_tiles ci_u4_min_tiles = CI_INT_TABLE(u4_min);
