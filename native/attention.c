/* Causal attention over paged keys and values: the work items of a step, and what becomes of their results. How a batch
 * is cut: attention_walk.h. What is computed: attention_chunk.h. */
#include "attention_walk.h"

typedef struct ci_scratch {
    ci_attend attend;
    float *running; /* partial results of a span's kv heads */
    ci_partial next;
    float *row; /* [span * group * head_dim] finished outputs of one query */
} ci_scratch;

/* Sets up the scratch in the thread's area (or only measures it, area null) and returns its floats. */
static int64_t attention_scratch(const ci_op *op, const ci_shape *shape, float *area, ci_scratch *scratch) {
    const int64_t rows = shape->rows, state = partial_floats(rows, shape->padded);
    const int64_t block = whole_lines(attend_max(ATTENTION_BLOCK, shape->group));
    const int64_t sizes[] = {
        whole_lines(rows * op->head_dim),
        block * ATTENTION_GROUP,
        block,
        block,
        rows * VF_LANES,
        (int64_t)ATTENTION_PAGES * CI_PAGE * op->head_dim,
        (int64_t)ATTENTION_GROUP * shape->padded,
        state * shape->span,
        state,
        ((int64_t)shape->span * shape->group * op->head_dim + CI_BLOCK) / CI_BLOCK * CI_BLOCK,
    };
    int64_t at[11] = {0};
    for (int32_t i = 0; i < 10; i++)
        at[i + 1] = at[i] + sizes[i];
    if (area) {
        ci_attend *a = &scratch->attend;
        a->q = area + at[0];
        a->scores = area + at[1];
        a->tops = area + at[2];
        a->factors = area + at[3];
        a->lanes = area + at[4];
        a->k = area + at[5];
        a->v = area + at[6];
        scratch->running = area + at[7];
        scratch->next = partial_at(area + at[8], rows);
        scratch->row = area + at[9];
    }
    return at[10];
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

/* The keys of a tile from the first of a chunk on, up to those of end_chunk. */
static ci_then attention_keys(const ci_walk *walk, int32_t kv_head, int32_t chunk, int32_t end_chunk) {
    const ci_batch *batch = walk->step->batch;
    const ci_query_tile *tile = &walk->tile;
    const int32_t begin = chunk_begin(chunk, tile->position, walk->shape.window);
    const int32_t end = attend_min(end_chunk * ATTENTION_CHUNK, tile->position + tile->queries);
    return (ci_then){batch->block_tables + (int64_t)tile->seq * batch->block_stride + begin / CI_PAGE,
                     (end - begin + CI_PAGE - 1) / CI_PAGE, kv_head};
}

/* Point the scratch at chunks of the tile and one kv head, and gather the queries' rows. The thread goes on to the next
 * kv head of the span, or to `then`. */
static void attention_begin(const ci_walk *walk, int32_t kv_head, int32_t chunk, int32_t end_chunk, ci_then then,
                            ci_attend *at) {
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
    at->window = walk->shape.window;
    at->end = attend_min(end_chunk * ATTENTION_CHUNK, at->position + at->queries);
    at->then = (kv_head + 1) % walk->shape.span ? attention_keys(walk, kv_head + 1, chunk, end_chunk) : then;
    at->scale = op->scale;
    at->softcap = op->softcap;
    for (int32_t query = 0; query < at->queries; query++)
        memcpy(at->q + (int64_t)query * width,
               (const float *)ci_in_row(op, walk->tile.token + query) + (int64_t)kv_head * width,
               (size_t)width * sizeof(float));
}

/* out / sum of one query's heads of one kv head, whose rows start at `row`. The head's sink, if it has one, takes part
 * in the softmax as one more chunk of a single key whose value is zero. */
static void attention_finish(const ci_walk *walk, const ci_partial *partial, int64_t row, int32_t kv_head, float *to) {
    const int32_t head_dim = walk->op->head_dim, padded = walk->shape.padded, group = walk->shape.group;
    const float *sinks = walk->op->w[0].data;
    for (int32_t head = 0; head < group; head++, row++, to += head_dim) {
        const float *out = partial->out + row * padded;
        vf16 sum = vf_set1(partial->sum[row]), keep = vf_set1(1.0f);
        if (sinks) {
            const float old = partial->max[row], sink = sinks[kv_head * group + head], max = sink > old ? sink : old;
            keep = vf_exp_nonpositive(vf_set1(old - max));
            sum = vf_fma(sum, keep, vf_exp_nonpositive(vf_set1(sink - max)));
        }
        for (int32_t d = 0; d < padded; d += VF_LANES) {
            vf16 x = vf_div(vf_mul(vf_load(out + d), keep), sum);
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
    const ci_query_tile *tile = &walk->tile;
    attend_chunk(at, tile->first_chunk, running);
    for (int32_t chunk = tile->first_chunk + 1; chunk < tile->end_chunk; chunk++) {
        const ci_queries of = attend_chunk(at, chunk, &scratch->next);
        for (int32_t query = of.first; query < of.last; query++) {
            const int32_t fresh = first_chunk(at->position + query, at->window) == chunk;
            for (int32_t row = query * at->group; row < (query + 1) * at->group; row++)
                if (fresh)
                    attend_copy(running, &scratch->next, row, at->padded);
                else
                    attend_merge(running, &scratch->next, row, at->padded);
        }
    }
}

static void attention_whole(const ci_walk *walk, int32_t span, ci_then then, ci_scratch *scratch) {
    const ci_query_tile *tile = &walk->tile;
    const int32_t group = walk->shape.group;
    for (int32_t i = 0; i < walk->shape.span; i++) {
        attention_begin(walk, span * walk->shape.span + i, tile->first_chunk, tile->end_chunk, then, &scratch->attend);
        const ci_partial running = running_partial(walk, scratch, i);
        attention_head(walk, scratch, &running);
    }
    for (int32_t query = 0; query < tile->queries; query++) {
        for (int32_t i = 0; i < walk->shape.span; i++) {
            const ci_partial running = running_partial(walk, scratch, i);
            attention_finish(walk, &running, (int64_t)query * group, span * walk->shape.span + i,
                             scratch->row + i * group * walk->op->head_dim);
        }
        attention_store(walk, tile->token + query, span, scratch->row);
    }
}

/* One run of chunks of a split tile for one span of kv heads, left in the shared area. */
static void attention_part(const ci_walk *walk, int32_t span, int32_t run, ci_then then, ci_scratch *scratch) {
    const ci_query_tile *tile = &walk->tile;
    const int32_t begin = tile->first_chunk + run * tile->run, end = attend_min(begin + tile->run, tile->end_chunk);
    for (int32_t i = 0; i < walk->shape.span; i++) {
        const int32_t kv_head = span * walk->shape.span + i;
        attention_begin(walk, kv_head, begin, end, then, &scratch->attend);
        for (int32_t chunk = begin; chunk < end; chunk++) {
            const ci_partial partial = shared_partial(walk, kv_head, chunk);
            attend_chunk(&scratch->attend, chunk, &partial);
        }
    }
}

/* One query of a split tile for one span of kv heads: its chunks in order. The first takes in the others. */
static void attention_combine(const ci_walk *walk, int32_t query, int32_t span, ci_scratch *scratch) {
    const int32_t group = walk->shape.group, position = walk->tile.position + query;
    const int32_t first = first_chunk(position, walk->shape.window), end = position / ATTENTION_CHUNK + 1;
    for (int32_t i = 0; i < walk->shape.span; i++) {
        const int32_t kv_head = span * walk->shape.span + i;
        const ci_partial into = shared_partial(walk, kv_head, first);
        for (int32_t chunk = first + 1; chunk < end; chunk++) {
            const ci_partial next = shared_partial(walk, kv_head, chunk);
            for (int32_t head = 0; head < group; head++)
                attend_merge(&into, &next, (int64_t)query * group + head, walk->shape.padded);
        }
        attention_finish(walk, &into, (int64_t)query * group, kv_head, scratch->row + i * group * walk->op->head_dim);
    }
    attention_store(walk, walk->tile.token + query, span, scratch->row);
}

/* Runs of chunks that a tile is cut into. */
static int32_t tile_runs(const ci_query_tile *tile) {
    return (tile->end_chunk - tile->first_chunk + tile->run - 1) / tile->run;
}

/* A work item: a span and a run of chunks of the tile that the walk stands at. */
typedef struct ci_item {
    ci_walk walk;
    int64_t begin, items; /* the number of the tile's first item, and how many it has */
    int32_t span, run;
} ci_item;

/* The next item that no thread has; 0 where there is none. Numbers count on through the tiles in the order of the walk.
 */
static int32_t item_take(ci_item *item) {
    const int64_t number = ci_team_take(item->walk.step->counter);
    while (number >= item->begin + item->items) {
        item->begin += item->items;
        if (!walk_next(&item->walk))
            return 0;
        item->items = (int64_t)item->walk.shape.spans * tile_runs(&item->walk.tile);
    }
    const int32_t index = (int32_t)(number - item->begin), runs = tile_runs(&item->walk.tile);
    item->span = index / runs;
    item->run = index % runs;
    return 1;
}

static ci_then item_keys(const ci_item *item) {
    const ci_query_tile *tile = &item->walk.tile;
    const int32_t begin = tile->first_chunk + item->run * tile->run;
    return attention_keys(&item->walk, item->span * item->walk.shape.span, begin,
                          attend_min(begin + tile->run, tile->end_chunk));
}

/* Items are taken as threads come free. One that reads its pages as they are fetches those of the next meanwhile, which
 * is taken early for that. */
static void attention_items(ci_walk walk, ci_scratch *scratch) {
    ci_item item = {.walk = walk};
    for (int32_t taken = item_take(&item); taken;) {
        ci_item next = item;
        ci_then then = {0};
        const int32_t early = item.walk.tile.queries * walk.shape.group <= ATTENTION_MR;
        if (early && (taken = item_take(&next)) != 0)
            then = item_keys(&next);
        if (item.walk.tile.partials < 0)
            attention_whole(&item.walk, item.span, then, scratch);
        else
            attention_part(&item.walk, item.span, item.run, then, scratch);
        if (!early)
            taken = item_take(&next);
        item = next;
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
