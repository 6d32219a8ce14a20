/* SPDX-License-Identifier: MIT */
/*
 * One step of the model over the operations of backends/backend.h: what runs in which order, and nothing about how.
 * The formulas are in docs/model.md. Nothing is allocated here per step but a session's page table when it grows.
 */
#include "engine/forward.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"

#define LOGIT_ROWS 32 /* computed and fetched at a time, so that long tails of logits need no memory of their size */

struct forward {
    uint8_t *memory;      /* device: everything below but the host arrays */
    float *X;             /* [T][n][d] streams */
    float *x, *y;         /* [T][d] input and output of a block */
    float *post, *comb;   /* [T][n], [T][n][n] */
    float *qr, *q, *kv;   /* [T][q_rank], [T][h][c], [T][c] */
    uint8_t *rows;        /* [T][row_bytes] */
    float *ck, *cs;       /* [T][2 c] compressor: values and scores */
    float *ik, *is;       /* [T][2 index_dim] the same for the index */
    float *iq, *iw;       /* [T][ih][index_dim], [T][ih] */
    uint32_t *chosen;     /* [T][index_topk] */
    float *o, *oa;        /* [T][h][c], [T][o_groups * o_rank] */
    uint32_t *ids;        /* [T][used] */
    float *route_weights; /* [T][used] */
    float *head_x;        /* [LOGIT_ROWS][d] */
    float *logits;        /* [LOGIT_ROWS][vocab] */

    /* host */
    uint32_t *id;            /* [T] */
    uint32_t *row;           /* [T] tokens whose logits are wanted */
    struct backend_seq *seq; /* [T] */
    bool failed;             /* the device is of no more use */

    forward_watch watch;
    void *watch_userdata;
    float *seen;             /* [seen_floats], only where somebody watches */
    size_t seen_floats;
};

/* ---------------------------------------------------------------- scratch */

/* Gives out pieces of fw->memory, or only counts where that is NULL. */
struct carve {
    uint8_t *base;
    size_t used;
};

static void *carve(struct carve *c, size_t bytes)
{
    void *p = c->base ? c->base + c->used : NULL;

    c->used += align_up(bytes, 64);
    return p;
}

static float *carve_f(struct carve *c, size_t n, size_t width)
{
    return carve(c, n * width * sizeof(float));
}

/* Sizes are products of what config.c has limited and of a step's tokens; they stay far below 2^63. */
static size_t place_scratch(struct forward *fw, uint8_t *memory, const struct model_shape *s, const struct kv_layout *kv,
                            size_t T)
{
    struct carve c = {.base = memory};
    size_t n = s->hc, heads = (size_t)s->heads * s->head_dim;

    fw->X = carve_f(&c, T, n * s->hidden);
    fw->x = carve_f(&c, T, s->hidden);
    fw->y = carve_f(&c, T, s->hidden);
    fw->post = carve_f(&c, T, n);
    fw->comb = carve_f(&c, T, n * n);
    fw->qr = carve_f(&c, T, s->q_rank);
    fw->q = carve_f(&c, T, heads);
    fw->kv = carve_f(&c, T, s->head_dim);
    fw->rows = carve(&c, T * kv->row_bytes);
    fw->ck = carve_f(&c, T, (size_t)2 * s->head_dim);
    fw->cs = carve_f(&c, T, (size_t)2 * s->head_dim);
    fw->ik = carve_f(&c, T, (size_t)2 * s->index_dim);
    fw->is = carve_f(&c, T, (size_t)2 * s->index_dim);
    fw->iq = carve_f(&c, T, (size_t)s->index_heads * s->index_dim);
    fw->iw = carve_f(&c, T, s->index_heads);
    fw->chosen = carve(&c, T * s->index_topk * sizeof(*fw->chosen));
    fw->o = carve_f(&c, T, heads);
    fw->oa = carve_f(&c, T, (size_t)s->o_groups * s->o_rank);
    fw->ids = carve(&c, T * s->experts_used * sizeof(*fw->ids));
    fw->route_weights = carve_f(&c, T, s->experts_used);
    fw->head_x = carve_f(&c, LOGIT_ROWS, s->hidden);
    fw->logits = carve_f(&c, LOGIT_ROWS, s->vocab);
    return c.used;
}

