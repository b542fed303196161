/* What attention works on: some queries of one sequence against one kv head, and who sees which keys.
 * A row is (query, head): row = query * group + head. Every row does the same operations whatever rows go with it. */
#ifndef CPUINFER_ATTENTION_STATE_H
#define CPUINFER_ATTENTION_STATE_H
#include "attention_tile.h"
#include "kernels.h"
#include "kv.h"

enum {
    /* Keys per online-softmax update, aligned to the position. 32 lose 3-8 % in prefill and 30 % in the decode of one
     * head (too few pages side by side to hide an FMA's latency); 128 win 2 % on long keys and lose 5 % on short. */
    ATTENTION_GROUP = 64,
    /* Keys per partial result: the unit in which the keys of a query are split over threads. Part of the result's
     * definition, so no setting. 256 keys of one kv head are 64 KB at head_dim 64 in f16: a few microseconds. */
    ATTENTION_CHUNK = 256,
    /* Rows done at a time against the keys of a group: their scores, queries and outputs of one step fit L1. */
    ATTENTION_BLOCK = 48,
    /* Rows that share one conversion of K and V to f32, at most, and the floats that each of their states takes. */
    ATTENTION_ROWS = 192,
    ATTENTION_STATE = ATTENTION_ROWS * 64,
    ATTENTION_PAGES = ATTENTION_GROUP / CI_PAGE,
    ATTENTION_SLICES = 16,  /* of V, handed to a tile at once; at least 4 */
    ATTENTION_ALL = 1 << 29 /* a window that hides no key */
};

/* Softmax state of rows: maximum, sum and unnormalised output [rows][padded]. */
typedef struct ci_partial {
    float *max;
    float *sum;
    float *out;
} ci_partial;

/* What a thread reads when it is done with some keys: n more pages, of a kv head. */
typedef struct ci_then {
    const int32_t *pages;
    int32_t n;
    int32_t kv_head;
} ci_then;

/* Consecutive queries of one sequence against one kv head, and the scratch memory to do them in. */
typedef struct ci_attend {
    const ci_kv *kv;
    const int32_t *pages; /* block table of the sequence */
    int32_t layer;
    int32_t kv_head;
    int32_t head_dim;
    int32_t padded;   /* head_dim rounded up to whole vf16 */
    int32_t group;    /* query heads per kv head */
    int32_t queries;  /* in this tile */
    int32_t position; /* of the first query */
    int32_t window;   /* keys that a query sees, its own included; ATTENTION_ALL: all up to its own */
    int32_t end;      /* keys from here on are not read by this thread next, but `then` */
    ci_then then;
    float scale;
    float softcap;  /* 0: none */
    float *q;       /* [rows][head_dim] */
    float *scores;  /* [rows of a block][ATTENTION_GROUP] */
    float *tops;    /* [rows of a block, in whole lines] */
    float *factors; /* the same */
    float *lanes;   /* [rows][16]: the sums, key = lane modulo 16 */
    float *k;       /* [ATTENTION_PAGES][head_dim][16] */
    float *v;       /* [padded / 16][ATTENTION_GROUP][16] */
} ci_attend;

/* A group of keys as the products read it. */
typedef struct ci_keys {
    int32_t start; /* position of the first */
    int32_t n;     /* that exist */
    int32_t pages;
    int32_t direct; /* 1: read from the pages; 0: from their f32 copies in ci_attend */
    const char *k[ATTENTION_PAGES];
    const char *v[ATTENTION_PAGES];
    const char *k_ahead[ATTENTION_PAGES]; /* direct: what follows, to prefetch */
    const char *v_ahead[ATTENTION_PAGES];
    const float *k_scales[ATTENTION_PAGES]; /* CI_I8 */
    const float *v_scales[ATTENTION_PAGES];
} ci_keys;

/* Queries first .. last-1. */
typedef struct ci_queries {
    int32_t first, last;
} ci_queries;

static inline int32_t attend_min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static inline int32_t attend_max(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* Those of the queries that see a key at positions from .. to. */
static inline ci_queries attend_seeing(const ci_attend *at, ci_queries of, int32_t from, int32_t to) {
    of.first = attend_max(of.first, from - at->position);
    of.last = attend_min(of.last, to - at->position + at->window);
    return of;
}

/* Those of the queries that see every key at positions from .. to. */
static inline ci_queries attend_seeing_all(const ci_attend *at, ci_queries of, int32_t from, int32_t to) {
    of.first = attend_min(attend_max(of.first, to - at->position), of.last);
    of.last = attend_max(attend_min(of.last, from - at->position + at->window), of.first);
    return of;
}

/* The first key of a chunk that queries from `position` on may see, in whole groups. */
static inline int32_t chunk_begin(int32_t chunk, int32_t position, int32_t window) {
    const int32_t seen = attend_max(position + 1 - window, 0);
    return attend_max(chunk * ATTENTION_CHUNK, seen / ATTENTION_GROUP * ATTENTION_GROUP);
}

/* The keys [*low, *high) of a group that a query sees. */
static inline void attend_visible(const ci_attend *at, int32_t start, int32_t query, int32_t *low, int32_t *high) {
    const int32_t own = at->position + query - start;
    *low = attend_max(own + 1 - at->window, 0);
    *high = attend_min(own + 1, ATTENTION_GROUP);
}
#endif
