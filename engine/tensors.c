/* SPDX-License-Identifier: MIT */
/* See tensors.h. */
#include "engine/tensors.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"

struct walk {
    const struct model_shape *s;
    enum weight_type expert_type;
    tensor_visit visit;
    void *userdata;
    bool loaded;       /* whether `to` is handed out */
    enum item_use use;
    int error;         /* the first; then nothing more is visited */
};

/* ---------------------------------------------------------------- one item */

static PRINTF(4, 0) void emit(struct walk *w, struct tensor_item *item, void *to, const char *fmt, va_list ap)
{
    char stem[160], name[176], scale[176];
    const bool scaled = item->kind == ITEM_MATRIX && (item->type == WEIGHT_FP8 || item->type == WEIGHT_FP4);

    if (w->error < 0)
        return;
    vsnprintf(stem, sizeof(stem), fmt, ap);
    snprintf(name, sizeof(name), "%s%s", stem, scaled ? ".weight" : "");
    snprintf(scale, sizeof(scale), "%s.scale", stem);
    item->name = name;
    item->scale = scaled ? scale : NULL;
    item->use = w->use;
    item->to = w->loaded ? to : NULL;
    w->error = w->visit(item, w->userdata);
}

/* FP8 and FP4: the format is the name without ".weight"; the others: the whole name. */
static PRINTF(6, 7) void matrix(struct walk *w, struct weight *to, enum weight_type type, uint32_t rows, uint32_t cols,
                                const char *fmt, ...)
{
    struct tensor_item item = {.kind = ITEM_MATRIX, .type = type, .n_dims = 2, .rows = rows, .cols = cols};
    va_list ap;

    va_start(ap, fmt);
    emit(w, &item, to, fmt, ap);
    va_end(ap);
}

static PRINTF(5, 6) void vector(struct walk *w, const float **to, enum weight_type type, uint32_t n, const char *fmt,
                                ...)
{
    struct tensor_item item = {.kind = ITEM_VECTOR, .type = type, .n_dims = 1, .rows = n, .cols = 1};
    va_list ap;

    va_start(ap, fmt);
    emit(w, &item, to, fmt, ap);
    va_end(ap);
}

static PRINTF(5, 6) void grid(struct walk *w, const float **to, uint32_t rows, uint32_t cols, const char *fmt, ...)
{
    struct tensor_item item = {.kind = ITEM_VECTOR, .type = WEIGHT_F32, .n_dims = 2, .rows = rows, .cols = cols};
    va_list ap;

    va_start(ap, fmt);
    emit(w, &item, to, fmt, ap);
    va_end(ap);
}

static PRINTF(3, 4) void table(struct walk *w, const uint32_t **to, const char *fmt, ...)
{
    struct tensor_item item = {.kind = ITEM_TABLE, .n_dims = 2, .rows = w->s->vocab, .cols = w->s->experts_used,
                               .limit = w->s->experts};
    va_list ap;

    va_start(ap, fmt);
    emit(w, &item, to, fmt, ap);
    va_end(ap);
}

/* ---------------------------------------------------------------- groups */

static void hyper(struct walk *w, struct hc_weights *to, uint32_t rows, uint32_t scales, const char *p)
{
    matrix(w, &to->fn, WEIGHT_F32, rows, w->s->hc * w->s->hidden, "%s_fn", p);
    vector(w, &to->base, WEIGHT_F32, rows, "%s_base", p);
    vector(w, &to->scale, WEIGHT_F32, scales, "%s_scale", p);
}

static void compressor(struct walk *w, struct compressor_weights *to, struct weight *wkv, struct weight *wgate,
                       uint32_t ratio, uint32_t width, const char *p)
{
    const uint32_t n = ratio == 4 ? 2 * width : width;

    grid(w, &to->ape, ratio, n, "%s.ape", p);
    matrix(w, wkv, WEIGHT_BF16, n, w->s->hidden, "%s.wkv.weight", p);
    matrix(w, wgate, WEIGHT_BF16, n, w->s->hidden, "%s.wgate.weight", p);
    vector(w, &to->norm, WEIGHT_BF16, width, "%s.norm.weight", p);
}

static void expert(struct walk *w, struct expert_weights *to, enum weight_type type, const char *p)
{
    const uint32_t d = w->s->hidden, m = w->s->expert_hidden;

    matrix(w, &to->gate, type, m, d, "%s.w1", p);
    matrix(w, &to->down, type, d, m, "%s.w2", p);
    matrix(w, &to->up, type, m, d, "%s.w3", p);
}

static void indexer(struct walk *w, struct layer_weights *to, const char *p)
{
    const struct model_shape *s = w->s;
    char name[96];

    snprintf(name, sizeof(name), "%s.attn.indexer.compressor", p);
    matrix(w, &to->index_wq_b, WEIGHT_FP8, s->index_heads * s->index_dim, s->q_rank, "%s.attn.indexer.wq_b", p);
    matrix(w, &to->index_weights, WEIGHT_BF16, s->index_heads, s->hidden, "%s.attn.indexer.weights_proj.weight", p);
    compressor(w, &to->index_compressor, &to->index_wkv, &to->index_wgate, 4, s->index_dim, name);
}

