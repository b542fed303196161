/* From rows of logits to tokens: the same numbers as cpuinfer/engine/sampler.py and numerics.py, bit for bit.
 *
 * Logits are compared as whole numbers of the same order (key_of), probabilities are integer weights, so results are
 * exact whatever thread does what. Rows are taken in groups of as many as there are threads. Of a group, the team first
 * shares the vocabulary (block maxima; weights where all tokens stay), then each thread finishes one row. No row is
 * ever sorted: the k-th largest and the floor of top-p are found digit by digit, among the few that can be it. */
#include "kernels.h"
#include "sampling.h"

enum {
    WEIGHING = 8,   /* a weight costs so many looks */
    ALONE = 1 << 19 /* looks (about 0.1 ms) below which waking others wins little, and costs much where others work */
};

/* The memory of one row of a group. */
typedef struct row_area {
    int32_t *maxima; /* [blocks] keys */
    int64_t *sums;   /* [slices] of weights */
    int64_t *w;      /* [vocab] weights: of all tokens, or of the candidates */
    int64_t *spare;  /* [vocab] */
    int32_t *ids;    /* [vocab] candidates, ascending */
} row_area;

static int64_t line_up(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}
static int32_t blocks_of(int32_t vocab) {
    return (vocab + BLOCK - 1) / BLOCK;
}
static int32_t slices_of(int32_t vocab) {
    return (vocab + SLICE - 1) / SLICE;
}

static int64_t row_bytes(int32_t vocab) {
    return line_up((int64_t)blocks_of(vocab) * 4) + line_up((int64_t)slices_of(vocab) * 8) +
           2 * line_up((int64_t)vocab * 8) + line_up((int64_t)vocab * 4);
}

static row_area area_at(char *at, int32_t vocab) {
    row_area area;
    area.maxima = (int32_t *)(void *)at;
    at += line_up((int64_t)blocks_of(vocab) * 4);
    area.sums = (int64_t *)(void *)at;
    at += line_up((int64_t)slices_of(vocab) * 8);
    area.w = (int64_t *)(void *)at;
    at += line_up((int64_t)vocab * 8);
    area.spare = (int64_t *)(void *)at;
    at += line_up((int64_t)vocab * 8);
    area.ids = (int32_t *)(void *)at;
    return area;
}

int64_t ci_sample_bytes(int32_t vocab, int32_t n_threads) {
    return row_bytes(vocab) * n_threads;
}

static void slice_maxima(const float *x, int32_t vocab, int32_t slice, const row_area *area) {
    int32_t end = min32((slice + 1) * SLICE, vocab);
    for (int32_t at = slice * SLICE; at < end; at += BLOCK)
        area->maxima[at / BLOCK] = block_maximum(x + at, min32(BLOCK, end - at));
}

/* Weights of a slice, where `keep` asks for it into area->w, and their sum. */
static void slice_weights(const float *x, int32_t vocab, int32_t slice, double scale, const row_area *area,
                          int32_t keep) {
    int64_t block[BLOCK], sum = 0;
    int32_t end = min32((slice + 1) * SLICE, vocab);
    double top = value_of(largest_key(area->maxima, blocks_of(vocab)));
    for (int32_t at = slice * SLICE; at < end; at += BLOCK) {
        int32_t n = min32(BLOCK, end - at);
        int64_t *w = keep ? area->w + at : block;
        if ((top - (double)value_of(area->maxima[at / BLOCK])) * scale >= STEPS * OCTAVES) {
            memset(w, 0, (size_t)n * sizeof *w); /* what the table's last entry would give */
            continue;
        }
        weigh_block(x + at, n, top, scale, w);
        sum += sum_of(w, n);
    }
    area->sums[slice] = sum;
}

