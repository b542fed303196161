/* The whole C interface of libcpuinfer_<isa>.so. Read twice: by the compiler and by cffi's cdef, so this file holds
 * bare enums, structs and prototypes only (no #include, no macro, no attribute). */

/* Element types. Weight types carry their GGUF numbers, so no second table maps them. */
enum ci_type {
    CI_F32 = 0,
    CI_F16 = 1,
    CI_Q4_0 = 2,
    CI_Q4_1 = 3,
    CI_Q5_0 = 6,
    CI_Q5_1 = 7,
    CI_Q8_0 = 8,
    CI_Q2_K = 10,
    CI_Q3_K = 11,
    CI_Q4_K = 12,
    CI_Q5_K = 13,
    CI_Q6_K = 14,
    CI_IQ4_NL = 20,
    CI_IQ4_XS = 23,
    CI_I8 = 24, /* of KV pages alone: int8 with a scale per token and kv head */
    CI_BF16 = 30,
    CI_MXFP4 = 39,
    /* Activations as int8: one row of width n (n % 32 == 0) is [n int8 q][n/32 f32 scale d][n/32 int32 s, the sum of a
     * block's q][n/32 f32 d * (float)s][n/32][2] int16 sums of the block's halves; rows are ci_q8_row_bytes(n) apart.
     * Never a weight type. */
    CI_Q8A = 1000
};

enum ci_op_kind {
    CI_OP_EMBED = 1,           /* out[t] = row tokens[t] of w[0] */
    CI_OP_RMSNORM = 2,         /* out = in[0] / sqrt(mean(in[0]^2) + eps) * w[0] */
    CI_OP_QUANTIZE = 3,        /* out = in[0] in out_type (CI_Q8A or CI_BF16) */
    CI_OP_MATMUL = 4,          /* out = in[0] @ w[0]^T (+ in[1] where in[1] is not null) */
    CI_OP_MATMUL_SWIGLU = 5,   /* out = silu(in[0] @ w[0]^T) * (in[0] @ w[1]^T) */
    CI_OP_MATMUL_QKV_ROPE = 6, /* q, k, v = in[0] @ w[0..2]^T; out = rope(q); KV pages of layer <- rope(k), v */
    CI_OP_ROPE = 7,            /* out = rope(in[0]), heads of head_dim */
    CI_OP_KV_WRITE = 8,        /* KV pages of layer <- in[0] (k), in[1] (v) */
    CI_OP_ATTENTION = 9, /* out = softmax(cap(scale * in[0] @ K^T), causal) @ V over the pages of layer; w[0], if any:
                            [heads] logits that take part in the softmax with a value of zero */
    CI_OP_ADD = 10,      /* out = in[0] + in[1] */
    CI_OP_SWIGLU = 11,   /* out = silu(in[0]) * in[1] */
    CI_OP_TAKE_ROWS = 12 /* out[r] = in[0][logit_rows[r]] */
};

/* A matrix [n, k] in the packed r16k4 layout of its type, or (type CI_F32, k == 1) a plain vector of n floats. */
typedef struct ci_weight {
    const void *data;
    int32_t type;
    int32_t n;
    int32_t k;
    int32_t unused;
} ci_weight;

typedef struct ci_op {
    int32_t kind;             /* ci_op_kind */
    int32_t barrier_before;   /* 1: the team meets before this op starts, in a step that is not small */
    int32_t barrier_if_small; /* 1: the same, in a small step (ci_run says what that is) */
    int32_t out_slot;   /* s > 0: in a small step each thread writes the whole of out into slot s of its own memory */
    int32_t in_slot[2]; /* and reads in[i] there; 0: out and in[i] are the team's in every step */
    int32_t rows_are_logits; /* 0: the op runs over the T tokens; 1: over the R rows that need logits */
    int32_t n;               /* output width */
    int32_t k;               /* input width */
    int32_t in_type;         /* ci_type of in[0] */
    int32_t out_type;        /* ci_type of out */
    int32_t heads;           /* query heads (ROPE: heads in the row) */
    int32_t kv_heads;
    int32_t head_dim;
    int32_t layer;
    int32_t window; /* ATTENTION: keys that a query sees, its own included; 0: all up to its own */
    float eps;
    float scale;
    float softcap; /* ATTENTION: c > 0 makes a score s c * tanh(s / c); 0: none */
    const void *in[2];
    void *out;
    const float *rope; /* [positions][2][head_dim]: cos, then sin with the sign of the pair (-sin, +sin) */
    ci_weight w[3];
} ci_op;