static void attention(struct walk *w, struct layer_weights *to, uint32_t ratio, const char *p)
{
    const struct model_shape *s = w->s;
    const uint32_t heads = s->heads * s->head_dim, group = heads / s->o_groups, low = s->o_groups * s->o_rank;
    char name[96];

    vector(w, &to->attn_sink, WEIGHT_F32, s->heads, "%s.attn.attn_sink", p);
    matrix(w, &to->wq_a, WEIGHT_FP8, s->q_rank, s->hidden, "%s.attn.wq_a", p);
    vector(w, &to->q_norm, WEIGHT_BF16, s->q_rank, "%s.attn.q_norm.weight", p);
    matrix(w, &to->wq_b, WEIGHT_FP8, heads, s->q_rank, "%s.attn.wq_b", p);
    matrix(w, &to->wkv, WEIGHT_FP8, s->head_dim, s->hidden, "%s.attn.wkv", p);
    vector(w, &to->kv_norm, WEIGHT_BF16, s->head_dim, "%s.attn.kv_norm.weight", p);
    matrix(w, &to->wo_a, WEIGHT_FP8, low, group, "%s.attn.wo_a", p);
    matrix(w, &to->wo_b, WEIGHT_FP8, s->hidden, low, "%s.attn.wo_b", p);
    if (ratio) {
        snprintf(name, sizeof(name), "%s.attn.compressor", p);
        compressor(w, &to->compressor, &to->compressor_wkv, &to->compressor_wgate, ratio, s->head_dim, name);
    }
    if (ratio == 4)
        indexer(w, to, p);
}

/* experts: [experts], or NULL when the walk hands out no targets. */
static void moe(struct walk *w, struct layer_weights *to, struct expert_weights *experts, bool hashed, const char *p)
{
    const struct model_shape *s = w->s;
    const enum item_use use = w->use;
    struct expert_weights none;
    char name[96];

    matrix(w, &to->gate, WEIGHT_BF16, s->experts, s->hidden, "%s.ffn.gate.weight", p);
    if (hashed)
        table(w, &to->gate_table, "%s.ffn.gate.tid2eid", p);
    else
        vector(w, &to->gate_bias, WEIGHT_F32, s->experts, "%s.ffn.gate.bias", p);
    w->use = use == USE_MTP ? USE_MTP_EXPERT : USE_ROUTED_EXPERT;
    for (uint32_t e = 0; e < s->experts && w->error == 0; e++) {
        snprintf(name, sizeof(name), "%s.ffn.experts.%u", p, e);
        expert(w, experts ? &experts[e] : &none, w->expert_type, name);
    }
    w->use = use;
    snprintf(name, sizeof(name), "%s.ffn.shared_experts", p);
    expert(w, &to->moe.shared, WEIGHT_FP8, name);
}

static void block(struct walk *w, struct layer_weights *to, struct expert_weights *experts, uint32_t ratio, bool hashed,
                  const char *p)
{
    const uint32_t n = w->s->hc, d = w->s->hidden;
    char name[96];

    attention(w, to, ratio, p);
    vector(w, &to->attn_norm, WEIGHT_BF16, d, "%s.attn_norm.weight", p);
    vector(w, &to->ffn_norm, WEIGHT_BF16, d, "%s.ffn_norm.weight", p);
    moe(w, to, experts, hashed, p);
    snprintf(name, sizeof(name), "%s.hc_attn", p);
    hyper(w, &to->hc_attn, n * (n + 2), 3, name);
    snprintf(name, sizeof(name), "%s.hc_ffn", p);
    hyper(w, &to->hc_ffn, n * (n + 2), 3, name);
}

static void mtp(struct walk *w, uint32_t number)
{
    static const char *const norms[] = {"enorm", "hnorm", "norm"};
    const uint32_t d = w->s->hidden;
    struct layer_weights unused;
    struct weight matrix_unused;
    const float *vector_unused;
    char p[32], name[64];

    w->loaded = false;
    w->use = USE_MTP;
    snprintf(p, sizeof(p), "mtp.%u", number);
    block(w, &unused, NULL, 0, false, p);
    matrix(w, &matrix_unused, WEIGHT_FP8, d, d, "%s.e_proj", p);
    matrix(w, &matrix_unused, WEIGHT_FP8, d, d, "%s.h_proj", p);
    for (size_t i = 0; i < ELEMENTS(norms); i++)
        vector(w, &vector_unused, WEIGHT_BF16, d, "%s.%s.weight", p, norms[i]);
    snprintf(name, sizeof(name), "%s.hc_head", p);
    hyper(w, &unused.hc_attn, w->s->hc, 1, name);
}

