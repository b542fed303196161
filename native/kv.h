/* Addresses in the KV pages and stores into them. */
#ifndef CPUINFER_KV_H
#define CPUINFER_KV_H
#include <vec.h>

#include "kernels.h"
#include "quantize.h"

enum { CI_PAGE = 16 }; /* tokens in a page: the lanes of a vf16 */

static inline int32_t kv_itemsize(int32_t type) {
    return type == CI_F32 ? 4 : type == CI_I8 ? 1 : 2;
}

/* Keys and values of one head in a page. */
static inline char *kv_part(const ci_kv *kv, int32_t layer, int32_t page, int32_t head) {
    return (char *)kv->data + kv->layer_bytes * layer + kv->head_bytes * head + kv->page_bytes * page;
}

/* K of one head in a page: [head_dim][16]. */
static inline char *kv_k(const ci_kv *kv, int32_t layer, int32_t page, int32_t head) {
    return kv_part(kv, layer, page, head);
}

/* V of one head in a page: [16][head_dim]. */
static inline char *kv_v(const ci_kv *kv, int32_t layer, int32_t page, int32_t head) {
    return kv_part(kv, layer, page, head) + kv->k_bytes;
}

/* Scales of one head in a page of CI_I8: [2][16], those of K, then those of V. */
static inline float *kv_scales(const ci_kv *kv, int32_t layer, int32_t page, int32_t head) {
    return (float *)(void *)(kv_part(kv, layer, page, head) + 2 * kv->k_bytes);
}

/* Dimensions d .. d+n-1 (n <= 16) of a key or value, `stride` elements apart, in a type other than CI_I8. */
static inline void kv_store_part(char *to, int32_t type, int64_t stride, vf16 x, int32_t n) {
    float lanes[VF_LANES];
    uint16_t halves[VF_LANES];
    if (type == CI_F32) {
        vf_store(lanes, x);
        for (int32_t i = 0; i < n; i++)
            ((float *)(void *)to)[i * stride] = lanes[i];
        return;
    }
    if (type == CI_F16)
        vf_store_f16(halves, x);
    else
        vf_store_bf16(halves, x);
    if (stride == 1)
        memcpy(to, halves, (size_t)n * sizeof *halves);
    else
        for (int32_t i = 0; i < n; i++)
            ((uint16_t *)(void *)to)[i * stride] = halves[i];
}

static inline vf16 kv_load_part(const float *x, int32_t n) {
    return n < VF_LANES ? vf_load_n(x, n) : vf_load(x);
}

/* A whole key or value x [head_dim] as int8, elements `stride` apart, and its scale. A head whose amax is below
 * CI_Q8_MIN is zero, as a block of activations is. */
static inline void kv_store_i8(int8_t *to, float *scale, int64_t stride, const float *x, int32_t head_dim) {
    vf16 most = vf_zero();
    for (int32_t d = 0; d < head_dim; d += VF_LANES)
        most = vf_max(most, vf_abs(kv_load_part(x + d, head_dim - d)));
    const float amax = vf_hmax(most);
    const int zero = amax < CI_Q8_MIN;
    const vf16 inverse = vf_set1(zero ? 0.0f : 127.0f / amax);
    for (int32_t d = 0; d < head_dim; d += VF_LANES) {
        int8_t codes[VF_LANES];
        vf_store_i8(codes, vf_mul(kv_load_part(x + d, head_dim - d), inverse));
        for (int32_t i = 0; i < VF_LANES && d + i < head_dim; i++)
            to[(d + i) * stride] = codes[i];
    }
    *scale = zero ? 0.0f : amax / 127.0f;
}

/* Where a token's key (segment 1) or value (segment 2) of one head goes. */
typedef struct ci_slot {
    char *at;       /* its dimension 0 */
    int64_t stride; /* elements from one dimension to the next */
    float *scale;   /* of CI_I8 */
} ci_slot;

static inline ci_slot kv_slot(const ci_kv *kv, int32_t layer, int32_t page, int32_t head, int32_t head_dim,
                              int32_t lane, int32_t is_value) {
    const int32_t itemsize = kv_itemsize(kv->type);
    ci_slot slot = {kv_k(kv, layer, page, head) + lane * itemsize, CI_PAGE, NULL};
    if (is_value)
        slot = (ci_slot){kv_v(kv, layer, page, head) + (int64_t)lane * head_dim * itemsize, 1, NULL};
    if (kv->type == CI_I8)
        slot.scale = kv_scales(kv, layer, page, head) + is_value * CI_PAGE + lane;
    return slot;
}

/* A whole key or value x [head_dim] into its slot. */
static inline void kv_store(const ci_slot *slot, int32_t type, const float *x, int32_t head_dim) {
    if (type == CI_I8) {
        kv_store_i8((int8_t *)slot->at, slot->scale, slot->stride, x, head_dim);
        return;
    }
    for (int32_t d = 0; d < head_dim; d += VF_LANES) {
        const int32_t n = head_dim - d < VF_LANES ? head_dim - d : VF_LANES;
        kv_store_part(slot->at + d * slot->stride * kv_itemsize(type), type, slot->stride,
                      kv_load_part(x + d, head_dim - d), n);
    }
}
#endif