/* KV pages. What page p has of kv head h of layer l starts at data + l * layer_bytes + h * head_bytes + p * page_bytes
 * and holds 16 tokens: K as [head_dim][16], then, k_bytes further, V as [16][head_dim], both of element type `type`.
 * CI_I8 (q = nearest even of x * (127 / amax), amax that of the token's head): then, k_bytes further, [2][16] f32, the
 * amax / 127 of the 16 tokens' keys and of their values. */
typedef struct ci_kv {
    void *data;
    int64_t layer_bytes;
    int64_t head_bytes;
    int64_t page_bytes;
    int64_t k_bytes;
    int32_t type;
    int32_t n_pages;
} ci_kv;

/* One step. Sequence s owns tokens q_indptr[s] .. q_indptr[s+1]-1; the key at position p of sequence s lives in page
 * block_tables[s * block_stride + p / 16], lane p % 16. Positions of a sequence's tokens are consecutive. */
typedef struct ci_batch {
    int32_t n_tokens;
    int32_t n_seqs;
    int32_t n_rows;
    int32_t block_stride;
    const int32_t *tokens;       /* [T] */
    const int32_t *positions;    /* [T] */
    const int32_t *q_indptr;     /* [S+1] */
    const int32_t *block_tables; /* [S][block_stride] */
    const int32_t *logit_rows;   /* [R] token indices */
} ci_batch;

/* How far ahead products of few tokens fetch their weights, in bytes: see simd/isa.toml. Any value gives the same
 * results. */
typedef struct ci_fetch_ahead {
    int64_t stream, tile;
} ci_fetch_ahead;

typedef struct ci_program {
    const ci_op *ops;
    int32_t n_ops;
    int32_t n_threads; /* of the next step: at most those that the workspace is for */
    ci_kv kv;
    void *workspace; /* 64-byte aligned; n_threads private areas, then one shared area; nothing in it outlives a step */
    int64_t thread_bytes;
    int64_t shared_bytes;
    ci_fetch_ahead fetch_ahead;
    double *op_seconds; /* null, or [n_ops]: each op's time as thread 0 saw it is added here */
    double *waited;     /* null, or the seconds that thread 0 waited for others longer than a moment are added here */
} ci_program;

/* Whether this library can run the ops over KV pages of an element type: 0, or a negative number: -1 an unknown op, -2
 * a type the op has no kernel for. */
int32_t ci_check(const ci_op *ops, int32_t n_ops, int32_t kv_type);

/* Whether a batch of n_tokens > 0 tokens and n_seqs > 0 sequences keeps what ci_batch promises, with tokens, positions
 * and pages below these ends: 1 or 0. */
int32_t ci_batch_is_sound(const ci_batch *batch, int32_t vocab, int32_t max_context, int32_t n_pages);

/* Run one step. Returns what ci_check returns; unless that is 0 nothing was run. A step is small where ops with an
 * out_slot have so few values that a barrier costs more than for each thread to compute all of them; the results are
 * the same. A step without logit rows ends with the last op that writes KV. */
int32_t ci_run(const ci_program *program, const ci_batch *batch);

/* Bytes of workspace that ci_run needs: private per thread, and shared. max_tokens and max_context bound any batch. */
int64_t ci_thread_bytes(const ci_op *ops, int32_t n_ops, int32_t max_tokens);
int64_t ci_shared_bytes(const ci_op *ops, int32_t n_ops, int32_t n_threads, int32_t max_tokens, int32_t max_context);