/* ---------------------------------------------------------------- the whole */

int tensors_walk(const struct model_config *c, struct model_weights *weights, tensor_visit visit, void *userdata)
{
    struct walk w = {.s = &c->shape, .expert_type = c->expert_type, .visit = visit, .userdata = userdata,
                     .loaded = weights != NULL};
    struct model_weights no_weights;
    struct layer_weights no_layer;
    struct model_weights *to = weights ? weights : &no_weights;

    w.use = USE_EMBEDDING;
    matrix(&w, &to->embed, WEIGHT_BF16, c->shape.vocab, c->shape.hidden, "embed.weight");
    w.use = USE_ALWAYS;
    for (uint32_t i = 0; i < c->shape.layers && w.error == 0; i++) {
        struct layer_weights *layer = weights ? &weights->layer[i] : &no_layer;
        char p[32];
        snprintf(p, sizeof(p), "layers.%u", i);
        /* Written once, while it is filled; const for everybody else. */
        block(&w, layer, weights ? (struct expert_weights *)(uintptr_t)layer->moe.expert : NULL, c->shape.ratio[i],
              i < c->shape.hash_layers, p);
    }
    vector(&w, &to->norm, WEIGHT_BF16, c->shape.hidden, "norm.weight");
    matrix(&w, &to->head, WEIGHT_BF16, c->shape.vocab, c->shape.hidden, "head.weight");
    hyper(&w, &to->hc_head, c->shape.hc, 1, "hc_head");
    for (uint32_t i = 0; i < c->mtp_layers && w.error == 0; i++)
        mtp(&w, i);
    return w.error;
}

struct counting {
    struct parameter_count n;
    uint64_t routed;
};

static int count_item(const struct tensor_item *item, void *userdata)
{
    struct counting *c = userdata;
    const uint64_t n = (uint64_t)item->rows * item->cols;

    if (item->kind == ITEM_TABLE)
        return 0;
    if (item->use == USE_MTP || item->use == USE_MTP_EXPERT)
        c->n.mtp += n;
    else
        c->n.total += n;
    if (item->use == USE_ROUTED_EXPERT)
        c->routed += n;
    if (item->use == USE_ALWAYS)
        c->n.active += n;
    return 0;
}

int tensors_count(const struct model_config *c, struct parameter_count *ret)
{
    struct counting count = {0};
    int r = tensors_walk(c, NULL, count_item, &count);

    if (r < 0)
        return r;
    count.n.active += count.routed / c->shape.experts * c->shape.experts_used;
    *ret = count.n;
    return 0;
}

int tensors_targets(const struct model_config *c, struct model_weights *w)
{
    const size_t layers = c->shape.layers, experts = c->shape.experts;
    struct expert_weights *e;

    w->layer = calloc(layers, sizeof(*w->layer));
    e = calloc(layers * experts, sizeof(*e)); /* layers <= 512, experts <= 4096 */
    if (!w->layer || !e) {
        free(w->layer);
        free(e);
        w->layer = NULL;
        return -ENOMEM;
    }
    for (size_t i = 0; i < layers; i++)
        w->layer[i].moe.expert = e + i * experts;
    return 0;
}

void tensors_targets_free(struct model_weights *w)
{
    if (!w->layer)
        return;
    free((void *)(uintptr_t)w->layer[0].moe.expert); /* one block for all layers */
    free(w->layer);
    w->layer = NULL;
}

struct stored item_stored_data(const struct tensor_item *item)
{
    static const enum tensor_dtype dtypes[] = {[WEIGHT_BF16] = DTYPE_BF16, [WEIGHT_FP8] = DTYPE_F8_E4M3,
                                               [WEIGHT_FP4] = DTYPE_I8, [WEIGHT_F32] = DTYPE_F32};
    const bool fp4 = item->kind == ITEM_MATRIX && item->type == WEIGHT_FP4;

    return (struct stored){
        .dtype = item->kind == ITEM_TABLE ? DTYPE_I64 : dtypes[item->type],
        .n_dims = item->n_dims,
        .dim = {item->rows, fp4 ? item->cols / 2 : item->cols},
    };
}

struct stored item_stored_scale(const struct tensor_item *item)
{
    if (item->type == WEIGHT_FP4)
        return (struct stored){DTYPE_F8_E8M0, 2, {item->rows, item->cols / INDEX_BLOCK}};
    return (struct stored){DTYPE_F8_E8M0, 2, {div_up(item->rows, FP8_BLOCK), div_up(item->cols, FP8_BLOCK)}};
}

bool tensor_is_copy(const char *name)
{
    if (strncmp(name, "mtp.", 4) != 0)
        return false;
    for (name += 4; isdigit((unsigned char)*name); name++)
        ;
    return strncmp(name, ".emb", 4) == 0 || strcmp(name, ".head.weight") == 0;
}
