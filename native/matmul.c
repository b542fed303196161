/* MATMUL, MATMUL_SWIGLU, MATMUL_QKV_ROPE: out[T, N] = x[T, K] @ w[N, K]^T with an epilogue.
 *
 * The team shares panels of 16 output rows, so no sum is ever split. A thread takes its tokens in chunks whose input
 * rows stay near, and inside a chunk its panels in strips of at most four: every tile of a strip goes to a small f32
 * buffer [tokens][CI_STRIP], then the epilogue reads that. So each weight is read from memory once per chunk, and a
 * token's bits do not depend on which others share its tile, chunk or step. K is taken in stretches, so that a stretch
 * of the panels stays in L2 while every tile of the chunk reads it. */
#include "matmul.h"

#include <tiles.h>
#include <vec.h>
#include <vmath.h>

#include "kernels.h"
#include "kv.h"
#include "quantize.h"
#include "rope.h"

enum {
    /* A multiple of every tile height up to 8, but 5 and 7. A matrix unit is fast enough for the unpacking of panels to
     * show: more tokens share it. */
    CHUNK_TOKENS = TILE_MR ? 16 * TILE_MR : 96,
    CHUNK_UNIT = TILE_MR ? TILE_MR : CI_MAX_MR,
    /* Of input rows: they come from L3, a stretch of K at a time. Processors with a matrix unit have 2 MiB of L2. */
    CHUNK_BYTES = (TILE_MR ? 1664 : 1280) << 10,
    /* Of panels: beside the rows' stretch in L2. Measured on Zen 3, 512 tokens: 40 KiB is up to 10 % ahead of 12, 20
     * and of whole panels, little more than the noise. */
    STRETCH_BYTES = 40 << 10,
    SHARED_PART = 4,      /* one in so many panels is nobody's share: whoever comes free takes it */
    FAR_SHARED_PART = 16, /* the same of panels far apart: every part starts its streams anew */
    /* One tile's tokens of a small team: strips are so many times as long, and tiles take panels far apart from them.
     * Each is a stream of its own, of which memory serves several faster than one. Measured on Zen 3, two threads, one
     * token, weights in memory: 24 GB/s of Q4_0 with one stream a thread, 29 with two, 36 with four; with four of
     * neighbouring panels 20. Decode of Q4_0 on Emerald Rapids becomes 1.48, 0.99, 1.06 times as fast with 1, 2, 4
     * threads (135M), 1.16, 1.15 with 1, 2 (1B); with more, memory is busy without it: 0.95 with 8, 0.91 with 16. Two
     * to eight tokens: docs/design.md, decision 42. */
    LONG_STRIP = 32,
    FAR_THREADS = 4,
    /* A team of so many takes parts ahead, so that the last of several tiles can fetch the next one's panels. With 4 to
     * 16 threads of Emerald Rapids what is taken ahead is missing at the end: 0.75 to 1.0. */
    AHEAD_THREADS = 2,
};

