/* SPDX-License-Identifier: MIT */
/*
 * Hyper-connections: n streams X [n][d] per token.
 *
 *   m = (fn . flat(X)) / sqrt(mean(flat(X)^2) + eps)                      n*(n+2) values: pre | post | comb
 *   pre_i  = sigmoid(m_i scale_0 + base_i) + hc_eps
 *   post_i = 2 sigmoid(m_(n+i) scale_1 + base_(n+i))
 *   comb   = softmax of each row of (m scale_2 + base) + hc_eps, made doubly stochastic by turns
 *   x = sum_i pre_i X_i, then RMS norm;   X_j <- post_j y + sum_i comb[i][j] X_i
 */
#include <math.h>
#include <string.h>

#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/vec.h"
#include "base/size.h"

struct hc {
    struct backend *b;
    const float *X;
    const uint32_t *row; /* tokens, or NULL for all */
    const struct hc_weights *w;
    const float *norm;
    float *x, *post, *comb;
};

static float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

static void divide_rows(uint32_t n, float eps, float *k)
{
    for (uint32_t i = 0; i < n; i++) {
        float sum = 0;
        for (uint32_t j = 0; j < n; j++)
            sum += k[i * n + j];
        for (uint32_t j = 0; j < n; j++)
            k[i * n + j] /= sum + eps;
    }
}

static void divide_columns(uint32_t n, float eps, float *k)
{
    for (uint32_t j = 0; j < n; j++) {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += k[i * n + j];
        for (uint32_t i = 0; i < n; i++)
            k[i * n + j] /= sum + eps;
    }
}

static void softmax_rows(uint32_t n, float eps, float *k)
{
    for (uint32_t i = 0; i < n; i++) {
        float max = vec_max(k + i * n, n), sum = 0;
        for (uint32_t j = 0; j < n; j++)
            sum += k[i * n + j] = expf(k[i * n + j] - max);
        for (uint32_t j = 0; j < n; j++)
            k[i * n + j] = k[i * n + j] / sum + eps;
    }
}

/* post: [n], comb: [n][n] from m: [n*(n+2)] */
static void mix_out(const struct model_shape *s, const struct hc_weights *w, const float *m, float *post, float *comb)
{
    uint32_t n = s->hc;
    for (uint32_t i = 0; i < n; i++)
        post[i] = 2 * sigmoid(m[n + i] * w->scale[1] + w->base[n + i]);
    for (uint32_t i = 0; i < n * n; i++)
        comb[i] = m[2 * n + i] * w->scale[2] + w->base[2 * n + i];
    softmax_rows(n, s->hc_eps, comb);
    divide_columns(n, s->hc_eps, comb);
    for (uint32_t i = 1; i < s->hc_iterations; i++) {
        divide_rows(n, s->hc_eps, comb);
        divide_columns(n, s->hc_eps, comb);
    }
}

static void hc_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct hc *a = arg;
    const struct model_shape *s = a->b->shape;
    uint32_t n = s->hc, d = s->hidden;
    const float *X = a->X + (a->row ? a->row[t] : t) * (size_t)n * d;
    float *m = a->b->small + (size_t)t * a->b->small_width, *x = a->x + (size_t)t * d;

    float rms = sqrtf(vec_dot(X, X, n * d) / (float)(n * d) + s->rms_eps);
    for (uint32_t i = 0; i < a->w->fn.rows; i++)
        m[i] /= rms;
    for (uint32_t i = 0; i < n; i++) {
        float pre = sigmoid(m[i] * a->w->scale[0] + a->w->base[i]) + s->hc_eps;
        if (i == 0)
            memset(x, 0, d * sizeof(float));
        vec_add_scaled(x, X + (size_t)i * d, pre, d);
    }
    if (a->post)
        mix_out(s, a->w, m, a->post + (size_t)t * n, a->comb + (size_t)t * n * n);
    rms_norm(x, a->norm, d, s->rms_eps);
}

static void hc_run(const struct hc *a, uint32_t tokens)
{
    struct backend *b = a->b;
    const struct weight *fn = &a->w->fn;
    struct cpu_matmul m = {.w = fn, .n = tokens, .xi = a->row, .y = b->small, .y_stride = b->small_width};
    uint32_t n = a->row ? b->batch->tokens : tokens; /* row[] picks among all tokens */
    linear_prepare(b, fn->type, fn->cols, n, a->X, fn->cols, &m);
    linear_run(b, &m, 1);
    struct hc copy = *a;
    pool_run(b->pool, tokens, hc_token, &copy);
}

int cpu_hc_pre_norm(struct backend *b, const float *X, const struct hc_weights *w, const float *norm, float *x,
                    float *post, float *comb)
{
    struct hc a = {.b = b, .X = X, .w = w, .norm = norm, .x = x, .post = post, .comb = comb};
    hc_run(&a, b->batch->tokens);
    return 0;
}

int cpu_hc_head_norm(struct backend *b, const float *X, uint32_t n_rows, const uint32_t *row,
                     const struct hc_weights *w, const float *norm, float *x)
{
    struct hc a = {.b = b, .X = X, .row = row, .w = w, .norm = norm, .x = x};
    hc_run(&a, n_rows);
    return 0;
}

/* ---------------------------------------------------------------- after */

#define POST_BLOCK 1024 /* dims of an item */

struct hc_post {
    struct backend *b;
    const float *y, *post, *comb;
    float *X;
    uint32_t blocks;
};

static void post_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const struct hc_post *a = arg;
    uint32_t n = a->b->shape->hc, d = a->b->shape->hidden;
    uint32_t t = item / a->blocks, from = item % a->blocks * POST_BLOCK, to = MIN(from + POST_BLOCK, d);
    const float *post = a->post + (size_t)t * n, *comb = a->comb + (size_t)t * n * n;
    float *X = a->X + (size_t)t * n * d, old[HC_MAX];
    for (uint32_t e = from; e < to; e++) {
        float y = a->y[(size_t)t * d + e];
        for (uint32_t i = 0; i < n; i++)
            old[i] = X[(size_t)i * d + e];
        for (uint32_t j = 0; j < n; j++) {
            float sum = 0;
            for (uint32_t i = 0; i < n; i++)
                sum += comb[i * n + j] * old[i];
            X[(size_t)j * d + e] = post[j] * y + sum;
        }
    }
}

int cpu_hc_post(struct backend *b, const float *y, const float *post, const float *comb, float *X)
{
    struct hc_post a = {b, y, post, comb, X, (uint32_t)div_up(b->shape->hidden, POST_BLOCK)};
    pool_run(b->pool, b->batch->tokens * a.blocks, post_item, &a);
    return 0;
}
