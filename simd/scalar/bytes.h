/* vc16: the bytes of one chunk, 16 rows x 4 k. This header is the specification: another level gives the same bytes
 * its own way. Shifts, masks and tables are constants where these are inlined. */
#ifndef CPUINFER_BYTES_H
#define CPUINFER_BYTES_H
#include <dot_rows.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t v[64];
} vc16;

#define VC_EACH for (int i = 0; i < 64; i++)

DOT_INLINE vc16 vc_load(const uint8_t *p) {
    vc16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
DOT_INLINE void vc_store(uint8_t *p, vc16 a) {
    memcpy(p, a.v, sizeof a.v);
}
DOT_INLINE vc16 vc_or(vc16 a, vc16 b) {
    VC_EACH a.v[i] |= b.v[i];
    return a;
}
DOT_INLINE vc16 vc_xor1(vc16 a, uint8_t byte) {
    VC_EACH a.v[i] ^= byte;
    return a;
}
/* (a >> right) & mask per byte; a << -right where right is negative. mask has none of the bits that the shift empties:
 * a level may shift wider elements. */
DOT_INLINE vc16 vc_shift_and(vc16 a, int right, uint8_t mask) {
    VC_EACH a.v[i] = (uint8_t)((right < 0 ? a.v[i] << -right : a.v[i] >> right) & mask);
    return a;
}
/* table[a] per byte; a < 16. */
DOT_INLINE vc16 vc_lookup(vc16 a, const uint8_t *table) {
    VC_EACH a.v[i] = table[a.v[i]];
    return a;
}

/* out[2r] = a[r] + bias, out[2r + 1] = b[r] + bias for 16 rows. */
DOT_INLINE void bytes_beside(int16_t *out, const uint8_t *a, const uint8_t *b, int bias) {
    for (int r = 0; r < 16; r++) {
        out[2 * r] = (int16_t)(a[r] + bias);
        out[2 * r + 1] = (int16_t)(b[r] + bias);
    }
}
#endif