/* Candidates: ids, ascending, of all logits whose key is at least that of the k-th largest; returns how many. */
static int32_t top_candidates(const float *x, int32_t vocab, int32_t k, const row_area *area) {
    int32_t blocks = blocks_of(vocab), n = 0, floor = INT32_MIN, *keys = (int32_t *)(void *)area->spare;
    if (k < blocks) { /* k blocks have maxima of at least `floor`, so k logits do: no lesser one is in the top k */
        memcpy(keys, area->maxima, (size_t)blocks * sizeof *keys);
        floor = select_key(keys, blocks, k);
    }
    for (int32_t block = 0; block < blocks; block++) {
        if (area->maxima[block] < floor)
            continue;
        int32_t end = min32((block + 1) * BLOCK, vocab);
        for (int32_t i = block * BLOCK; i < end; i++) {
            int32_t key = key_of(x[i]);
            area->ids[n] = i;
            keys[n] = key;
            n += key >= floor;
        }
    }
    int32_t kth = select_key(keys, n, k), kept = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t id = area->ids[i];
        area->ids[kept] = id;
        kept += key_of(x[id]) >= kth;
    }
    return kept;
}

/* Keeps the candidates (ids; those of w) whose weight is at least `floor`. */
static int32_t keep_heavy(const row_area *area, int32_t n, int64_t floor) {
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        int64_t weight = area->w[i];
        area->ids[kept] = area->ids[i];
        area->w[kept] = weight;
        kept += weight >= floor;
    }
    return kept;
}

/* All tokens whose weight is at least `floor` as candidates; in place, since none is moved up. */
static int32_t gather_heavy(const row_area *area, int32_t vocab, int64_t floor) {
    int32_t n = 0;
    for (int32_t i = 0; i < vocab; i++) {
        int64_t weight = area->w[i];
        area->ids[n] = i;
        area->w[n] = weight;
        n += weight >= floor;
    }
    return n;
}

static int64_t target_of(const ci_choice *choice, int64_t total) {
    u128 bits = random_bits(choice->seed, (uint32_t)choice->choice, (uint32_t)choice->position);
    return (int64_t)((bits * (u128)(uint64_t)total) >> 64);
}

/* The first index at which the running sum passes the target. */
static int32_t find_passing(const int64_t *w, int64_t target) {
    int32_t i = 0;
    for (; w[i] <= target; i++)
        target -= w[i];
    return i;
}

static int32_t draw_from_all(const ci_choice *choice, const row_area *area, int64_t total) {
    int64_t target = target_of(choice, total);
    int32_t slice = find_passing(area->sums, target);
    for (int32_t i = 0; i < slice; i++)
        target -= area->sums[i];
    return slice * SLICE + find_passing(area->w + slice * SLICE, target);
}

static double scale_of(double temperature) {
    return STEPS * 1.4426950408889634 / temperature;
}

/* Weights of the candidates. */
static void weigh_candidates(const float *x, double top, double temperature, const row_area *area, int32_t n) {
    float *values = (float *)(void *)area->spare;
    for (int32_t i = 0; i < n; i++)
        values[i] = x[area->ids[i]];
    for (int32_t at = 0; at < n; at += BLOCK)
        weigh_block(values + at, min32(BLOCK, n - at), top, scale_of(temperature), area->w + at);
}

/* Whether all tokens pass top-k, so that all weights are computed. */
static int32_t is_wide(const ci_choice *choice, int32_t vocab) {
    return choice->temperature > 0 && (choice->top_k <= 0 || choice->top_k >= vocab);
}