static inline int32_t min32(int32_t a, int32_t b) {
    return a < b ? a : b;
}
static inline int32_t max32(int32_t a, int32_t b) {
    return a > b ? a : b;
}
static inline int32_t panels_of(int32_t n) {
    return (n + CI_ROWS - 1) / CI_ROWS;
}
static inline int64_t line_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* The formats of an op's weights share the input type. Their largest needs: */
static int64_t prepared_stride(const ci_op *op) {
    int64_t most = 0;
    for (int i = 0; i < 3; i++)
        if (op->w[i].data) {
            int64_t bytes = ci_format_of(op->w[i].type)->prepared_bytes(op->k);
            most = bytes > most ? bytes : most;
        }
    return line_up(most);
}
/* The columns that np panels of k columns are taken at a time. */
static int32_t stretch_of(const ci_format *format, int32_t k, int32_t np) {
    const int32_t unit = k % 256 ? 64 : 256; /* types that pack 256 columns together have whole ones */
    const int64_t bytes = (format->unpack ? format->unpacked_bytes : format->panel_bytes)(unit)*np;
    const int64_t most = STRETCH_BYTES > bytes ? STRETCH_BYTES / bytes * unit : unit;
    const int64_t stretches = (k + most - 1) / most;
    return (int32_t)((k + stretches * unit - 1) / (stretches * unit) * unit);
}
static int64_t unpacked_bytes(const ci_op *op) {
    int64_t most = 0;
    for (int i = 0; i < 3; i++)
        if (op->w[i].data && ci_format_of(op->w[i].type)->unpack) {
            const ci_format *format = ci_format_of(op->w[i].type);
            int64_t bytes = format->unpacked_bytes(stretch_of(format, op->k, 1)) * format->np;
            most = bytes > most ? bytes : most;
        }
    return line_up(most);
}
static int32_t chunk_tokens(const ci_op *op) {
    int64_t prepared = prepared_stride(op), bytes = ci_row_bytes(op->in_type, op->k);
    bytes = prepared > bytes ? prepared : bytes;
    int64_t tokens = CHUNK_BYTES / bytes / CHUNK_UNIT * CHUNK_UNIT;
    return tokens < CHUNK_UNIT ? CHUNK_UNIT : tokens < CHUNK_TOKENS ? (int32_t)tokens : CHUNK_TOKENS;
}

/* The tokens of each chunk but the last, of as few chunks as can be: nearly equal ones, so that parts that threads take
 * as they come free are. */
static int32_t equal_chunk(const ci_op *op, int32_t rows) {
    const int32_t most = chunk_tokens(op), chunks = (rows + most - 1) / most;
    return ((rows + chunks - 1) / chunks + CHUNK_UNIT - 1) / CHUNK_UNIT * CHUNK_UNIT;
}

/* A strip of any chunk of at most `tokens` tokens. */
static int64_t strip_bytes(int32_t tokens) {
    const int32_t far = tokens < CI_MAX_MR ? tokens : CI_MAX_MR;
    return (tokens > far * LONG_STRIP ? tokens : far * LONG_STRIP) * CI_STRIP * (int64_t)sizeof(float);
}

/* The thread's area: [strip][prepared rows][unpacked panels][heads]. */
int64_t ci_matmul_thread_bytes(const ci_op *op, int32_t max_tokens) {
    int64_t tokens = min32(chunk_tokens(op), max_tokens);
    int64_t head = op->kind == CI_OP_MATMUL_QKV_ROPE ? op->head_dim : 0;
    return strip_bytes((int32_t)tokens) + tokens * (head * (int64_t)sizeof(float) + prepared_stride(op)) +
           unpacked_bytes(op);
}

/* One chunk of tokens as one thread sees it. */
typedef struct chunk {
    const ci_op *op;
    const ci_step *step;
    int32_t first; /* token */
    int32_t n;     /* tokens */
    int32_t far;   /* 1: its tiles take panels far apart */
    int32_t jump;  /* panels from the end of the strip to those that are taken next */
    const char *x;
    int64_t x_stride;
    char *prepared;
    int64_t prepared_stride;
    const ci_format *prepared_for; /* whose prepare made `prepared`; null: nobody's yet */
    float *strip;                  /* [n][strip_stride] */
    int64_t strip_stride;
    uint8_t *unpacked;
    float *heads; /* QKV: [n][head_dim], the head whose panels are being done */
} chunk;

static void prepare(chunk *c, const ci_format *format) {
    for (int32_t t = 0; t < c->n; t++)
        format->prepare(c->prepared + t * c->prepared_stride, c->x + t * c->x_stride, c->op->k);
    c->prepared_for = format;
}

/* All tokens of the chunk times a stretch of np neighbouring panels, in tiles of nearly equal height. The next stretch,
 * whose panels have `bytes` each from tile.ahead on, is fetched meanwhile, a part by every tile: memory then is as busy
 * under the last tile as under the first. */
