/* The rotation of RoPE, for the op and for the epilogue of the fused matrix product. */
#ifndef CPUINFER_ROPE_H
#define CPUINFER_ROPE_H
#include <vec.h>

/* x holds adjacent pairs; c is each pair's cosine twice, s its sine as (-sin, +sin): x * c, then one FMA. */
static inline vf16 rope_rotate(vf16 x, vf16 c, vf16 s) {
    return vf_fma(vf_swap_pairs(x), s, vf_mul(x, c));
}
#endif
