/* Bare integer products: VPMADDUBSW and VPADDW; for 8 bits with the sign moved over first, and widened at once. */
#ifndef CPUINFER_PEAKS_H
#define CPUINFER_PEAKS_H
#include <dot.h>

#define PEAK_INTS 1
#define PEAK_TILES 0

/* dot_pin: or the compiler would find that the product is always the same. */
DOT_INLINE vi16 peak_int4(vi16 sum, vi16 *w) {
    dot_pin(w);
    vi16 product = {_mm256_maddubs_epi16(w->lo, w->lo), _mm256_maddubs_epi16(w->hi, w->hi)};
    return (vi16){_mm256_add_epi16(sum.lo, product.lo), _mm256_add_epi16(sum.hi, product.hi)};
}
DOT_INLINE vi16 peak_int8(vi16 sum, vi16 *w) {
    dot_pin(w);
    vi16 signs = {_mm256_sign_epi8(w->lo, w->hi), _mm256_sign_epi8(w->hi, w->lo)};
    vi16 product = {_mm256_maddubs_epi16(w->lo, signs.lo), _mm256_maddubs_epi16(w->hi, signs.hi)};
    product = (vi16){_mm256_madd_epi16(product.lo, w->hi), _mm256_madd_epi16(product.hi, w->lo)};
    return (vi16){_mm256_add_epi32(sum.lo, product.lo), _mm256_add_epi32(sum.hi, product.hi)};
}
#endif