static void sweep(const chunk *c, const ci_tiles *tiles, int32_t mr, int32_t np_index, ci_tile tile, int64_t bytes) {
    int32_t n_tiles = (c->n + mr - 1) / mr;
    int64_t x_stride = tile.x_stride, prepared_stride = tile.prepared_stride;
    const char *x = tile.x, *prepared = tile.prepared;
    const uint8_t *ahead = tile.ahead;
    float *out = tile.out;
    const int64_t parts = (int64_t)(tile.end - tile.begin + 31) / 32 * n_tiles;
    tile.ahead_step = (bytes + parts - 1) / parts;
    for (int32_t i = 0; i < n_tiles; i++) {
        int32_t begin = c->n * i / n_tiles, end = c->n * (i + 1) / n_tiles;
        tile.x = x + begin * x_stride;
        tile.prepared = prepared + begin * prepared_stride;
        tile.ahead = ahead + bytes * i / n_tiles;
        tile.out = out + begin * tile.out_stride;
        (*tiles)[end - begin - 1][np_index](&tile);
    }
}

/* All tokens of the chunk times 1 << np_index panels. Those that follow lie `jump` panels further. */
static void stretches(const chunk *c, const ci_format *format, int32_t np_index, ci_tile tile, int32_t jump) {
    const int unpack = format->unpack && c->n >= format->unpack_tokens;
    const ci_tiles *tiles = unpack ? format->unpacked_tiles : format->tiles;
    const int32_t np = 1 << np_index, stretch = c->n <= format->mr ? tile.k : stretch_of(format, tile.k, np);
    /* A block brings a line of memory or more for each token: memory is behind. */
    const int memory_bound = format->panel_bytes(256) >= 256 / 32 * 64 * c->n;
    const int64_t panel_bytes = tile.panel_bytes, unpacked_bytes = unpack ? format->unpacked_bytes(stretch) : 0;
    const uint8_t *panels = tile.panel;
    tile.ahead_stride = panel_bytes;
    if (unpack)
        tile.panel_bytes = unpacked_bytes;
    for (tile.begin = 0; tile.begin < tile.k; tile.begin = tile.end) {
        tile.end = min32(tile.begin + stretch, tile.k);
        const int64_t at = format->panel_bytes(tile.begin), end = format->panel_bytes(tile.end);
        tile.panel = unpack ? c->unpacked : panels + at;
        if (c->n <= format->mr) /* one tile: a stream */
            tile.ahead = panels + at + (memory_bound ? c->step->fetch_ahead->stream : c->step->fetch_ahead->tile);
        else
            tile.ahead = tile.end < tile.k ? panels + end : panels + (np + jump) * panel_bytes;
        for (int32_t p = 0; unpack && p < np; p++)
            format->unpack(c->unpacked + p * unpacked_bytes, panels + at + p * panel_bytes, tile.end - tile.begin);
        if (unpack && format->unpacked_sweep)
            format->unpacked_sweep(&tile, c->n, np);
        else
            sweep(c, tiles, format->mr, np_index, tile, end - at);
    }
}

