/* How a batch is cut into tiles of queries, and where their memory lies. */
#ifndef CPUINFER_ATTENTION_WALK_H
#define CPUINFER_ATTENTION_WALK_H
#include "attention_chunk.h"
#include "quantize.h"

enum {
    /* A tile is split by chunks where it costs more than 1 / (4 n) of the whole: then no thread waits for more than a
     * quarter of its share. */
    ATTENTION_SHARES = 4,
    /* Tiles are made smaller until each thread has about so many items. */
    ATTENTION_ITEMS = 4,
    /* A split tile has at most so many items for each thread: neighbouring chunks stay together, so that each finds its
     * pages prefetched. */
    ATTENTION_RUNS = 8,
    /* Bound on the partial results of a step, per thread. A tile that finds no room is not split. */
    ATTENTION_PARTIAL_BYTES = 4 << 20
};

typedef struct ci_shape {
    int32_t group;   /* query heads per kv head */
    int32_t padded;  /* head_dim in whole vf16 */
    int32_t queries; /* in a full tile */
    int32_t rows;    /* in a full tile */
    int32_t span;    /* kv heads of one work item: their outputs are whole blocks of CI_BLOCK */
    int32_t spans;
    int32_t window; /* as ci_attend's */
} ci_shape;

/* Some queries of one sequence. Work items of a tile: its spans of kv heads, times its runs of chunks where it is
 * split. */
typedef struct ci_query_tile {
    int32_t seq;
    int32_t token; /* of the first query */
    int32_t queries;
    int32_t position;    /* of the first query */
    int32_t first_chunk; /* that a query sees */
    int32_t end_chunk;
    int32_t run;      /* chunks of an item */
    int64_t partials; /* where its partial results start in the shared area, in floats; -1: not split */
} ci_query_tile;

/* Goes through the tiles of a batch, last first (later queries have more keys, so the long items start early). */
typedef struct ci_walk {
    const ci_op *op;
    const ci_step *step;
    ci_shape shape;
    int64_t cost;     /* of all tiles, in query-key pairs */
    int64_t partials; /* floats of the shared area given out so far */
    ci_query_tile tile;
} ci_walk;

/* n_tokens, n_threads: of the step, for tiles no larger than what keeps the team busy; 1 thread: the largest tiles. */
static ci_shape attention_shape(const ci_op *op, int32_t n_tokens, int32_t n_threads) {
    ci_shape s;
    s.group = op->heads / op->kv_heads;
    s.padded = (op->head_dim + VF_LANES - 1) / VF_LANES * VF_LANES;
    s.queries = attend_max(attend_min(ATTENTION_ROWS, ATTENTION_STATE / s.padded) / s.group, 1);
    s.window = op->window > 0 && op->window < ATTENTION_ALL ? op->window : ATTENTION_ALL;
    s.span = 1;
    while (s.span < op->kv_heads && (op->kv_heads % s.span != 0 || s.span * s.group * op->head_dim % CI_BLOCK != 0))
        s.span++;
    s.spans = op->kv_heads / s.span;
    while (n_threads > 1 && s.queries > 1 &&
           (int64_t)n_tokens * s.spans < (int64_t)s.queries * ATTENTION_ITEMS * n_threads)
        s.queries /= 2;
    s.rows = s.queries * s.group;
    return s;
}

static int64_t whole_lines(int64_t floats) {
    return (floats + 15) / 16 * 16;
}

/* Floats of the partial result of one chunk: maxima and sums, then outputs. */
static int64_t partial_floats(int64_t rows, int32_t padded) {
    return whole_lines(2 * rows) + rows * padded;
}

static ci_partial partial_at(float *at, int64_t rows) {
    return (ci_partial){at, at + rows, at + whole_lines(2 * rows)};
}

static int32_t first_chunk(int32_t position, int32_t window) {
    return attend_max(position + 1 - window, 0) / ATTENTION_CHUNK;
}

static int64_t tile_cost(const ci_query_tile *tile, int32_t window) {
    return (int64_t)tile->queries * (attend_min(tile->position, window) + tile->queries);
}

/* Room for the partial results of a tile that is worth splitting. */
static void walk_split(ci_walk *walk) {
    ci_query_tile *tile = &walk->tile;
    const int32_t threads = walk->step->team.n, chunks = tile->end_chunk - tile->first_chunk;
    if (threads < 2 || chunks < 2 || tile_cost(tile, walk->shape.window) * ATTENTION_SHARES * threads <= walk->cost)
        return;
    const int64_t floats =
        partial_floats((int64_t)tile->queries * walk->shape.group, walk->shape.padded) * chunks * walk->op->kv_heads;
    if ((walk->partials + floats) * (int64_t)sizeof(float) > (int64_t)threads * ATTENTION_PARTIAL_BYTES)
        return;
    tile->partials = walk->partials;
    tile->run = attend_max(1, chunks * walk->shape.spans / (ATTENTION_RUNS * threads));
    walk->partials += floats;
}

/* To the next tile; 0 where there is none. */
static int32_t walk_next(ci_walk *walk) {
    const ci_batch *batch = walk->step->batch;
    ci_query_tile *tile = &walk->tile;
    while (tile->token == batch->q_indptr[tile->seq]) {
        if (tile->seq == 0)
            return 0;
        tile->seq--;
        tile->token = batch->q_indptr[tile->seq + 1];
    }
    const int32_t first = batch->q_indptr[tile->seq], before = tile->token - first;
    const int32_t begin = (before - 1) / walk->shape.queries * walk->shape.queries;
    tile->token = first + begin;
    tile->queries = before - begin;
    tile->position = batch->positions[tile->token];
    tile->first_chunk = first_chunk(tile->position, walk->shape.window);
    tile->end_chunk = (tile->position + tile->queries + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
    tile->run = tile->end_chunk - tile->first_chunk;
    tile->partials = -1;
    walk_split(walk);
    return 1;
}

static ci_walk walk_start(const ci_op *op, const ci_step *step, int64_t cost) {
    const ci_batch *batch = step->batch;
    return (ci_walk){.op = op,
                     .step = step,
                     .shape = attention_shape(op, batch->n_tokens, step->team.n),
                     .cost = cost,
                     .tile = {.seq = batch->n_seqs - 1, .token = batch->q_indptr[batch->n_seqs]}};
}

/* Cost of the batch per span of kv heads, times spans: the same for every thread. */
static int64_t attention_cost(const ci_op *op, const ci_step *step) {
    ci_walk walk = walk_start(op, step, INT64_MAX);
    int64_t cost = 0;
    while (walk_next(&walk))
        cost += tile_cost(&walk.tile, walk.shape.window);
    return cost * walk.shape.spans;
}

static ci_partial shared_partial(const ci_walk *walk, int32_t kv_head, int32_t chunk) {
    const ci_query_tile *tile = &walk->tile;
    const int64_t rows = (int64_t)tile->queries * walk->shape.group, chunks = tile->end_chunk - tile->first_chunk;
    float *at = (float *)(void *)walk->step->shared_area + tile->partials +
                partial_floats(rows, walk->shape.padded) * (kv_head * chunks + chunk - tile->first_chunk);
    return partial_at(at, rows);
}
#endif
