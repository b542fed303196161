/* Bare integer products: VPMADDUBSW and VPADDW; for 8 bits with the sign moved over first, and widened at once. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 1
#define PEAK_TILES 0

/* dot_pin: or the compiler would find that the product is always the same. */
DOT_INLINE vi16 peak_int4(vi16 sum, vi16 *w) {
    dot_pin(w);
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(*w, *w));
}
DOT_INLINE vi16 peak_int8(vi16 sum, vi16 *w) {
    dot_pin(w);
    const __m512i signs = _mm512_mask_sub_epi8(*w, _mm512_movepi8_mask(*w), _mm512_setzero_si512(), *w);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(*w, signs), *w));
}
#endif
