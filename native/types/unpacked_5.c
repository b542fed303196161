/* Tiles of unpacked panels. */
#include "unpacked.h"

CI_INT_TILES(u5_12, CI_U5_12)
const ci_tiles ci_u5_12_tiles = CI_INT_TABLE(u5_12);
CI_INT_TILES(u5_16, CI_U5_16)
const ci_tiles ci_u5_16_tiles = CI_INT_TABLE(u5_16);
CI_INT_TILES(u5_min, CI_U5_MIN)
const ci_tiles ci_u5_min_tiles = CI_INT_TABLE(u5_min);
