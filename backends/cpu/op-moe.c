/* SPDX-License-Identifier: MIT */
/*
 * Mixture of experts.
 *
 *   route: score = sqrt(softplus(gate . x)); the `used` highest of score + bias (or a table's row); weights are the
 *          chosen scores over their sum, times routed_scale
 *   moe:   y = sum over ranks of w2 (weight silu(min(w1 x, limit)) clamp(w3 x, limit)), then the shared expert's
 *
 * A slot is one (token, rank); the shared expert's slots follow. Slots are sorted by expert, so each expert's matrices
 * are read once for all of its tokens; the sum over ranks is made at the end, in rank order.
 */
#include <math.h>
#include <string.h>

#include "backends/cpu/ops.h"
#include "base/size.h"

/* ---------------------------------------------------------------- route */

struct route {
    struct backend *b;
    const float *bias;
    const uint32_t *table;
    uint32_t *ids;
    float *weights;
};

static float softplus(float x)
{
    return (x > 0 ? x : 0) + log1pf(expf(-fabsf(x)));
}

static bool is_taken(const uint32_t *id, uint32_t n, uint32_t e)
{
    for (uint32_t i = 0; i < n; i++)
        if (id[i] == e)
            return true;
    return false;
}

/* The `used` highest of score + bias, the lower expert first among equals. Ids are valid even if scores are NaN. */
static void pick_highest(const struct model_shape *s, const float *score, const float *bias, uint32_t *id)
{
    for (uint32_t n = 0; n < s->experts_used; n++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < s->experts; e++)
            if (!is_taken(id, n, e) && (best == UINT32_MAX || score[e] + bias[e] > score[best] + bias[best]))
                best = e;
        id[n] = best;
    }
}

static void route_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct route *a = arg;
    const struct backend *b = a->b;
    const struct model_shape *s = b->shape;
    uint32_t used = s->experts_used, *id = a->ids + (size_t)t * used;
    float *weight = a->weights + (size_t)t * used, *score = b->small + (size_t)t * b->small_width, sum = 0;
    for (uint32_t e = 0; e < s->experts; e++)
        score[e] = sqrtf(softplus(score[e]));
    if (a->table)
        memcpy(id, a->table + (size_t)b->batch->id[t] * used, used * sizeof(*id));
    else
        pick_highest(s, score, a->bias, id);
    for (uint32_t i = 0; i < used; i++)
        sum += score[id[i]];
    for (uint32_t i = 0; i < used; i++)
        weight[i] = score[id[i]] / sum * s->routed_scale;
}

int cpu_route(struct backend *b, const float *x, const struct weight *gate, const float *bias, const uint32_t *table,
              uint32_t *ids, float *weights)
{
    struct route a = {b, bias, table, ids, weights};
    struct cpu_matmul m = {.w = gate, .n = b->batch->tokens, .y = b->small, .y_stride = b->small_width};
    linear_prepare(b, gate->type, gate->cols, m.n, x, gate->cols, &m);
    linear_run(b, &m, 1);
    pool_run(b->pool, m.n, route_token, &a);
    return 0;
}

/* ---------------------------------------------------------------- moe */

/* S = max_tokens * (experts_used + 1) slots, E + 1 experts with the shared one last. */
struct moe_scratch {
    uint32_t *first;    /* [E + 2] where an expert's slots begin in `slot` */
    uint32_t *active;   /* [E + 1] experts that have slots */
    uint32_t *slot;     /* [S] slots sorted by expert */
    uint32_t *token;    /* [S] the token of each of them */
    float *gate, *up;   /* [S][expert_hidden]; gate becomes the product */
    float *down;        /* [S][hidden] */
};

struct activations {
    uint8_t *data;
    size_t stride;
    size_t bytes; /* 0: float32 rows as they are */
};

struct moe {
    struct backend *b;
    struct moe_scratch *s;
    const struct moe_weights *w;
    const uint32_t *ids;
    const float *weights, *x;
    float *y;
    uint32_t tokens, slots, active, item_rows, items_per_expert;
    enum weight_type type[2];   /* of the routed experts (all have one type), of the shared one */
    struct activations x_in[2]; /* [T], likewise */
    struct activations h_in[2]; /* [S], likewise */
};

