/* Tiles of unpacked panels. */
#include "unpacked.h"

CI_INT_TILES(u8_128, CI_U8_128)
const ci_tiles ci_u8_128_tiles = CI_INT_TABLE(u8_128);
