/* SPDX-License-Identifier: MIT */
/*
 * Inside of the CPU backend: the opened device and the table of inner kernels.
 *
 * An operation (op-*.c) holds its formula, finds the data (rings, pages, batch), splits the work over the pool and
 * calls kernels for the inner loops. The kernels are what the fast paths replace; the table is filled once, by open,
 * for the numerics and instruction set, and is never changed after that.
 *
 * Rules for every kernel, plain or fast:
 *  - One output value is one sum (or one running softmax) in an order that depends on the shapes alone: not on the
 *    number of activations n, on `first`/`end`, on the thread or on what else is in the batch.
 *  - The kernels of all instruction sets that share a layout id and numerics give the same bits. For "rows16" (weights of
 *    16 output rows interleaved, so that a SIMD lane owns a row and adds up column after column) this comes by itself:
 *    plain C with fmaf(), AVX2 and AVX-512 then do the same operations in the same order.
 *  - They touch only what they are given; `scratch` is the calling thread's, backend.scratch_bytes long, 64-byte aligned.
 *  - The control word (FTZ, DAZ) stays as it is for NUMERICS_EXACT, where results are plain IEEE. A fast path that wants
 *    it otherwise sets it on entry and puts it back.
 */
#pragma once

#include "backends/backend.h"
#include "backends/cpu/pool.h"

/* Heads of one token that attend() gets at once: an item of work. Decoding a row is shared by this many. */
#define ATTEND_HEADS 8
/* Keys of one attend() call; all but a query's last call have exactly this many. */
#define ATTEND_KEYS 32
/* Every split of the rows of a matrix over threads is at multiples of this many rows. */
#define ROW_GROUP 16

/* y[yi[i]][r] = W[r] . x[xi[i]] for i < n and the rows r that the kernel is called for. */
struct cpu_matmul {
    const struct weight *w;
    uint32_t n;          /* activations */
    const uint8_t *x;    /* what `activation` made, or the float32 rows themselves where activation_bytes is 0 */
    size_t x_stride;     /* bytes */
    const uint32_t *xi;  /* [n], or NULL for 0, 1, 2, ... */
    float *y;
    size_t y_stride;     /* floats */
    const uint32_t *yi;  /* [n], or NULL */
};

/* The running softmax of up to ATTEND_HEADS heads of one query. */
struct cpu_attend {
    const struct model_shape *shape;
    const struct kv_layout *kv;
    uint32_t heads;
    const float *q;      /* [heads][c] */
    float scale;         /* of a score */
    float *max, *sum;    /* [heads]; at first the sink and 1 */
    float *acc;          /* [heads][c]; at first 0 */
};

struct cpu_kernels {
    const char *isa;       /* "plain", "avx2", "avx512" */
    const char *layout_id; /* "plain": as stored; "rows16" */

    /* As in backend_ops. WEIGHT_F32 is as stored in every layout (vectors are F32 matrices of one row). */
    int (*layout)(enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret);
    void (*pack)(enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part, uint32_t row, uint32_t n,
                 const void *src, void *dst);
    /* One row as float32 (embedding). out: [w->cols] */
    void (*row)(const struct weight *w, uint32_t row, float *out);

    /* Activations are prepared once per operation and then used by all rows: bytes for one row of `cols` values (a
     * multiple of 64), or 0 if the matmul of that type takes float32 rows as they are. */
    size_t (*activation_bytes)(enum weight_type type, uint32_t cols);
    void (*activation)(enum weight_type type, uint32_t cols, const float *x, void *out);

    /* Rows first .. end - 1, and no others; first is a multiple of ROW_GROUP, end may be anything. Used by linear,
     * grouped_linear (a call per group), moe (a call per expert), route, logits, hc_*. Indexed by enum weight_type. */
    void (*matmul[4])(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);

    /* out = weight * silu(min(gate, limit)) * clamp(up, limit). All: [n]; out may be gate. */
    void (*swiglu)(uint32_t n, const float *gate, const float *up, float weight, float limit, float *out);

    /* Goes on with the running softmax over n <= ATTEND_KEYS more rows in KV row format, in this order. */
    void (*attend)(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch);

    /* Index query of one token, prepared for index_scores: bytes (a multiple of 64), or 0 if that takes float32. iq:
     * [ih][index_dim], already rounded to e2m1. */
    size_t (*index_query_bytes)(const struct model_shape *shape);
    void (*index_query)(const struct model_shape *shape, const float *iq, void *out);
    /* score[i] = sum over heads of weight[head] * relu(iq[head] . row i) for n consecutive index rows (row_bytes apart).
     * weight: [ih], already scaled. */
    void (*index_scores)(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                         const uint8_t *row, size_t row_bytes, float *score, void *scratch);

    /* Scratch per thread that the kernels above need. */
    size_t (*scratch_bytes)(const struct model_shape *shape);
};

/* Exact numerics, layout "plain"; kernel-plain.c. */
extern const struct cpu_kernels cpu_kernels_exact;

/* Kernels for NUMERICS_FAST: isa as in backend_params. fast.c. -EINVAL: no such isa; -ENOTSUP: not on this machine. */
int cpu_kernels_fast(const char *isa, const struct cpu_kernels **ret, struct fail *f);

/* Where a batch's token lies. */
struct cpu_token {
    uint32_t seq, position;
};

struct backend {
    enum numerics numerics;
    const struct model_shape *shape;
    const struct kv_layout *kv;
    uint32_t max_tokens;
    const struct cpu_kernels *k;
    struct pool *pool;

    /* The batch of this step. */
    const struct backend_batch *batch;
    struct cpu_token *token; /* [max_tokens] */
    float *rotation[2];      /* [max_tokens][r]: cos, sin of each pair; by theta */

    /* Scratch of operations, sized at open. */
    uint8_t *scratch;        /* [threads][scratch_bytes] */
    size_t scratch_bytes;
    uint8_t *activation;     /* prepared activations of one operation */
    float *small;            /* [max_tokens][small_width]: mHC mixes, router scores */
    uint32_t small_width;
    float *compressed;       /* [max_tokens][max(c, index_dim)]: entries completed in this step, by their last token */
    float *score;            /* [score_count] index scores */
    size_t score_count;
    uint8_t *index_query;    /* [max_tokens][index_query_bytes] */
    uint32_t *index_item;    /* [max_tokens] first item of work of a token */
    size_t *index_score;     /* [max_tokens] where its scores are in score */
    float index_scale;       /* index_dim^-1/2 * index_heads^-1/2 */
    struct moe_scratch *moe;
};

static inline void *cpu_scratch(const struct backend *b, uint32_t thread)
{
    return b->scratch + thread * b->scratch_bytes;
}
