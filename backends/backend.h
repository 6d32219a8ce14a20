/* SPDX-License-Identifier: MIT */
/*
 * The one interface to a device. engine/forward.c is written over it once; backends/cpu, cuda and ascend implement it.
 *
 * Formulas: docs/model.md (from arXiv 2606.19348 and the released inference code). All activations that cross this
 * interface are float32, row-major, in device memory; a backend rounds or quantises inside an operation as its numerics
 * say. Shapes in brackets; T is the number of tokens of the step, d = hidden, n = hc streams, h = heads, c = head_dim,
 * r = rope dims.
 *
 * Contract of every operation, for NUMERICS_EXACT and NUMERICS_FAST alike: the result for one token depends only on
 * that token's inputs and its session's state. It is the same to the last bit whatever else is in the batch, however a
 * prompt was cut into chunks, and however many threads there are. So every sum has a fixed order of its own.
 *
 * Operations of one backend are called from one thread and run in the order called; they may be asynchronous: results
 * are readable on the host only after sync(). Return 0 or a negative errno; -EIO: the device failed and this backend is
 * of no more use. Arguments are the engine's own and already checked: backends do not validate them again.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

#define KV_PAGE_TOKENS 128  /* a page holds the compressed rows of this many consecutive tokens of one session */
#define KV_BLOCK 64         /* e4m3 block of a KV row */
#define INDEX_BLOCK 32      /* e2m1 block of an index row, and of an FP4 weight */
#define FP8_BLOCK 128       /* an FP8 weight has one scale per 128 x 128 */
#define HC_MAX 8            /* streams, at most (checked when config.json is read) */
#define MAX_LAYERS 512
#define INDEX_DIM_MAX 4096 /* likewise */

enum numerics {
    NUMERICS_EXACT, /* float32 activations and sums, weights at their stored value */
    NUMERICS_FAST,  /* whatever is fastest within the released kernels' error */
};

/* ---------------------------------------------------------------- the model's dimensions */

/* All from config.json, checked by engine/config.c. */
struct model_shape {
    uint32_t vocab;
    uint32_t hidden;              /* d */
    uint32_t layers;              /* without MTP */
    uint32_t hc;                  /* n, 1 .. HC_MAX */
    uint32_t hc_iterations;       /* sinkhorn: 1 means row softmax and one column division */
    uint32_t heads, head_dim, rope_dim; /* h, c, r; r even, r < c, (c - r) % KV_BLOCK == 0 */
    uint32_t q_rank;
    uint32_t o_groups, o_rank;    /* h % o_groups == 0 */
    uint32_t experts, experts_used, expert_hidden;
    uint32_t hash_layers;         /* the first ones route by table */
    uint32_t window;
    uint32_t index_heads, index_dim, index_topk; /* index_dim a power of two >= INDEX_BLOCK, >= r */
    uint32_t max_position;        /* context limit of the model, in tokens */
    float rms_eps, hc_eps, swiglu_limit, routed_scale;
    uint16_t ratio[MAX_LAYERS];   /* [layers]: 0, 4 (overlapping, with indexer), or another divisor of KV_PAGE_TOKENS */
    const float *theta[2];        /* [r/2] rotation per position: [0] plain, [1] compressed layers (YaRN); host memory */
};

/* ---------------------------------------------------------------- weights */

enum weight_type {
    WEIGHT_BF16,
    WEIGHT_FP8,  /* e4m3 codes; one ue8m0 scale per FP8_BLOCK x FP8_BLOCK, edge blocks partial */
    WEIGHT_FP4,  /* two e2m1 codes a byte, low nibble = even column; one ue8m0 scale per row and 32 columns */
    WEIGHT_F32,  /* mHC functions, [n*(n+2)][n*d], and vectors */
};

/* y[rows] = W[rows][cols] x[cols]. data and scale are device addresses in the layout that the backend chose. */
struct weight {
    enum weight_type type;
    uint32_t rows, cols;
    const void *data;
    const void *scale; /* NULL unless FP8 or FP4 */
};

/* What a backend needs to hold one matrix. Source rows come to pack() in runs that start at a multiple of row_group and
 * are whole groups except at the end of the matrix. scale_group counts rows of the scale tensor likewise. */
struct weight_layout {
    size_t data_bytes, scale_bytes; /* both start at a multiple of WEIGHT_ALIGN */
    uint32_t row_group, scale_group;
};
#define WEIGHT_ALIGN 64

enum weight_part { WEIGHT_DATA, WEIGHT_SCALE };

/* ---------------------------------------------------------------- KV memory */