uint64_t forward_scratch_bytes(const struct model_shape *shape, const struct kv_layout *kv, uint32_t max_step_tokens)
{
    struct forward counted = {0};

    return place_scratch(&counted, NULL, shape, kv, max_step_tokens);
}

int forward_new(struct model *m, struct forward **ret, struct fail *f)
{
    struct forward *fw = calloc(1, sizeof(*fw));
    uint32_t T = m->max_step_tokens;
    size_t bytes = forward_scratch_bytes(m->shape, &m->kv, T);
    void *memory = NULL;
    int r;

    if (!fw)
        return fail_oom(f);
    fw->id = calloc(T, sizeof(*fw->id));
    fw->row = calloc(T, sizeof(*fw->row));
    fw->seq = calloc(T, sizeof(*fw->seq));
    r = fw->id && fw->row && fw->seq ? m->ops->alloc(m->backend, bytes, &memory) : -ENOMEM;
    if (r < 0) {
        forward_free(fw, m->ops, m->backend);
        return fail_set(f, -r, r == -EIO ? "INTERNAL" : "NO_MEMORY",
                        "%zu bytes of scratch for steps of %" PRIu32 " tokens could not be allocated", bytes, T);
    }
    fw->memory = memory;
    place_scratch(fw, fw->memory, m->shape, &m->kv, T);
    *ret = fw;
    return 0;
}

struct forward *forward_free(struct forward *fw, const struct backend_ops *ops, struct backend *b)
{
    if (!fw)
        return NULL;
    if (fw->memory)
        ops->free(b, fw->memory);
    free(fw->id);
    free(fw->row);
    free(fw->seq);
    free(fw->seen);
    free(fw);
    return NULL;
}

/* ---------------------------------------------------------------- watching */

void forward_set_watch(struct model *m, forward_watch watch, void *userdata)
{
    m->forward->watch = watch;
    m->forward->watch_userdata = userdata;
}

/* data: device, [tokens][width] of 32-bit values. */
static int watch_fetch(struct model *m, const void *data, size_t n)
{
    struct forward *fw = m->forward;
    int r;

    if (fw->seen_floats < n) {
        free(fw->seen);
        fw->seen_floats = 0;
        fw->seen = calloc(n, sizeof(float));
        if (!fw->seen)
            return -ENOMEM;
        fw->seen_floats = n;
    }
    r = m->ops->download(m->backend, fw->seen, data, n * sizeof(float));
    return r < 0 ? r : m->ops->sync(m->backend);
}

static int watch_floats(struct model *m, uint32_t layer, const char *what, const float *data, uint32_t tokens,
                        uint32_t width)
{
    struct forward *fw = m->forward;
    char name[48];
    int r;

    if (!fw->watch)
        return 0;
    r = watch_fetch(m, data, (size_t)tokens * width);
    if (r < 0)
        return r;
    snprintf(name, sizeof(name), "layer%" PRIu32 ".%s", layer, what);
    fw->watch(name, fw->seen, tokens, width, fw->watch_userdata);
    return 0;
}

/* The experts' numbers, as floats like everything that is watched. */
static int watch_experts(struct model *m, uint32_t layer, uint32_t tokens)
{
    struct forward *fw = m->forward;
    uint32_t width = m->shape->experts_used;
    char name[48];
    int r;

    if (!fw->watch)
        return 0;
    r = watch_fetch(m, fw->ids, (size_t)tokens * width);
    if (r < 0)
        return r;
    for (size_t i = 0; i < (size_t)tokens * width; i++) {
        uint32_t id;
        memcpy(&id, &fw->seen[i], sizeof(id));
        fw->seen[i] = (float)id;
    }
    snprintf(name, sizeof(name), "layer%" PRIu32 ".experts", layer);
    fw->watch(name, fw->seen, tokens, width, fw->watch_userdata);
    return 0;
}