static int32_t draw(const ci_choice *choice, const float *x, int32_t vocab, double top, const row_area *area) {
    int32_t n = vocab, wide = is_wide(choice, vocab);
    int64_t total = 0;
    if (wide) {
        total = sum_of(area->sums, slices_of(vocab));
        if (choice->top_p >= 1 && choice->min_p <= 0)
            return draw_from_all(choice, area, total);
    } else {
        n = top_candidates(x, vocab, choice->top_k, area);
        weigh_candidates(x, top, choice->temperature, area, n);
        total = sum_of(area->w, n);
    }
    int64_t light = choice->min_p > 0 ? portion(choice->min_p, INT64_C(1) << WEIGHT_BITS) : 0;
    /* Those lighter than (1-p)/n of all have less than 1-p together, so top-p keeps none of them. */
    int64_t floor = choice->top_p < 1 ? (total - portion(choice->top_p, total)) / n : light;
    n = wide ? gather_heavy(area, vocab, floor) : keep_heavy(area, n, floor);
    if (choice->top_p < 1) {
        memcpy(area->spare, area->w, (size_t)n * sizeof *area->w);
        floor = select_weight(area->spare, n, portion(choice->top_p, total));
        n = keep_heavy(area, n, floor > light ? floor : light);
    }
    return area->ids[find_passing(area->w, target_of(choice, sum_of(area->w, n)))];
}

/* The first token of the largest logit. */
static int32_t first_with(const float *x, int32_t key, const row_area *area) {
    int32_t i = 0;
    while (area->maxima[i] != key)
        i++;
    for (i *= BLOCK; key_of(x[i]) != key;)
        i++;
    return i;
}

static void choose(ci_choice *choice, const float *x, int32_t vocab, const row_area *area) {
    int32_t top = largest_key(area->maxima, blocks_of(vocab));
    if (!is_finite_key(top))
        choice->token = -1;
    else if (choice->temperature > 0)
        choice->token = draw(choice, x, vocab, value_of(top), area);
    else
        choice->token = first_with(x, top, area);
}

/* The n most likely tokens, equals by id, into the lists. */
static void list_top(const ci_scoring *s, ci_score *score, const float *x, const row_area *area) {
    int32_t n = min32(score->n, s->vocab), found = top_candidates(x, s->vocab, n, area), length = 0;
    int32_t *ids = s->ids + score->list_begin, *ranks = s->ranks + score->list_begin;
    float *values = s->values + score->list_begin;
    for (int32_t i = 0; i < found; i++) {
        int32_t id = area->ids[i], at = length;
        if (length == n && x[id] <= values[n - 1])
            continue;
        for (at -= length == n; at > 0 && values[at - 1] < x[id]; at--) {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
        }
        values[at] = x[id];
        ids[at] = id;
        length += length < n;
    }
    for (int32_t i = 0; i < n; i++)
        ranks[i] = i > 0 && values[i] == values[i - 1] ? ranks[i - 1] : i + 1;
    score->listed = n;
}

static void score_row(const ci_scoring *s, ci_score *score, const float *x, const row_area *area) {
    int32_t blocks = blocks_of(s->vocab), top = largest_key(area->maxima, blocks), own = key_of(x[score->token]);
    score->total = is_finite_key(top) ? sum_of(area->sums, slices_of(s->vocab)) : -1;
    score->top = value_of(top);
    score->value = x[score->token];
    score->listed = 0;
    score->rank = 1;
    for (int32_t block = 0; block < blocks; block++) {
        int32_t end = min32((block + 1) * BLOCK, s->vocab);
        for (int32_t i = block * BLOCK; area->maxima[block] > own && i < end; i++)
            score->rank += key_of(x[i]) > own;
    }
    if (score->n > 0 && score->total >= 0)
        list_top(s, score, x, area);
}

typedef struct group {
    const float *logits;
    int32_t vocab;
    int32_t first; /* row of the call */
    int32_t rows;  /* at most one per thread */
    char *workspace;
} group;

static row_area area_of(const group *g, int32_t i) {
    return area_at(g->workspace + row_bytes(g->vocab) * i, g->vocab);
}
static const float *row_at(const group *g, int32_t row) {
    return g->logits + (int64_t)row * g->vocab;
}

