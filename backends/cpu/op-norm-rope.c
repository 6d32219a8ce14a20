/* SPDX-License-Identifier: MIT */
/* Norms, rotations, and the window's rows: made in scratch, put into the rings after attention has read those. */
#include <string.h>

#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"

struct norm {
    struct backend *b;
    uint32_t layer, width;
    const float *weight;
    const float *in;
    float *x;
    uint8_t *rows;
};

static const float *rotation_of(const struct backend *b, uint32_t layer, uint32_t t)
{
    return b->rotation[b->shape->ratio[layer] != 0] + (size_t)t * b->shape->rope_dim;
}

static void norm_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct norm *n = arg;
    rms_norm(n->x + (size_t)t * n->width, n->weight, n->width, n->b->shape->rms_eps);
}

int cpu_norm(struct backend *b, uint32_t width, const float *norm, float *x)
{
    struct norm n = {.b = b, .width = width, .weight = norm, .x = x};
    pool_run(b->pool, b->batch->tokens, norm_token, &n);
    return 0;
}

static void q_head(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const struct norm *n = arg;
    const struct model_shape *s = n->b->shape;
    uint32_t t = item / s->heads;
    float *q = n->x + (size_t)item * s->head_dim;
    rms_norm(q, NULL, s->head_dim, s->rms_eps);
    rope(q + s->head_dim - s->rope_dim, rotation_of(n->b, n->layer, t), s->rope_dim, false);
}

int cpu_q_norm_rope(struct backend *b, uint32_t layer, float *q)
{
    struct norm n = {.b = b, .layer = layer, .x = q};
    pool_run(b->pool, b->batch->tokens * b->shape->heads, q_head, &n);
    return 0;
}

static void kv_token(void *arg, uint32_t t, uint32_t thread)
{
    const struct norm *n = arg;
    const struct model_shape *s = n->b->shape;
    float *x = cpu_scratch(n->b, thread); /* [c] */
    memcpy(x, n->in + (size_t)t * s->head_dim, s->head_dim * sizeof(float));
    rms_norm(x, n->weight, s->head_dim, s->rms_eps);
    rope(x + s->head_dim - s->rope_dim, rotation_of(n->b, n->layer, t), s->rope_dim, false);
    row_pack(s, n->b->kv, x, n->rows + t * n->b->kv->row_bytes);
}

int cpu_kv_norm_rope_store(struct backend *b, uint32_t layer, const float *kv, const float *norm, uint8_t *rows)
{
    struct norm n = {.b = b, .layer = layer, .weight = norm, .in = kv, .rows = rows};
    pool_run(b->pool, b->batch->tokens, kv_token, &n);
    return 0;
}

int cpu_kv_commit(struct backend *b, uint32_t layer, const uint8_t *rows)
{
    size_t bytes = b->kv->row_bytes;
    uint32_t window = b->shape->window;
    for (uint32_t i = 0; i < b->batch->n_seqs; i++) {
        const struct backend_seq *seq = &b->batch->seq[i];
        uint8_t *ring = seq->state + b->kv->state_ring[layer];
        for (uint32_t k = seq->count > window ? seq->count - window : 0; k < seq->count; k++)
            memcpy(ring + (seq->position + k) % window * bytes, rows + (seq->first + k) * bytes, bytes);
    }
    return 0;
}