/* ---------------------------------------------------------------- layers */

/* Operations run in order; the first failure ends the step. */
#define TRY(call)            \
    do {                     \
        int try_r_ = (call); \
        if (try_r_ < 0)      \
            return try_r_;   \
    } while (0)

/* Everything that is computed from a layer's normalised input x alone. */
static int project_input(struct model *m, const struct layer_weights *w, uint32_t ratio)
{
    struct forward *fw = m->forward;
    const struct weight *W[7] = {&w->wq_a, &w->wkv};
    float *y[7] = {fw->qr, fw->kv};
    uint32_t n = 2;

    if (ratio != 0) {
        W[n] = &w->compressor_wkv, y[n++] = fw->ck;
        W[n] = &w->compressor_wgate, y[n++] = fw->cs;
    }
    if (ratio == 4) {
        W[n] = &w->index_wkv, y[n++] = fw->ik;
        W[n] = &w->index_wgate, y[n++] = fw->is;
        W[n] = &w->index_weights, y[n++] = fw->iw;
    }
    return m->ops->linear(m->backend, fw->x, n, W, y);
}

/* And from the query's low-rank form. */
static int project_query(struct model *m, const struct layer_weights *w, uint32_t ratio)
{
    struct forward *fw = m->forward;
    const struct weight *W[2] = {&w->wq_b, &w->index_wq_b};
    float *y[2] = {fw->q, fw->iq};

    return m->ops->linear(m->backend, fw->qr, ratio == 4 ? 2 : 1, W, y);
}

/* y = attention(x) */
static int attention(struct model *m, uint32_t layer)
{
    const struct backend_ops *ops = m->ops;
    const struct layer_weights *w = &m->weights->layer[layer];
    const struct weight *wo_b = &w->wo_b;
    struct forward *fw = m->forward;
    struct backend *b = m->backend;
    uint32_t ratio = m->shape->ratio[layer];

    TRY(project_input(m, w, ratio));
    TRY(ops->norm(b, m->shape->q_rank, w->q_norm, fw->qr));
    TRY(project_query(m, w, ratio));
    TRY(ops->q_norm_rope(b, layer, fw->q));
    TRY(ops->kv_norm_rope_store(b, layer, fw->kv, w->kv_norm, fw->rows));
    if (ratio != 0)
        TRY(ops->compress_store(b, layer, false, fw->ck, fw->cs, &w->compressor));
    if (ratio == 4) {
        TRY(ops->compress_store(b, layer, true, fw->ik, fw->is, &w->index_compressor));
        TRY(ops->index_topk(b, layer, fw->iq, fw->iw, fw->chosen));
    }
    TRY(ops->attention(b, layer, fw->q, fw->rows, ratio == 4 ? fw->chosen : NULL, w->attn_sink, fw->o));
    TRY(ops->kv_commit(b, layer, fw->rows));
    TRY(ops->grouped_linear(b, m->shape->o_groups, fw->o, &w->wo_a, fw->oa));
    return ops->linear(b, fw->oa, 1, &wo_b, &fw->y);
}

/* y = moe(x) */
static int feed_forward(struct model *m, uint32_t layer, uint32_t tokens)
{
    const struct layer_weights *w = &m->weights->layer[layer];
    struct forward *fw = m->forward;

    TRY(m->ops->route(m->backend, fw->x, &w->gate, w->gate_bias, w->gate_table, fw->ids, fw->route_weights));
    TRY(watch_experts(m, layer, tokens));
    return m->ops->moe(m->backend, fw->x, fw->ids, fw->route_weights, &w->moe, fw->y);
}