/*
 * Where a session's state lies; computed once by engine/kv.c (docs/design.md: "KV memory").
 *
 * KV row:    (c - r) bytes e4m3 | (c - r)/64 bytes ue8m0, padded to a multiple of 8 | r values, BF16 (fast) or F32 (exact)
 * index row: index_dim/2 bytes e2m1, low nibble first | index_dim/32 bytes ue8m0
 * page:      per layer with ratio: KV_PAGE_TOKENS/ratio KV rows, then for ratio 4 as many index rows
 * state:     per layer: ring of `window` KV rows, token at position p in slot p % window;
 *            the open windows of the compressor as running softmax sums, float32:
 *              ratio 4:     accumulator[2][3][c]   ([0] the entry being filled, [1] the next one's first half),
 *                           then the same for the index, [2][3][index_dim]
 *              other ratio: accumulator[3][c]
 *            an accumulator is three vectors: running maximum, sum of exp, sum of exp * k.
 *            A maximum of -inf means empty. All-zero memory is NOT a fresh state: state_reset makes one.
 */
struct kv_layout {
    bool rope_f32;
    size_t row_bytes, index_row_bytes;
    size_t page_bytes, state_bytes;      /* both multiples of 64 */
    size_t page_rows[MAX_LAYERS];        /* offset in a page of the layer's KV rows */
    size_t page_index[MAX_LAYERS];       /* and of its index rows (ratio 4) */
    size_t state_ring[MAX_LAYERS];       /* offset in a state of the ring */
    size_t state_open[MAX_LAYERS];       /* accumulators of main rows */
    size_t state_open_index[MAX_LAYERS]; /* and of index rows (ratio 4) */
};

/* One session's part of a step: consecutive positions. */
struct backend_seq {
    uint32_t first, count;  /* its tokens are first .. first + count - 1 of the batch; count >= 1 */
    uint32_t position;      /* of the first one: tokens 0 .. position - 1 are already in the state and pages */
    uint8_t *state;         /* device address, kv_layout.state_bytes */
    const uint32_t *page;   /* host memory: page numbers, [ceil((position + count) / KV_PAGE_TOKENS)] */
};

/* A ragged batch: tokens of many sessions, each session at most once. Valid until the next batch_begin. */
struct backend_batch {
    uint32_t tokens;               /* T >= 1 */
    const uint32_t *id;            /* [T] token ids, < vocab */
    uint32_t n_seqs;
    const struct backend_seq *seq; /* [n_seqs], in order of first, covering 0 .. T-1 without gaps */
    uint8_t *pages;                /* device address of page 0; page i is at pages + i * page_bytes */
};

/* ---------------------------------------------------------------- groups of weights */

struct hc_weights {
    struct weight fn;   /* F32 [n*(n+2)][n*d], or [n][n*d] for the head */
    const float *base;  /* [n*(n+2)] or [n] */
    const float *scale; /* [3] or [1] */
};

struct compressor_weights {
    const float *ape;   /* [ratio][k*width], k = 2 for ratio 4, else 1 */
    const float *norm;  /* [width] */
};

struct expert_weights {
    struct weight gate, up, down; /* w1 [m][d], w3 [m][d], w2 [d][m] */
};

struct moe_weights {
    const struct expert_weights *expert; /* host memory, [experts] */
    struct expert_weights shared;
};

/* ---------------------------------------------------------------- the table */

struct backend; /* one device, opened; owned by its ops */

struct backend_params {
    enum numerics numerics;
    const struct model_shape *shape; /* must outlive the backend */
    const struct kv_layout *kv;      /* likewise */
    uint32_t max_tokens;             /* of one step */
    uint32_t threads;                /* CPU: 0 = one per core this process may use */
    const char *isa;                 /* CPU: NULL = the best here; "plain", "avx2", "avx512" to test others */
};

struct backend_info {
    char name[32];       /* "cpu", "cuda:0" */
    char product[96];    /* for people */
    char layout_id[32];  /* an arena is valid for exactly one backend name, layout id and checkpoint digest */
    uint64_t memory_total, memory_free; /* bytes */
    uint32_t threads;
};

struct backend_ops {
    const char *name;

    int (*open)(const struct backend_params *params, struct backend **ret, struct fail *f);
    void (*close)(struct backend *b); /* NULL is fine */
    void (*info)(struct backend *b, struct backend_info *ret);

    /* ---- weights: called while loading, from any thread, concurrently for different destinations */
    int (*layout)(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret);
    /* Copy n rows (of data or of scales) of the stored tensor, starting at `row`, to their place in host memory at dst,
     * the start of that part of the matrix in the arena. src is unaligned. */
    void (*pack)(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part,
                 uint32_t row, uint32_t n, const void *src, void *dst);
    /* Make arena memory [n bytes, host] usable as device memory; *ret is the device address. CPU: the same address. */
    int (*map_arena)(struct backend *b, void *host, size_t n, void **ret);

    /* ---- memory: never called inside a step. Zeroed, 64-byte aligned. */
    int (*alloc)(struct backend *b, size_t bytes, void **ret);
    void (*free)(struct backend *b, void *p);
    int (*upload)(struct backend *b, void *dst, const void *src, size_t n);
    int (*download)(struct backend *b, void *dst, const void *src, size_t n);
    int (*zero)(struct backend *b, void *dst, size_t n);
    int (*copy)(struct backend *b, void *dst, const void *src, size_t n); /* device to device: pages, states */
    int (*state_reset)(struct backend *b, uint8_t *state); /* a fresh session's state */
    int (*sync)(struct backend *b);

