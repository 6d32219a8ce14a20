/* SPDX-License-Identifier: MIT */
/* First and last: token ids to streams, and logits. */
#include <string.h>

#include "backends/cpu/ops.h"

struct embed {
    struct backend *b;
    const struct weight *w;
    float *X;
};

static void embed_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct embed *e = arg;
    const struct model_shape *s = e->b->shape;
    float *X = e->X + (size_t)t * s->hc * s->hidden;
    e->b->k->row(e->w, e->b->batch->id[t], X);
    for (uint32_t i = 1; i < s->hc; i++)
        memcpy(X + (size_t)i * s->hidden, X, s->hidden * sizeof(float));
}

int cpu_embed(struct backend *b, const struct weight *embed, float *X)
{
    struct embed e = {b, embed, X};
    pool_run(b->pool, b->batch->tokens, embed_token, &e);
    return 0;
}

int cpu_logits(struct backend *b, uint32_t n_rows, const float *x, const struct weight *head, float *out)
{
    struct cpu_matmul m = {.w = head, .n = n_rows, .y = out, .y_stride = head->rows};
    linear_prepare(b, head->type, head->cols, n_rows, x, head->cols, &m);
    linear_run(b, &m, 1);
    return 0;
}