/* How one row of logits becomes a token: what filters do, and in which order, is said in cpuinfer/engine/sampler.py. */
typedef struct ci_choice {
    double temperature; /* 0: the largest logit, the lowest id of equals */
    double top_p;       /* in (0, 1] */
    double min_p;       /* in [0, 1] */
    uint64_t seed;
    int32_t choice; /* a draw depends on (seed, choice, position) */
    int32_t position;
    int32_t row;        /* of the logits; every choice has its own */
    int32_t top_k;      /* 0: off */
    int32_t edit_begin; /* logits that are others for this choice: edits edit_begin .. edit_end - 1, each of one id */
    int32_t edit_end;
    int32_t token; /* out: the token; -1 where the largest logit is not finite */
    int32_t unused;
} ci_choice;

typedef struct ci_sampling {
    float *logits; /* [rows][vocab], as they were when ci_sample returns */
    int32_t vocab; /* at most 2^18, so that sums of weights fit 62 bits */
    int32_t n;
    int32_t n_threads;
    ci_choice *choices;      /* [n] */
    const int32_t *edit_ids; /* [edits] */
    float *edit_values;      /* [edits] */
    void *workspace;         /* 64-byte aligned, ci_sample_bytes() long */
} ci_sampling;

/* Choose n tokens. */
void ci_sample(const ci_sampling *sampling);

/* How likely a token is after one row of logits, and the most likely ones. */
typedef struct ci_score {
    int32_t row;
    int32_t token;
    int32_t n;          /* tokens to list */
    int32_t list_begin; /* where, in the lists of ci_scoring */
    int64_t total;      /* out: sum of all weights at temperature 1; -1 where the largest logit is not finite */
    float top;          /* out: the largest logit */
    float value;        /* out: the token's */
    int32_t rank;       /* out: of the token, from 1 up; equals share the first's */
    int32_t listed;     /* out: min(n, vocab) */
} ci_score;

typedef struct ci_scoring {
    const float *logits;
    int32_t vocab;
    int32_t n;
    int32_t n_threads;
    ci_score *scores; /* [n] */
    int32_t *ids;     /* out: the most likely tokens of every score, equals by id; then their ranks and logits */
    int32_t *ranks;
    float *values;
    void *workspace;
} ci_scoring;

/* Score n tokens. */
void ci_score_tokens(const ci_scoring *scoring);

/* Bytes of workspace for either. */
int64_t ci_sample_bytes(int32_t vocab, int32_t n_threads);

/* Bytes of one CI_Q8A row of width n. */
int64_t ci_q8_row_bytes(int32_t n);

/* The level's name, e.g. "avx2", and its build map: one "header<TAB>folder" line per header it resolved. */
const char *ci_level(void);
const char *ci_build_map(void);

/* For measuring the machine's ceilings. n is a multiple of 128; each thread has its own share of x, always the same.
 * ci_fill writes `value` everywhere: 0, or -1 for another n. ci_read returns the sum of x times repetitions (exact for
 * whole numbers while it stays below 2^28), every thread reading its share as `streams` (1, 2 or 4) runs side by side;
 * -1 for other arguments. */
int32_t ci_fill(float *x, int64_t n, int32_t n_threads, float value);
int64_t ci_read(const float *x, int64_t n, int32_t n_threads, int32_t streams, int32_t repetitions);

/* Products by this level's instructions, on as many independent sums as its kernels keep. Bare: f32, and int8 with
 * 4-bit and with 8-bit codes. As the kernels run them, loads included (blocks): bf16 pairs, and the same of int8. */
enum ci_peak_kind {
    CI_PEAK_F32 = 0,
    CI_PEAK_INT4 = 1,
    CI_PEAK_INT8 = 2,
    CI_PEAK_BF16_BLOCKS = 3,
    CI_PEAK_INT4_BLOCKS = 4,
    CI_PEAK_INT8_BLOCKS = 5
};

/* Run them on n_threads threads. Returns the operations done (a multiplication and an addition are two): 0 where the
 * level has no bare sequence, -1 for an unknown kind. */
int64_t ci_peak(int32_t kind, int32_t n_threads, int64_t repetitions);

/* The self-test: single kernels run on one thread over numbers of an integer generator. ci_selftest_name: case i's,
 * null after the last. ci_selftest_run: a hash of all that case i's kernels wrote, the same on every level; 0 where one
 * refused. memory: ci_selftest_bytes() long. */
int64_t ci_selftest_bytes(void);
const char *ci_selftest_name(int32_t index);
uint64_t ci_selftest_run(int32_t index, void *memory);