static int run_layer(struct model *m, uint32_t layer, uint32_t tokens)
{
    const struct layer_weights *w = &m->weights->layer[layer];
    struct forward *fw = m->forward;
    uint32_t d = m->shape->hidden;

    TRY(m->ops->hc_pre_norm(m->backend, fw->X, &w->hc_attn, w->attn_norm, fw->x, fw->post, fw->comb));
    TRY(attention(m, layer));
    TRY(watch_floats(m, layer, "attn", fw->y, tokens, d));
    TRY(m->ops->hc_post(m->backend, fw->y, fw->post, fw->comb, fw->X));

    TRY(m->ops->hc_pre_norm(m->backend, fw->X, &w->hc_ffn, w->ffn_norm, fw->x, fw->post, fw->comb));
    TRY(feed_forward(m, layer, tokens));
    TRY(watch_floats(m, layer, "ffn", fw->y, tokens, d));
    TRY(m->ops->hc_post(m->backend, fw->y, fw->post, fw->comb, fw->X));
    return watch_floats(m, layer, "streams", fw->X, tokens, m->shape->hc * d);
}

/* logits: host, [n][vocab], of the tokens row[0 .. n - 1] of the batch. */
static int run_head(struct model *m, uint32_t n, const uint32_t *row, float *logits)
{
    struct forward *fw = m->forward;
    size_t vocab = m->shape->vocab;

    for (uint32_t i = 0; i < n; i += LOGIT_ROWS) {
        uint32_t k = MIN(n - i, (uint32_t)LOGIT_ROWS);

        TRY(m->ops->hc_head_norm(m->backend, fw->X, k, row + i, &m->weights->hc_head, m->weights->norm, fw->head_x));
        TRY(m->ops->logits(m->backend, k, fw->head_x, &m->weights->head, fw->logits));
        TRY(m->ops->download(m->backend, logits + i * vocab, fw->logits, k * vocab * sizeof(float)));
    }
    return 0;
}

static int run_batch(struct model *m, const struct backend_batch *batch, uint32_t n_rows, float *logits)
{
    struct forward *fw = m->forward;

    TRY(m->ops->batch_begin(m->backend, batch));
    TRY(m->ops->embed(m->backend, &m->weights->embed, fw->X));
    for (uint32_t i = 0; i < m->shape->layers; i++)
        TRY(run_layer(m, i, batch->tokens));
    TRY(run_head(m, n_rows, fw->row, logits));
    return m->ops->sync(m->backend);
}

/* ---------------------------------------------------------------- a step */

static int check_tokens(const struct model *m, const struct step_part *p, struct fail *f)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (p->token[i] >= m->shape->vocab) {
            int r = fail_set(f, EINVAL, "BAD_TOKEN", "token %" PRIu32 " of the input has id %" PRIu32
                             "; the model has ids below %" PRIu32, i, p->token[i], m->shape->vocab);
            fail_limit(f, (int64_t)m->shape->vocab - 1, p->token[i]);
            return r;
        }
    return 0;
}

static int check_part(const struct model *m, const struct step_part *p, struct fail *f)
{
    const struct kv_session *s = p->session;

    if (p->count == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "a session's part of a step has no tokens");
    if (p->logit_rows > p->count)
        return fail_set(f, ERANGE, "RANGE", "logits of %" PRIu32 " tokens were asked for, in a part of %" PRIu32,
                        p->logit_rows, p->count);
    if (s->tokens > m->context_tokens || p->count > m->context_tokens - s->tokens) {
        int r = fail_set(f, ENOSPC, "CONTEXT_FULL", "the session has %" PRIu32 " tokens and %" PRIu32
                         " more would pass the context of %" PRIu32, s->tokens, p->count, m->context_tokens);
        fail_limit(f, m->context_tokens, (int64_t)s->tokens + p->count);
        return r;
    }
    return check_tokens(m, p, f);
}

static bool seen_before(const struct step_part *part, uint32_t i)
{
    for (uint32_t k = 0; k < i; k++)
        if (part[k].session == part[i].session)
            return true;
    return false;
}

static int check_step(const struct model *m, const struct step_part *part, uint32_t n_parts, const float *logits,
                      struct fail *f)
{
    uint64_t tokens = 0, rows = 0;
    int r;