    /* ---- a step */
    int (*batch_begin)(struct backend *b, const struct backend_batch *batch);

    /* X[t][i] = embed[id[t]] for each of the n streams. X: [T][n][d] */
    int (*embed)(struct backend *b, const struct weight *embed, float *X);

    /* mHC mix, collapse and RMS norm. x: [T][d]; post: [T][n]; comb: [T][n][n] row-major (from, to). norm: [d]. */
    int (*hc_pre_norm)(struct backend *b, const float *X, const struct hc_weights *w, const float *norm, float *x,
                       float *post, float *comb);
    /* X_j = post_j y + sum_i comb[i][j] X_i, in place. y: [T][d] */
    int (*hc_post)(struct backend *b, const float *y, const float *post, const float *comb, float *X);

    /* y[k] = W[k] x for `count` matrices that share one input. x: [T][cols]; y[k]: [T][W[k].rows] */
    int (*linear)(struct backend *b, const float *x, uint32_t count, const struct weight *const *w, float *const *y);
    /* Weighted RMS norm, in place. x: [T][width]; norm: [width] */
    int (*norm)(struct backend *b, uint32_t width, const float *norm, float *x);
    /* Each head: RMS norm without weight, then rope on its last r dims, in place. q: [T][h][c] */
    int (*q_norm_rope)(struct backend *b, uint32_t layer, float *q);
    /* RMS norm, rope, rounding; rows[t] in KV row format, to scratch: the ring still holds what the first tokens of this
     * chunk need. kv: [T][c]; norm: [c]; rows: [T][row_bytes] */
    int (*kv_norm_rope_store)(struct backend *b, uint32_t layer, const float *kv, const float *norm, uint8_t *rows);
    /* Feed the compressor: k, s: [T][width * (ratio == 4 ? 2 : 1)], s without ape. Completed entries go to the pages,
     * open windows to the state. index: the indexer's own (Hadamard, e2m1), else the main one. */
    int (*compress_store)(struct backend *b, uint32_t layer, bool index, const float *k, const float *s,
                          const struct compressor_weights *w);
    /* iq: [T][ih][index_dim] before rope (changed in place: rope, Hadamard, rounding); weight: [T][ih] before scaling.
     * chosen: [T][index_topk], the numbers of the chosen entries in ascending order, then UINT32_MAX. All complete
     * entries when there are at most index_topk. */
    int (*index_topk)(struct backend *b, uint32_t layer, float *iq, const float *weight, uint32_t *chosen);
    /* Window, compressed entries and sink; inverse rope on the output. q: [T][h][c]; rows: this chunk's [T][row_bytes];
     * chosen: as above for ratio 4, else NULL; sink: [h]; o: [T][h][c]. Sum order of a query: window, oldest first,
     * then compressed entries ascending. */
    int (*attention)(struct backend *b, uint32_t layer, const float *q, const uint8_t *rows, const uint32_t *chosen,
                     const float *sink, float *o);
    /* Put this chunk's rows into the rings; after attention of the same layer. */
    int (*kv_commit)(struct backend *b, uint32_t layer, const uint8_t *rows);
    /* y[t][g*rank + i] = W[g*rank + i] . x[t][g*cols .. ]. W: [groups*rank][cols]; x: [T][groups*cols] */
    int (*grouped_linear)(struct backend *b, uint32_t groups, const float *x, const struct weight *w, float *y);

    /* Experts of each token. x: [T][d]; gate: [E][d]; exactly one of bias [E] and table [vocab][used] is given.
     * ids, weights: [T][used], by rank (table: in table order). Ties: the lower expert first. */
    int (*route)(struct backend *b, const float *x, const struct weight *gate, const float *bias, const uint32_t *table,
                 uint32_t *ids, float *weights);
    /* Routed experts in rank order, then the shared one. x, y: [T][d] */
    int (*moe)(struct backend *b, const float *x, const uint32_t *ids, const float *weights, const struct moe_weights *w,
               float *y);

    /* Last part, for the n_rows tokens of row[] only (host memory). X: [T][n][d]; x: [n_rows][d] */
    int (*hc_head_norm)(struct backend *b, const float *X, uint32_t n_rows, const uint32_t *row,
                        const struct hc_weights *w, const float *norm, float *x);
    /* out: [n_rows][vocab], device memory */
    int (*logits)(struct backend *b, uint32_t n_rows, const float *x, const struct weight *head, float *out);
};

extern const struct backend_ops backend_cpu;

/* The table for "cpu", "cuda:0", ...; NULL if this build has no such backend. */
const struct backend_ops *backend_find(const char *device);