/* strip[t][column + 16 p + lane] = panels first .. first + n - 1 of the weight times the chunk's tokens. */
static void multiply(chunk *c, const ci_weight *weight, int32_t first, int32_t n, int32_t column) {
    const ci_format *format = ci_format_of(weight->type);
    const int64_t panel_bytes = format->panel_bytes(weight->k);
    const int32_t height = min32(c->n, format->mr);
    int prepared = format->prepared_bytes(weight->k) != 0;
    if (prepared && c->prepared_for != format)
        prepare(c, format);
    ci_tile tile = {
        .panel = (const uint8_t *)weight->data + first * panel_bytes,
        .panel_bytes = panel_bytes,
        .x = c->x,
        .x_stride = c->x_stride,
        .prepared = prepared ? c->prepared : c->x,
        .prepared_stride = prepared ? c->prepared_stride : c->x_stride,
        .k = weight->k,
        .out = c->strip + column,
        .out_stride = c->strip_stride,
    };
    while (n > 0) {
        int32_t np_index = n >= 4 ? 2 : n >= 2 ? 1 : 0;
        while (!(*format->tiles)[height - 1][np_index] || (1 << np_index > format->np && !c->far))
            np_index--;
        const int32_t np = 1 << np_index, apart = c->far ? n / np : 1;
        tile.panel_bytes = apart * panel_bytes;
        tile.out_step = apart * CI_ROWS;
        for (int32_t i = 0; i < apart; i++) {
            stretches(c, format, np_index, tile, n > np ? 0 : c->jump);
            tile.out += CI_ROWS;
            tile.panel += panel_bytes;
        }
        n -= np * apart;
        tile.out += (np - 1) * tile.out_step;
        tile.panel += (np - 1) * tile.panel_bytes;
    }
}

typedef void strip_fn(chunk *c, int32_t first, int32_t n);

/* Where a share of QKV's panels may begin: heads of k and v are done by one thread where their scale is of the whole.
 */
static int32_t share_begin(const ci_op *op, const ci_step *step, int32_t panel) {
    if (op->kind != CI_OP_MATMUL_QKV_ROPE || step->kv->type != CI_I8)
        return panel;
    int32_t q = panels_of(op->w[0].n), per_head = op->head_dim / CI_ROWS;
    return panel <= q ? panel : q + (panel - q + per_head / 2) / per_head * per_head;
}

/* A chunk with its memory, and no tokens yet. */
static chunk chunk_of(const ci_op *op, const ci_step *step, int32_t longest, int32_t far) {
    chunk c = {
        .op = op,
        .step = step,
        .far = far,
        .x_stride = ci_row_bytes(op->in_type, op->k),
        .strip = (float *)(void *)step->thread_area,
        .strip_stride = far ? LONG_STRIP * CI_STRIP : CI_STRIP,
        .prepared = step->thread_area + strip_bytes(longest),
        .prepared_stride = prepared_stride(op),
    };
    c.unpacked = (uint8_t *)c.prepared + longest * c.prepared_stride;
    c.heads = (float *)(void *)(c.unpacked + unpacked_bytes(op));
    return c;
}
static void chunk_take(chunk *c, int32_t first, int32_t n) {
    c->first = first;
    c->n = n;
    c->x = ci_in_row(c->op, first);
    c->prepared_for = NULL;
}

/* The chunk's tokens times panels begin .. end-1, of whole heads where these must stay together. What is fetched under
 * the last ones lies at panel `next`. */
static void run_strips(chunk *c, int32_t begin, int32_t end, int32_t next, int32_t strip, strip_fn *run) {
    begin = share_begin(c->op, c->step, begin);
    end = share_begin(c->op, c->step, end);
    for (int32_t panel = begin; panel < end; panel += strip) {
        c->jump = panel + strip < end ? 0 : next - end;
        run(c, panel, min32(strip, end - panel));
    }
}

/* The most tokens whose tiles take panels far apart: as many as one tile has, whatever the weight. Tiles of floats have
 * four neighbours anyway, and only one token's gain. */
static int32_t most_far(const ci_op *op) {
    int32_t most = op->in_type == CI_Q8A ? CI_MAX_MR : 1;
    for (int i = 0; i < 3; i++)
        if (op->w[i].data)
            most = min32(most, ci_format_of(op->w[i].type)->mr);
    return most;
}

/* Walk the op's panels, n_panels in all, in whole groups and strips of `strip`. Each thread first takes a run
 * of its own, which memory delivers as a few streams; the last panels are taken part by part as threads come free,
 * since processors that others use as well are not equally fast. */