    if (m->forward->failed)
        return fail_set(f, EIO, "INTERNAL", "the device failed before and cannot be used");
    if (n_parts == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "the step has no parts");
    for (uint32_t i = 0; i < n_parts; i++) {
        tokens += part[i].count;
        rows += part[i].logit_rows;
        /* Before anything that is quadratic in parts. */
        if (tokens > m->max_step_tokens) {
            r = fail_set(f, ERANGE, "RANGE", "the step has more than the %" PRIu32 " tokens that fit one",
                         m->max_step_tokens);
            fail_limit(f, m->max_step_tokens, (int64_t)tokens);
            return r;
        }
        r = check_part(m, &part[i], f);
        if (r < 0)
            return r;
        if (seen_before(part, i))
            return fail_set(f, EINVAL, "RANGE", "a session appears twice in one step");
    }
    if (rows > 0 && !logits)
        return fail_set(f, EINVAL, "RANGE", "logits were asked for without a place to put them");
    return 0;
}

/* Pages for all parts, or for none. */
static int reserve_step(const struct step_part *part, uint32_t n_parts, struct fail *f)
{
    for (uint32_t i = 0; i < n_parts; i++) {
        int r = kv_session_reserve(part[i].session, part[i].count, f);

        if (r < 0) {
            while (i-- > 0)
                kv_session_trim(part[i].session);
            return r;
        }
    }
    return 0;
}

/* Fills the host arrays; returns how many rows of logits are wanted. */
static uint32_t describe_batch(struct model *m, const struct step_part *part, uint32_t n_parts,
                               struct backend_batch *batch)
{
    struct forward *fw = m->forward;
    uint32_t tokens = 0, rows = 0;

    for (uint32_t i = 0; i < n_parts; i++) {
        const struct step_part *p = &part[i];

        fw->seq[i] = (struct backend_seq){.first = tokens, .count = p->count, .position = p->session->tokens,
                                          .state = p->session->state, .page = p->session->page};
        memcpy(fw->id + tokens, p->token, p->count * sizeof(*p->token));
        tokens += p->count;
        for (uint32_t k = p->logit_rows; k > 0; k--)
            fw->row[rows++] = tokens - k;
    }
    *batch = (struct backend_batch){.tokens = tokens, .id = fw->id, .n_seqs = n_parts, .seq = fw->seq,
                                    .pages = kv_pool_pages(m->pool)};
    return rows;
}

int forward_step(struct model *m, const struct step_part *part, uint32_t n_parts, float *logits, struct fail *f)
{
    struct backend_batch batch;
    uint32_t rows;
    int r = check_step(m, part, n_parts, logits, f);

    if (r < 0)
        return r;
    r = reserve_step(part, n_parts, f);
    if (r < 0) {
        m->forward->failed = r == -EIO;
        return r;
    }
    rows = describe_batch(m, part, n_parts, &batch);
    r = run_batch(m, &batch, rows, logits);
    if (r < 0) {
        /* States are half written now, whatever it was: no session of this model can be trusted any more. */
        m->forward->failed = true;
        return fail_set(f, EIO, "INTERNAL", "the device failed during a step (%s)", strerror(-r));
    }
    for (uint32_t i = 0; i < n_parts; i++)
        part[i].session->tokens += part[i].count;
    return 0;
}

int forward_prefill(struct model *m, struct kv_session *s, const uint32_t *token, uint32_t n, float *logits,
                    struct fail *f)
{
    struct step_part all = {.session = s, .token = token, .count = n};
    int r = check_part(m, &all, f);

    if (r == 0)
        r = kv_session_reserve(s, n, f);
    for (uint32_t done = 0; r == 0 && done < n;) {
        struct step_part p = {.session = s, .token = token + done, .count = MIN(n - done, m->max_step_tokens)};

        done += p.count;
        p.logit_rows = logits && done == n;
        r = forward_step(m, &p, 1, logits, f);
    }
    return r;
}