struct moe_scratch *moe_scratch_free(struct moe_scratch *s)
{
    if (!s)
        return NULL;
    free(s->first);
    free(s->active);
    free(s->slot);
    free(s->token);
    free(s->gate);
    free(s->up);
    free(s->down);
    free(s);
    return NULL;
}
DEFINE_CLEANUP(struct moe_scratch *, moe_scratch_free)

static float *floats_new(size_t rows, size_t cols)
{
    size_t n, bytes;
    if (!size_mul(rows, cols, &n) || !size_mul(n, sizeof(float), &bytes) || !size_align(bytes, WEIGHT_ALIGN, &bytes))
        return NULL;
    return aligned_alloc(WEIGHT_ALIGN, bytes);
}

struct moe_scratch *moe_scratch_new(const struct model_shape *shape, uint32_t max_tokens)
{
    size_t slots, experts = (size_t)shape->experts + 2;
    _cleanup_(moe_scratch_freep) struct moe_scratch *s = calloc(1, sizeof(*s));
    if (!s || !size_mul(max_tokens, (size_t)shape->experts_used + 1, &slots) || slots > UINT32_MAX)
        return NULL;
    s->first = calloc(experts, sizeof(*s->first));
    s->active = calloc(experts, sizeof(*s->active));
    s->slot = calloc(slots, sizeof(*s->slot));
    s->token = calloc(slots, sizeof(*s->token));
    s->gate = floats_new(slots, shape->expert_hidden);
    s->up = floats_new(slots, shape->expert_hidden);
    s->down = floats_new(slots, shape->hidden);
    if (!s->first || !s->active || !s->slot || !s->token || !s->gate || !s->up || !s->down)
        return NULL;
    return TAKE_PTR(s);
}

/* Counting sort of the slots by expert; within an expert they stay in order. */
static void sort_slots(struct moe *a)
{
    const struct model_shape *shape = a->b->shape;
    struct moe_scratch *s = a->s;
    uint32_t E = shape->experts, used = shape->experts_used, routed = a->tokens * used;
    memset(s->first, 0, (E + 2) * sizeof(*s->first));
    for (uint32_t i = 0; i < routed; i++)
        s->first[a->ids[i] + 1]++;
    s->first[E + 1] = a->tokens;
    for (uint32_t e = 0; e <= E; e++) {
        if (s->first[e + 1])
            s->active[a->active++] = e;
        s->first[e + 1] += s->first[e];
    }
    for (uint32_t i = 0; i < a->slots; i++) { /* first[e] runs to where e + 1 begins, put back below */
        uint32_t e = i < routed ? a->ids[i] : E, at = s->first[e]++;
        s->slot[at] = i;
        s->token[at] = i < routed ? i / used : i - routed;
    }
    memmove(s->first + 1, s->first, (E + 1) * sizeof(*s->first));
    s->first[0] = 0;
}

static const struct expert_weights *expert_of(const struct moe *a, uint32_t e)
{
    return e == a->b->shape->experts ? &a->w->shared : &a->w->expert[e];
}

/* One matrix of expert e, for all of its slots. */
static void expert_matmul(const struct moe *a, const struct weight *w, uint32_t e, const struct activations *in,
                          const uint32_t *xi, float *y, uint32_t item, uint32_t thread)
{
    const struct moe_scratch *s = a->s;
    uint32_t first = s->first[e], row = item % a->items_per_expert * a->item_rows;
    struct cpu_matmul m = {
        .w = w, .n = s->first[e + 1] - first,
        .x = in->data, .x_stride = in->stride, .xi = xi + first,
        .y = y, .y_stride = w->rows, .yi = s->slot + first,
    };
    uint32_t end = MIN(row + a->item_rows, w->rows);
    a->b->k->matmul[w->type](&m, row, end, cpu_scratch(a->b, thread));
}

static void up_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct moe *a = arg;
    uint32_t e = a->s->active[item / a->items_per_expert];
    const struct expert_weights *w = expert_of(a, e);
    const struct activations *in = &a->x_in[e == a->b->shape->experts];
    expert_matmul(a, &w->gate, e, in, a->s->token, a->s->gate, item, thread);
    expert_matmul(a, &w->up, e, in, a->s->token, a->s->up, item, thread);
}

static void down_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct moe *a = arg;
    uint32_t e = a->s->active[item / a->items_per_expert];
    const struct activations *in = &a->h_in[e == a->b->shape->experts];
    expert_matmul(a, &expert_of(a, e)->down, e, in, a->s->slot, a->s->down, item, thread);
}

