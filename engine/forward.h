/* SPDX-License-Identifier: MIT */
/*
 * A loaded model and its forward pass, written once over backends/backend.h. One thread at a time.
 */
#pragma once

#include "engine/kv.h"
#include "engine/weights.h"

struct model_options {
    const char *device;      /* NULL: "cpu" */
    enum numerics numerics;
    const char *isa;         /* see backend_params; NULL: best */
    uint32_t threads;        /* 0: one per core */
    uint32_t max_step_tokens; /* 0: MODEL_STEP_TOKENS */
    uint32_t context_tokens; /* longest session; 0: what the model allows */
    uint64_t kv_bytes;       /* page pool; 0: enough for one session of context_tokens, at least 64 MiB and at most half
                                of the free memory */
    uint32_t sessions;       /* states; 0: MODEL_SESSIONS */
    struct load_options load;
};
#define MODEL_STEP_TOKENS 512
#define MODEL_SESSIONS 64

struct model {
    struct checkpoint *checkpoint;
    const struct model_shape *shape;
    const struct backend_ops *ops;
    struct backend *backend;
    struct model_weights *weights;
    struct kv_layout kv;
    struct kv_pool *pool;
    struct forward *forward; /* scratch of a step, allocated once */
    uint32_t context_tokens, max_step_tokens;
};

int model_open(const char *directory, const struct model_options *o, struct model **ret, struct fail *f);
struct model *model_free(struct model *m);
DEFINE_CLEANUP(struct model *, model_free)

/* One session's part of a step. */
struct step_part {
    struct kv_session *session;
    const uint32_t *token;   /* [count] ids, < vocab */
    uint32_t count;          /* >= 1 */
    uint32_t logit_rows;     /* logits wanted of the last so many tokens, 0 .. count */
};

/* What a test may look at between layers; names as in reference.py --dump: "layer3.attn", "layer3.ffn",
 * "layer3.streams". data: host memory [tokens][width]. */
typedef void (*forward_watch)(const char *name, const float *data, uint32_t tokens, uint32_t width, void *userdata);

/*
 * Runs one ragged batch: appends each part's tokens to its session. Total tokens <= max_step_tokens; a session appears
 * once. logits: host memory, [sum of logit_rows][vocab], in the order of the parts, float32; may be NULL if none wanted.
 * On failure no session has changed as seen from outside (-ENOSPC: KV_FULL, before any work), except after -EIO.
 */
int forward_step(struct model *m, const struct step_part *part, uint32_t n_parts, float *logits, struct fail *f);
void forward_set_watch(struct model *m, forward_watch watch, void *userdata);

/* Prefill of any length in chunks of at most max_step_tokens; logits of the last token only, [vocab] (or NULL). */
int forward_prefill(struct model *m, struct kv_session *s, const uint32_t *token, uint32_t n, float *logits,
                    struct fail *f);

/* For model.c: the scratch of a step, and how many bytes of device memory it takes. */
uint64_t forward_scratch_bytes(const struct model_shape *shape, const struct kv_layout *kv, uint32_t max_step_tokens);
int forward_new(struct model *m, struct forward **ret, struct fail *f);
struct forward *forward_free(struct forward *fw, const struct backend_ops *ops, struct backend *b);