static void sample_rows(const ci_team *team, void *argument) {
    const ci_sampling *s = argument;
    int32_t slices = slices_of(s->vocab), begin, end;
    group g = {.logits = s->logits, .vocab = s->vocab, .workspace = s->workspace};
    for (; g.first < s->n; g.first += team->n) {
        ci_choice *choices = s->choices + g.first;
        g.rows = min32(team->n, s->n - g.first);
        ci_team_share(team, g.rows * slices, &begin, &end);
        for (int32_t i = begin; i < end; i++) {
            row_area area = area_of(&g, i / slices);
            slice_maxima(row_at(&g, choices[i / slices].row), g.vocab, i % slices, &area);
        }
        ci_team_meet(team);
        int32_t wide = 0;
        for (int32_t i = 0; i < g.rows; i++)
            wide |= is_wide(&choices[i], g.vocab);
        for (int32_t i = begin; wide && i < end; i++) {
            const ci_choice *choice = &choices[i / slices];
            row_area area = area_of(&g, i / slices);
            if (is_wide(choice, g.vocab))
                slice_weights(row_at(&g, choice->row), g.vocab, i % slices, scale_of(choice->temperature), &area, 1);
        }
        if (wide)
            ci_team_meet(team);
        if (team->id < g.rows) {
            row_area area = area_of(&g, team->id);
            choose(&choices[team->id], row_at(&g, choices[team->id].row), g.vocab, &area);
        }
        ci_team_meet(team);
    }
}

static void score_rows(const ci_team *team, void *argument) {
    const ci_scoring *s = argument;
    int32_t slices = slices_of(s->vocab), begin, end;
    group g = {.logits = s->logits, .vocab = s->vocab, .workspace = s->workspace};
    for (; g.first < s->n; g.first += team->n) {
        ci_score *scores = s->scores + g.first;
        g.rows = min32(team->n, s->n - g.first);
        ci_team_share(team, g.rows * slices, &begin, &end);
        for (int32_t i = begin; i < end; i++) {
            row_area area = area_of(&g, i / slices);
            slice_maxima(row_at(&g, scores[i / slices].row), g.vocab, i % slices, &area);
        }
        ci_team_meet(team);
        for (int32_t i = begin; i < end; i++) {
            row_area area = area_of(&g, i / slices);
            slice_weights(row_at(&g, scores[i / slices].row), g.vocab, i % slices, scale_of(1.0), &area, 0);
        }
        ci_team_meet(team);
        if (team->id < g.rows) {
            row_area area = area_of(&g, team->id);
            score_row(s, &scores[team->id], row_at(&g, scores[team->id].row), &area);
        }
        ci_team_meet(team);
    }
}

/* Each row's edited logits and the edits change places; again, and all is as before. */
static void swap_edits(const ci_sampling *s) {
    for (int32_t i = 0; i < s->n; i++) {
        float *x = s->logits + (int64_t)s->choices[i].row * s->vocab;
        for (int32_t e = s->choices[i].edit_begin; e < s->choices[i].edit_end; e++) {
            float before = x[s->edit_ids[e]];
            x[s->edit_ids[e]] = s->edit_values[e];
            s->edit_values[e] = before;
        }
    }
}

/* How many threads are worth waking for logits of which some are weighed, too. */
static int32_t useful_threads(int64_t looked_at, int64_t weighed, int32_t n_threads) {
    return looked_at + WEIGHING * weighed < ALONE ? 1 : n_threads;
}

void ci_sample(const ci_sampling *sampling) {
    int64_t looked_at = (int64_t)sampling->n * sampling->vocab, weighed = 0;
    for (int32_t i = 0; i < sampling->n; i++)
        weighed += is_wide(&sampling->choices[i], sampling->vocab) ? sampling->vocab : 0;
    swap_edits(sampling);
    ci_team_run(useful_threads(looked_at, weighed, sampling->n_threads), sample_rows, (void *)(uintptr_t)sampling);
    swap_edits(sampling);
}

void ci_score_tokens(const ci_scoring *scoring) {
    int64_t logits = (int64_t)scoring->n * scoring->vocab;
    ci_team_run(useful_threads(logits, logits, scoring->n_threads), score_rows, (void *)(uintptr_t)scoring);
}
