/* Causal attention over paged keys and values: how a batch is cut into work. What is computed: attention_chunk.h. */
#include "attention_chunk.h"
#include "quantize.h"

enum {
    /* A tile is split by chunks where it costs more than 1 / (4 n) of the whole: then no thread waits for more than a
     * quarter of its share. */
    ATTENTION_SHARES = 4,
    /* Tiles are made smaller until each thread has about so many items. */
    ATTENTION_ITEMS = 4,
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
} ci_shape;

/* Some queries of one sequence. Work items of a tile: its spans of kv heads, times its chunks where it is split. */
typedef struct ci_query_tile {
    int32_t seq;
    int32_t token; /* of the first query */
    int32_t queries;
    int32_t position; /* of the first query */
    int32_t chunks;
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

typedef struct ci_scratch {
    ci_attend attend;
    float *running; /* partial results of a span's kv heads */
    ci_partial next;
    float *row; /* [span * group * head_dim] finished outputs of one query */
} ci_scratch;

/* n_tokens, n_threads: of the step, for tiles no larger than what keeps the team busy; 1 thread: the largest tiles. */
static ci_shape attention_shape(const ci_op *op, int32_t n_tokens, int32_t n_threads) {
    ci_shape s;
    s.group = op->heads / op->kv_heads;
    s.padded = (op->head_dim + VF_LANES - 1) / VF_LANES * VF_LANES;
    s.queries = s.group < ATTENTION_ROWS ? ATTENTION_ROWS / s.group : 1;
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

/* Sets up the scratch in the thread's area (or only measures it, area null) and returns its floats. */
static int64_t attention_scratch(const ci_op *op, const ci_shape *shape, float *area, ci_scratch *scratch) {
    const int64_t rows = shape->rows, state = partial_floats(rows, shape->padded);
    const int64_t sizes[] = {
        whole_lines(rows * op->head_dim),
        rows * ATTENTION_GROUP,
        rows * VF_LANES,
        (int64_t)ATTENTION_PAGES * CI_PAGE * op->head_dim,
        (int64_t)ATTENTION_GROUP * shape->padded,
        state * shape->span,
        state,
        ((int64_t)shape->span * shape->group * op->head_dim + CI_BLOCK) / CI_BLOCK * CI_BLOCK,
    };
    int64_t at[9] = {0};
    for (int32_t i = 0; i < 8; i++)
        at[i + 1] = at[i] + sizes[i];
    if (area) {
        ci_attend *a = &scratch->attend;
        a->q = area + at[0];
        a->scores = area + at[1];
        a->lanes = area + at[2];
        a->k = area + at[3];
        a->v = area + at[4];
        scratch->running = area + at[5];
        scratch->next = partial_at(area + at[6], rows);
        scratch->row = area + at[7];
    }
    return at[8];
}

int64_t ci_attention_thread_bytes(const ci_op *op, int32_t max_tokens) {
    (void)max_tokens;
    ci_shape shape = attention_shape(op, 0, 1);
    return attention_scratch(op, &shape, NULL, NULL) * (int64_t)sizeof(float);
}

int64_t ci_attention_shared_bytes(const ci_op *op, int32_t n_threads, int32_t max_tokens, int32_t max_context) {
    const int64_t chunks = ((int64_t)max_context + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
    const int64_t limit = (int64_t)n_threads * ATTENTION_PARTIAL_BYTES;
    /* One row a tile takes the most: partial_floats(1) for each. */
    const int64_t row = partial_floats(1, attention_shape(op, 0, 1).padded) * (int64_t)sizeof(float);
    if (n_threads == 1 || chunks < 2)
        return 0;
    const int64_t all = row * op->heads * max_tokens;
    return all > limit / chunks ? limit : all * chunks;
}

static int64_t tile_cost(const ci_query_tile *tile) {
    return (int64_t)tile->queries * (tile->position + tile->queries);
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
    tile->chunks = (tile->position + tile->queries + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
    tile->partials = -1;
    const int32_t threads = walk->step->team.n;
    if (threads > 1 && tile->chunks > 1 && tile_cost(tile) * ATTENTION_SHARES * threads > walk->cost) {
        const int64_t floats = partial_floats((int64_t)tile->queries * walk->shape.group, walk->shape.padded) *
                               tile->chunks * walk->op->kv_heads;
        if ((walk->partials + floats) * (int64_t)sizeof(float) <= (int64_t)threads * ATTENTION_PARTIAL_BYTES) {
            tile->partials = walk->partials;
            walk->partials += floats;
        }
    }
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
        cost += tile_cost(&walk.tile);
    return cost * walk.shape.spans;
}

static ci_partial shared_partial(const ci_walk *walk, int32_t kv_head, int32_t chunk) {
    const ci_query_tile *tile = &walk->tile;
    const int64_t rows = (int64_t)tile->queries * walk->shape.group;
    float *at = (float *)(void *)walk->step->shared_area + tile->partials +
                partial_floats(rows, walk->shape.padded) * (kv_head * (int64_t)tile->chunks + chunk);
    return partial_at(at, rows);
}

/* Point the scratch at the tile and one kv head, and gather the queries' rows. */
static void attention_begin(const ci_walk *walk, int32_t kv_head, ci_attend *at) {
    const ci_op *op = walk->op;
    const ci_batch *batch = walk->step->batch;
    const int32_t width = walk->shape.group * op->head_dim;
    at->kv = walk->step->kv;
    at->pages = batch->block_tables + (int64_t)walk->tile.seq * batch->block_stride;
    at->layer = op->layer;
    at->kv_head = kv_head;
    at->head_dim = op->head_dim;
    at->padded = walk->shape.padded;
    at->group = walk->shape.group;
    at->queries = walk->tile.queries;
    at->position = walk->tile.position;
    at->scale = op->scale;
    for (int32_t query = 0; query < at->queries; query++)
        memcpy(at->q + (int64_t)query * width,
               (const float *)ci_in_row(op, walk->tile.token + query) + (int64_t)kv_head * width,
               (size_t)width * sizeof(float));
}

/* out / sum of one query's heads of one kv head, whose rows start at `row`. */
static void attention_finish(const ci_walk *walk, const ci_partial *partial, int64_t row, float *to) {
    const int32_t head_dim = walk->op->head_dim, padded = walk->shape.padded;
    for (int32_t head = 0; head < walk->shape.group; head++, row++, to += head_dim) {
        const vf16 sum = vf_set1(partial->sum[row]);
        const float *out = partial->out + row * padded;
        for (int32_t d = 0; d < padded; d += VF_LANES) {
            vf16 x = vf_div(vf_load(out + d), sum);
            if (d + VF_LANES <= head_dim)
                vf_store(to + d, x);
            else
                vf_store_n(to + d, x, head_dim - d);
        }
    }
}

static int32_t span_width(const ci_walk *walk) {
    return walk->shape.span * walk->shape.group * walk->op->head_dim;
}

/* The finished outputs of one token and span of kv heads, into its row. Only the last span may end inside a block. */
static void attention_store(const ci_walk *walk, int32_t token, int32_t span, const float *from) {
    const ci_op *op = walk->op;
    const int32_t width = span_width(walk);
    void *row = ci_out_row(op, token);
    for (int32_t i = 0; i < width; i += CI_BLOCK)
        ci_store32(row, op->out_type, op->n, span * width + i, vf_load(from + i), vf_load(from + i + VF_LANES));
}

/* The running result of kv head i of a span. */
static ci_partial running_partial(const ci_walk *walk, const ci_scratch *scratch, int32_t i) {
    return partial_at(scratch->running + i * partial_floats(walk->shape.rows, walk->shape.padded), walk->shape.rows);
}

/* All chunks of a tile for one kv head, merged as they come. */
static void attention_head(const ci_walk *walk, ci_scratch *scratch, const ci_partial *running) {
    const ci_attend *at = &scratch->attend;
    attend_chunk(at, 0, running);
    for (int32_t chunk = 1; chunk < walk->tile.chunks; chunk++) {
        attend_chunk(at, chunk, &scratch->next);
        for (int32_t row = attend_first_query(at, chunk * ATTENTION_CHUNK) * at->group; row < at->queries * at->group;
             row++)
            attend_merge(running, &scratch->next, row, at->padded);
    }
}

static void attention_whole(const ci_walk *walk, int32_t span, ci_scratch *scratch) {
    const ci_query_tile *tile = &walk->tile;
    const int32_t group = walk->shape.group;
    for (int32_t i = 0; i < walk->shape.span; i++) {
        attention_begin(walk, span * walk->shape.span + i, &scratch->attend);
        const ci_partial running = running_partial(walk, scratch, i);
        attention_head(walk, scratch, &running);
    }
    for (int32_t query = 0; query < tile->queries; query++) {
        for (int32_t i = 0; i < walk->shape.span; i++) {
            const ci_partial running = running_partial(walk, scratch, i);
            attention_finish(walk, &running, (int64_t)query * group, scratch->row + i * group * walk->op->head_dim);
        }
        attention_store(walk, tile->token + query, span, scratch->row);
    }
}

/* One chunk of a split tile for one span of kv heads, left in the shared area. */
static void attention_part(const ci_walk *walk, int32_t span, int32_t chunk, ci_scratch *scratch) {
    for (int32_t i = 0; i < walk->shape.span; i++) {
        const int32_t kv_head = span * walk->shape.span + i;
        const ci_partial partial = shared_partial(walk, kv_head, chunk);
        attention_begin(walk, kv_head, &scratch->attend);
        attend_chunk(&scratch->attend, chunk, &partial);
    }
}

/* One query of a split tile for one span of kv heads: its chunks in order. Chunk 0 takes in the others. */
static void attention_combine(const ci_walk *walk, int32_t query, int32_t span, ci_scratch *scratch) {
    const int32_t group = walk->shape.group;
    const int32_t chunks = (walk->tile.position + query) / ATTENTION_CHUNK + 1;
    for (int32_t i = 0; i < walk->shape.span; i++) {
        const int32_t kv_head = span * walk->shape.span + i;
        const ci_partial into = shared_partial(walk, kv_head, 0);
        for (int32_t chunk = 1; chunk < chunks; chunk++) {
            const ci_partial next = shared_partial(walk, kv_head, chunk);
            for (int32_t head = 0; head < group; head++)
                attend_merge(&into, &next, (int64_t)query * group + head, walk->shape.padded);
        }
        attention_finish(walk, &into, (int64_t)query * group, scratch->row + i * group * walk->op->head_dim);
    }
    attention_store(walk, walk->tile.token + query, span, scratch->row);
}

/* Items are taken as threads come free; `item` counts on through the tiles in the order of the walk. */
static void attention_items(ci_walk walk, ci_scratch *scratch) {
    int64_t begin = 0, items = 0;
    for (;;) {
        int64_t item = atomic_fetch_add_explicit(walk.step->counter, 1, memory_order_relaxed);
        while (item >= begin + items) {
            begin += items;
            if (!walk_next(&walk))
                return;
            items = (int64_t)walk.shape.spans * (walk.tile.partials < 0 ? 1 : walk.tile.chunks);
        }
        const int32_t index = (int32_t)(item - begin);
        if (walk.tile.partials < 0)
            attention_whole(&walk, index, scratch);
        else
            attention_part(&walk, index / walk.tile.chunks, index % walk.tile.chunks, scratch);
    }
}

/* (query, span) of the split tiles, dealt out in turn. */
static void attention_merges(ci_walk walk, ci_scratch *scratch) {
    const ci_team *team = &walk.step->team;
    int64_t turn = 0;
    while (walk_next(&walk)) {
        if (walk.tile.partials < 0)
            continue;
        for (int32_t query = 0; query < walk.tile.queries; query++)
            for (int32_t span = 0; span < walk.shape.spans; span++)
                if (turn++ % team->n == team->id)
                    attention_combine(&walk, query, span, scratch);
    }
}

static int32_t attention_is_split(ci_walk walk) {
    while (walk_next(&walk))
        if (walk.tile.partials >= 0)
            return 1;
    return 0;
}

void ci_attention(const ci_op *op, const ci_step *step) {
    const ci_walk walk = walk_start(op, step, attention_cost(op, step));
    ci_scratch scratch;
    attention_scratch(op, &walk.shape, (float *)(void *)step->thread_area, &scratch);
    attention_items(walk, &scratch);
    if (attention_is_split(walk)) {
        ci_team_meet(&step->team);
        attention_merges(walk, &scratch);
    }
}
