/* SPDX-License-Identifier: MIT */
/*
 * All weights of one model in one arena (a memfd), in the layout of its backend. The plan says where each tensor goes;
 * the loader fills it; the rest of the engine sees `struct model_weights`.
 *
 * Arena: header (format version, backend name, layout id, numerics, digest of the checkpoint, table of tensors), then
 * the parts, each aligned to WEIGHT_ALIGN. Norms and biases become F32 vectors; tid2eid becomes uint32 with every entry
 * checked < experts (BAD_TENSOR). An arena is valid for exactly that header.
 */
#pragma once

#include "engine/checkpoint.h"

struct layer_weights {
    struct hc_weights hc_attn, hc_ffn;
    const float *attn_norm, *ffn_norm;            /* [d] */
    struct weight wq_a, wq_b, wkv, wo_a, wo_b;
    const float *q_norm, *kv_norm, *attn_sink;    /* [q_rank], [c], [h] */
    struct weight compressor_wkv, compressor_wgate; /* ratio != 0 */
    struct compressor_weights compressor;
    struct weight index_wq_b, index_weights;      /* ratio 4 */
    struct weight index_wkv, index_wgate;
    struct compressor_weights index_compressor;
    struct weight gate;                           /* [E][d] */
    const float *gate_bias;                       /* [E], or NULL: hash layer */
    const uint32_t *gate_table;                   /* [vocab][used], or NULL */
    struct moe_weights moe;
};

struct model_weights {
    struct weight embed, head;
    struct hc_weights hc_head;
    const float *norm;
    struct layer_weights *layer; /* [layers] */
    int arena_fd;
    void *arena;                 /* mapped, host */
    size_t arena_bytes;
};

struct load_progress {
    uint64_t done_bytes, total_bytes; /* of the shards */
    uint64_t elapsed_usec;
};

struct load_options {
    bool no_uring;               /* use the pread path */
    uint32_t threads;            /* that repack; 0: one per core */
    /* Called from the loading thread, at most every 50 ms and once at the end; non-zero return cancels (-ECANCELED). */
    int (*progress)(const struct load_progress *p, void *userdata);
    void *userdata;
    /* Set by the call: which way it went. */
    bool used_uring, used_direct;
};

/* Reads and repacks the whole checkpoint. options may be NULL. */
int weights_load(const struct checkpoint *c, const struct backend_ops *ops, struct backend *b,
                 struct load_options *options, struct model_weights **ret, struct fail *f);
struct model_weights *weights_free(struct model_weights *w);
DEFINE_CLEANUP(struct model_weights *, weights_free)

/* How large the arena will be, without loading: for dsv4-eval inspect and admission. */
int weights_arena_bytes(const struct checkpoint *c, const struct backend_ops *ops, struct backend *b, uint64_t *ret,
                        struct fail *f);