static void walk(const ci_op *op, const ci_step *step, int32_t n_panels, int32_t group, int32_t strip, strip_fn *run) {
    const int32_t rows = ci_rows(op, step), per_chunk = equal_chunk(op, rows);
    const int32_t chunks = (rows + per_chunk - 1) / per_chunk;
    const int32_t groups = (n_panels + group - 1) / group;
    const int32_t far = rows <= most_far(op) && step->team.n <= FAR_THREADS, most = far ? strip * LONG_STRIP : strip;
    const int32_t own = step->team.n > 1 ? groups - groups / (far ? FAR_SHARED_PART : SHARED_PART) : groups;
    const int tiles = TILE_MR && op->in_type == CI_Q8A && min32(rows, per_chunk) >= TILE_MR;
    const int32_t least = tiles ? 2 : strip; /* chunks of tiles are long */
    const int32_t part = far ? max32((groups - own) / (2 * step->team.n) * group, least) : least;
    const int32_t shared = own * group, parts = (n_panels - shared + part - 1) / part;
    chunk c = chunk_of(op, step, min32(rows, per_chunk), far);
    const int ahead = parts && chunks == 1 && rows > CI_MAX_MR && step->team.n <= AHEAD_THREADS;
    int32_t begin, end, item = ahead ? ci_team_take(step->counter) : 0;
    if (tiles)
        tiles_begin();
    ci_team_share(&step->team, own, &begin, &end);
    for (int32_t i = 0; i < chunks; i++) {
        chunk_take(&c, i * per_chunk, min32(per_chunk, rows - i * per_chunk));
        const int32_t until = min32(end * group, n_panels), next = ahead ? shared + item * part : until;
        run_strips(&c, begin * group, until, next, most, run);
    }
    while (parts && (item = ahead ? item : ci_team_take(step->counter)) < chunks * parts) {
        const int32_t first = item / parts * per_chunk, at = shared + item % parts * part;
        const int32_t until = min32(at + part, n_panels);
        if (c.first != first)
            chunk_take(&c, first, min32(per_chunk, rows - first));
        item = ahead ? ci_team_take(step->counter) : 0;
        run_strips(&c, at, until, ahead ? shared + item * part : until, most, run);
    }
    if (tiles)
        tiles_end();
}

static inline vf16 load_part(const float *row, int32_t n, int32_t at) {
    return at + VF_LANES <= n ? vf_load(row + at) : vf_load_n(row + at, n - at);
}

static void plain_strip(chunk *c, int32_t first, int32_t n) {
    const ci_op *op = c->op;
    multiply(c, &op->w[0], first, n, 0);
    for (int32_t t = 0; t < c->n; t++) {
        const float *acc = c->strip + t * c->strip_stride;
        const float *residual = op->in[1] ? (const float *)op->in[1] + (int64_t)(c->first + t) * op->n : NULL;
        void *out = ci_out_row(op, c->first + t);
        for (int32_t p = 0; p < n; p++) {
            int32_t at = (first + p) * CI_ROWS;
            vf16 y = vf_load(acc + p * CI_ROWS);
            if (residual)
                y = vf_add(load_part(residual, op->n, at), y);
            ci_store16(out, op->out_type, op->n, at, y);
        }
    }
}

/* out [T, n] f32 or bf16 = in[0] [T, k] @ w[0]^T, plus in[1] [T, n] f32 where there is one. */
void ci_matmul(const ci_op *op, const ci_step *step) {
    walk(op, step, panels_of(op->n), 1, CI_MAX_NP, plain_strip);
}

