/* Addresses in the KV pages and stores into them. */
#ifndef CPUINFER_KV_H
#define CPUINFER_KV_H
#include <vec.h>

#include "kernels.h"

enum { CI_PAGE = 16 }; /* tokens in a page: the lanes of a vf16 */

static inline int32_t kv_itemsize(const ci_kv *kv) {
    return kv->type == CI_F32 ? 4 : 2;
}
/* K of one head in a page: [head_dim][16]. */
static inline char *kv_k(const ci_kv *kv, int32_t layer, int32_t page, int32_t head, int32_t head_dim) {
    return (char *)kv->data + kv->layer_bytes * layer + kv->page_bytes * page +
           (int64_t)head * head_dim * CI_PAGE * kv_itemsize(kv);
}
/* V of one head in a page: [16][head_dim]. */
static inline char *kv_v(const ci_kv *kv, int32_t layer, int32_t page, int32_t head, int32_t head_dim) {
    return kv_k(kv, layer, page, head, head_dim) + kv->k_bytes;
}
/* Store n <= 16 consecutive head dimensions d .. d+n-1 of one token (lane of its page) into K. */
static inline void kv_store_k(const ci_kv *kv, char *k_head, int32_t d, int32_t lane, vf16 x, int32_t n) {
    float lanes[VF_LANES];
    uint16_t halves[VF_LANES];
    if (kv->type == CI_F32) {
        vf_store(lanes, x);
        for (int32_t i = 0; i < n; i++)
            ((float *)(void *)k_head)[(d + i) * CI_PAGE + lane] = lanes[i];
        return;
    }
    if (kv->type == CI_F16)
        vf_store_f16(halves, x);
    else
        vf_store_bf16(halves, x);
    for (int32_t i = 0; i < n; i++)
        ((uint16_t *)(void *)k_head)[(d + i) * CI_PAGE + lane] = halves[i];
}
/* The same into V. */
static inline void kv_store_v(const ci_kv *kv, char *v_head, int32_t d, int32_t lane, int32_t head_dim, vf16 x,
                              int32_t n) {
    uint16_t halves[VF_LANES];
    int64_t at = (int64_t)lane * head_dim + d;
    if (kv->type == CI_F32) {
        vf_store_n((float *)(void *)v_head + at, x, n);
        return;
    }
    if (kv->type == CI_F16)
        vf_store_f16(halves, x);
    else
        vf_store_bf16(halves, x);
    memcpy((uint16_t *)(void *)v_head + at, halves, (size_t)n * 2);
}
#endif
