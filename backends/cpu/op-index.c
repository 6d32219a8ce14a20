/* SPDX-License-Identifier: MIT */
/*
 * The indexer: score(t, w) = sum over heads of weight * relu(iq . ik_w) for all complete entries w, the index_topk
 * highest of them in ascending order. Ties go to the lower number.
 *
 * Tokens are taken in groups whose scores fit into the score buffer. Selection: a radix search for the k-th highest
 * score, four passes over the scores, whatever they are.
 */
#include "backends/cpu/mat.h"
#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"
#include "base/size.h"

#define ITEM_PAGES 8 /* pages scored by one item of work */

struct index {
    struct backend *b;
    uint32_t layer, ratio;
    float *iq;
    const float *weight;
    uint32_t *chosen;
    size_t query_bytes;
    float scale;
    uint32_t first; /* token of the group */
};

static uint32_t entries_of(const struct index *x, uint32_t t)
{
    return (x->b->token[t].position + 1) / x->ratio;
}

static bool wants_scores(const struct index *x, uint32_t t)
{
    return entries_of(x, t) > x->b->shape->index_topk;
}

/* ---------------------------------------------------------------- queries */

static void query_token(void *arg, uint32_t t, uint32_t thread)
{
    (void)thread;
    const struct index *x = arg;
    const struct backend *b = x->b;
    const struct model_shape *s = b->shape;
    if (!wants_scores(x, t))
        return;
    float *iq = x->iq + (size_t)t * s->index_heads * s->index_dim;
    for (uint32_t head = 0; head < s->index_heads; head++) {
        float *q = iq + (size_t)head * s->index_dim;
        rope(q + s->index_dim - s->rope_dim, b->rotation[1] + (size_t)t * s->rope_dim, s->rope_dim, false);
        hadamard(q, s->index_dim);
        index_round(s->index_dim, q);
    }
    if (x->query_bytes)
        b->k->index_query(s, iq, b->index_query + t * x->query_bytes);
}

/* ---------------------------------------------------------------- scores */

/* Token of an item: the last one whose first item is not after it. */
static uint32_t token_of(const struct backend *b, uint32_t first, uint32_t item, uint32_t tokens)
{
    uint32_t lo = first, hi = tokens - 1;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;
        if (b->index_item[mid] <= item)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

struct score_job {
    const struct index *x;
    uint32_t end; /* of the group's tokens */
};

static void score_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct score_job *job = arg;
    const struct index *x = job->x;
    const struct backend *b = x->b;
    const struct model_shape *s = b->shape;
    const struct kv_layout *kv = b->kv;
    uint32_t t = token_of(b, x->first, item, job->end), per_page = KV_PAGE_TOKENS / x->ratio;
    const struct backend_seq *seq = &b->batch->seq[b->token[t].seq];

    float *weight = cpu_scratch(b, thread); /* [ih], then the kernel's */
    size_t own = align_up(s->index_heads * sizeof(float), WEIGHT_ALIGN);
    for (uint32_t i = 0; i < s->index_heads; i++)
        weight[i] = x->weight[(size_t)t * s->index_heads + i] * x->scale;
    const void *iq = x->query_bytes ? (const void *)(b->index_query + t * x->query_bytes)
                                    : (const void *)(x->iq + (size_t)t * s->index_heads * s->index_dim);

    uint32_t n = entries_of(x, t), page = (item - b->index_item[t]) * ITEM_PAGES;
    for (uint32_t i = page; i < page + ITEM_PAGES && i * per_page < n; i++) {
        const uint8_t *rows = b->batch->pages + seq->page[i] * kv->page_bytes + kv->page_index[x->layer];
        b->k->index_scores(s, iq, weight, MIN(per_page, n - i * per_page), rows, kv->index_row_bytes,
                           b->score + b->index_score[t] + (size_t)i * per_page, (uint8_t *)weight + own);
    }
}

/* ---------------------------------------------------------------- selection */

/* Order of scores as order of unsigned numbers; -0 counts as 0. */
static uint32_t sortable(float x)
{
    uint32_t u = mat_bits(x + 0.0f);
    return u & 0x80000000 ? ~u : u | 0x80000000;
}

/* The k-th highest of n scores (1 <= k <= n); *ret_ties: how many of those equal to it are among the k highest. */
static uint32_t kth_highest(const float *score, uint32_t n, uint32_t k, uint32_t *ret_ties)
{
    uint32_t prefix = 0, mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t count[256] = {0};
        for (uint32_t i = 0; i < n; i++) {
            uint32_t u = sortable(score[i]);
            if ((u & mask) == prefix)
                count[u >> shift & 255]++;
        }
        uint32_t digit = 255;
        while (count[digit] < k)
            k -= count[digit--];
        prefix |= digit << shift;
        mask |= 255u << shift;
    }
    *ret_ties = k;
    return prefix;
}

static void select_token(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const struct index *x = arg;
    uint32_t t = x->first + item, n = entries_of(x, t), k = x->b->shape->index_topk, at = 0;
    uint32_t *chosen = x->chosen + (size_t)t * k;
    if (wants_scores(x, t)) {
        const float *score = x->b->score + x->b->index_score[t];
        uint32_t ties, border = kth_highest(score, n, k, &ties);
        for (uint32_t i = 0; i < n && at < k; i++) {
            uint32_t u = sortable(score[i]);
            if (u > border || (u == border && ties && ties--))
                chosen[at++] = i;
        }
    } else {
        for (; at < n; at++)
            chosen[at] = at;
    }
    while (at < k)
        chosen[at++] = UINT32_MAX;
}

/* ---------------------------------------------------------------- */

/* Plans as many tokens from x->first as the score buffer holds (one always fits); returns their end. */
static uint32_t plan_group(struct index *x, uint32_t *ret_items)
{
    struct backend *b = x->b;
    size_t used = 0;
    uint32_t items = 0, t = x->first;
    for (; t < b->batch->tokens; t++) {
        size_t n = wants_scores(x, t) ? entries_of(x, t) : 0;
        if (t > x->first && used + n > b->score_count)
            break;
        b->index_score[t] = used;
        b->index_item[t] = items;
        used += n;
        items += (uint32_t)div_up(n, (size_t)ITEM_PAGES * (KV_PAGE_TOKENS / x->ratio));
    }
    *ret_items = items;
    return t;
}

int cpu_index_topk(struct backend *b, uint32_t layer, float *iq, const float *weight, uint32_t *chosen)
{
    const struct model_shape *s = b->shape;
    struct index x = {.b = b, .layer = layer, .ratio = s->ratio[layer], .iq = iq, .weight = weight, .chosen = chosen,
                      .query_bytes = b->k->index_query_bytes(s), .scale = b->index_scale};
    pool_run(b->pool, b->batch->tokens, query_token, &x);
    while (x.first < b->batch->tokens) {
        uint32_t items, end = plan_group(&x, &items);
        struct score_job job = {&x, end};
        pool_run(b->pool, items, score_item, &job);
        pool_run(b->pool, end - x.first, select_token, &x);
        x.first = end;
    }
    return 0;
}