/* Items of expert matrices with that many rows. */
static void run_experts(struct moe *a, uint32_t rows, pool_fn fn)
{
    a->item_rows = linear_item_rows(a->b, (size_t)rows * a->active);
    a->items_per_expert = (uint32_t)div_up(rows, a->item_rows);
    pool_run(a->b->pool, a->active * a->items_per_expert, fn, a);
}

/* Activations of x for gate and up: the routed experts' type may differ from the shared one's (FP4 and FP8). */
static void prepare_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct moe *a = arg;
    uint32_t d = a->b->shape->hidden;
    for (int shared = 0; shared < 2; shared++)
        if (a->x_in[shared].bytes)
            a->b->k->activation(a->type[shared], d, a->x + (size_t)t * d,
                                a->x_in[shared].data + t * a->x_in[shared].stride);
}

static void prepare_x(struct moe *a)
{
    struct backend *b = a->b;
    uint32_t d = b->shape->hidden;
    uint8_t *at = b->activation;
    for (int shared = 0; shared < 2; shared++) {
        size_t bytes = b->k->activation_bytes(a->type[shared], d);
        /* the kernels only read; prepare_token writes only where bytes is not 0 */
        a->x_in[shared] = (struct activations){bytes ? at : (uint8_t *)(uintptr_t)a->x,
                                               bytes ? bytes : d * sizeof(float), bytes};
        if (bytes) /* at is NULL where no kernel wants any */
            at += a->tokens * bytes;
    }
    if (a->x_in[0].bytes || a->x_in[1].bytes)
        pool_run(b->pool, a->tokens, prepare_token, a);
}

/* The product of a slot, and activations of it for down. */
static void swiglu_item(void *arg, uint32_t slot, uint32_t thread)
{
    (void)thread;
    const struct moe *a = arg;
    const struct cpu_kernels *k = a->b->k;
    const struct model_shape *shape = a->b->shape;
    bool shared = slot >= a->tokens * shape->experts_used;
    uint32_t m = shape->expert_hidden;
    float *h = a->s->gate + (size_t)slot * m;
    k->swiglu(m, h, a->s->up + (size_t)slot * m, shared ? 1 : a->weights[slot], shape->swiglu_limit, h);
    const struct activations *in = &a->h_in[shared];
    if (in->bytes)
        k->activation(a->type[shared], m, h, in->data + slot * in->stride);
}

/* A slot is one expert's, so both types' activations share the place; one of them may need none. */
static void run_swiglu(struct moe *a)
{
    struct backend *b = a->b;
    uint32_t m = b->shape->expert_hidden;
    size_t stride = MAX(b->k->activation_bytes(a->type[0], m), b->k->activation_bytes(a->type[1], m));
    for (int shared = 0; shared < 2; shared++) {
        size_t bytes = b->k->activation_bytes(a->type[shared], m);
        a->h_in[shared] = (struct activations){bytes ? b->activation : (uint8_t *)a->s->gate,
                                               bytes ? stride : m * sizeof(float), bytes};
    }
    pool_run(b->pool, a->slots, swiglu_item, a);
}

static void combine_item(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct moe *a = arg;
    uint32_t d = a->b->shape->hidden, used = a->b->shape->experts_used;
    const float *routed = a->s->down + (size_t)t * used * d;
    const float *shared = a->s->down + ((size_t)a->tokens * used + t) * d;
    float *y = a->y + (size_t)t * d;
    for (uint32_t i = 0; i < d; i++) {
        float sum = routed[i];
        for (uint32_t k = 1; k < used; k++)
            sum += routed[(size_t)k * d + i];
        y[i] = sum + shared[i];
    }
}

int cpu_moe(struct backend *b, const float *x, const uint32_t *ids, const float *weights, const struct moe_weights *w,
            float *y)
{
    uint32_t tokens = b->batch->tokens;
    struct moe a = {.b = b, .s = b->moe, .w = w, .ids = ids, .weights = weights, .x = x, .y = y, .tokens = tokens,
                    .slots = tokens * (b->shape->experts_used + 1),
                    .type = {w->expert[0].gate.type, w->shared.gate.type}};
    sort_slots(&a);
    prepare_x(&a);
    run_experts(&a, b->shape->expert_hidden, up_item);
    run_swiglu(&a);
    run_experts(&a, b->shape->hidden, down_item);
    pool_run(b->pool, tokens, combine_item, &a);
    return 0;
}