/* Panels of gate, then as many of up. */
static void swiglu_strip(chunk *c, int32_t first, int32_t n) {
    const ci_op *op = c->op;
    const int32_t up = n * CI_ROWS;
    multiply(c, &op->w[0], first, n, 0);
    multiply(c, &op->w[1], first, n, up);
    for (int32_t t = 0; t < c->n; t++)
        for (int32_t p = 0; p < n; p += 2) {
            const float *gate = c->strip + t * c->strip_stride + p * CI_ROWS;
            vf16 y[2] = {vf_zero(), vf_zero()};
            for (int32_t i = 0; i < min32(n - p, 2); i++)
                y[i] = vf_mul(vf_silu(vf_load(gate + i * CI_ROWS)), vf_load(gate + up + i * CI_ROWS));
            ci_store32(ci_out_row(op, c->first + t), op->out_type, op->n, (first + p) * CI_ROWS, y[0], y[1]);
        }
}

/* out [T, n] of out_type = silu(in[0] @ w[0]^T) * (in[0] @ w[1]^T). Groups of two panels, so that a block of 32 is
 * quantised by one thread. */
void ci_matmul_swiglu(const ci_op *op, const ci_step *step) {
    walk(op, step, panels_of(op->n), 2, 2, swiglu_strip);
}

/* One panel of q, k or v for one token: 16 dimensions of one head. */
static void qkv_store(const chunk *c, int32_t token, int32_t segment, int32_t column, vf16 x) {
    const ci_op *op = c->op;
    const ci_kv *kv = c->step->kv;
    int32_t position = c->step->batch->positions[token], head = column / op->head_dim, d = column % op->head_dim;
    if (segment < 2) {
        const float *table = op->rope + (int64_t)position * 2 * op->head_dim + d;
        x = rope_rotate(x, vf_load(table), vf_load(table + op->head_dim));
    }
    if (segment == 0) {
        vf_store((float *)op->out + (int64_t)token * op->heads * op->head_dim + column, x);
        return;
    }
    const ci_slot slot =
        kv_slot(kv, op->layer, c->step->token_pages[token], head, op->head_dim, position % CI_PAGE, segment == 2);
    if (kv->type == CI_I8) { /* needs the whole head, whose panels this thread does one after the other */
        float *whole = c->heads + (int64_t)(token - c->first) * op->head_dim;
        vf_store(whole + d, x);
        if (d + CI_ROWS == op->head_dim)
            kv_store(&slot, kv->type, whole, op->head_dim);
    } else
        kv_store_part(slot.at + d * slot.stride * kv_itemsize(kv->type), kv->type, slot.stride, x, CI_ROWS);
}

/* Panels first .. of the rows of q, k and v laid end to end. */
static void qkv_strip(chunk *c, int32_t first, int32_t n) {
    const ci_op *op = c->op;
    int32_t begins[4] = {0};
    for (int i = 0; i < 3; i++)
        begins[i + 1] = begins[i] + panels_of(op->w[i].n);
    for (int i = 0; i < 3; i++) {
        int32_t begin = first > begins[i] ? first : begins[i], end = min32(first + n, begins[i + 1]);
        if (begin < end)
            multiply(c, &op->w[i], begin - begins[i], end - begin, (begin - first) * CI_ROWS);
    }
    for (int32_t p = 0; p < n; p++) {
        int32_t panel = first + p, segment = (panel >= begins[1]) + (panel >= begins[2]);
        int32_t column = (panel - begins[segment]) * CI_ROWS;
        for (int32_t t = 0; t < c->n; t++)
            qkv_store(c, c->first + t, segment, column, vf_load(c->strip + t * c->strip_stride + p * CI_ROWS));
    }
}

/* q, k, v = in[0] @ w[0..2]^T; out [T, heads * head_dim] f32 = rope(q); KV pages of the layer <- rope(k), v.
 * head_dim % 16 == 0, so that a panel lies inside a head. The weights may differ in type, not in input type. */
void ci_matmul_qkv_rope(const ci_op *op, const ci_step *step) {
    int32_t n = panels_of(op->w[0].n) + panels_of(op->w[1].n) + panels_of(op->w[2].n);
    walk(op, step, n, 1, CI_MAX_NP, qkv_strip);
}
