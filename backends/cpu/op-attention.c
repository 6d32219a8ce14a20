/* SPDX-License-Identifier: MIT */
/*
 * o = sum_k softmax(q . k / sqrt(c))_k k over the window (oldest first), then the compressed entries (ascending), with
 * the head's sink as one more score whose value is zero; then the inverse rotation at the query's position.
 *
 * One item is one token and up to ATTEND_HEADS heads. The rows of a query come to the kernel ATTEND_KEYS at a time,
 * counted from its own first one, so the order of its sum depends on its position only.
 */
#include <math.h>
#include <string.h>

#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"
#include "base/size.h"

struct attention {
    struct backend *b;
    uint32_t layer, groups;
    const float *q, *sink;
    const uint8_t *rows;
    const uint32_t *chosen;
    float *o;
    float scale;
};

/* The rows of one query, in order. */
struct keys {
    const struct attention *a;
    const struct backend_seq *seq;
    const uint8_t *ring;
    uint32_t t, at, end;       /* next window position, and one past the last */
    uint32_t entry, entries;   /* next compressed entry (or its place in chosen) */
    const uint32_t *chosen;
};

static void keys_init(struct keys *k, const struct attention *a, uint32_t t)
{
    const struct backend *b = a->b;
    uint32_t position = b->token[t].position, window = b->shape->window, ratio = b->shape->ratio[a->layer];
    const struct backend_seq *seq = &b->batch->seq[b->token[t].seq];
    *k = (struct keys){
        .a = a,
        .seq = seq,
        .ring = seq->state + b->kv->state_ring[a->layer],
        .t = t,
        .at = position + 1 > window ? position + 1 - window : 0,
        .end = position + 1,
        .entries = ratio ? (position + 1) / ratio : 0,
        .chosen = a->chosen ? a->chosen + (size_t)t * b->shape->index_topk : NULL,
    };
    if (k->chosen)
        k->entries = MIN(k->entries, b->shape->index_topk);
}

static const uint8_t *window_row(const struct keys *k, uint32_t position)
{
    const struct backend *b = k->a->b;
    if (position >= k->seq->position) /* of this very chunk */
        return k->a->rows + (size_t)(k->seq->first + (position - k->seq->position)) * b->kv->row_bytes;
    return k->ring + (size_t)(position % b->shape->window) * b->kv->row_bytes;
}

static const uint8_t *entry_row(const struct keys *k, uint32_t entry)
{
    const struct backend *b = k->a->b;
    uint32_t per_page = KV_PAGE_TOKENS / b->shape->ratio[k->a->layer];
    return b->batch->pages + k->seq->page[entry / per_page] * b->kv->page_bytes + b->kv->page_rows[k->a->layer] +
           entry % per_page * b->kv->row_bytes;
}

/* Up to ATTEND_KEYS more rows; 0: no more. */
static uint32_t keys_next(struct keys *k, const uint8_t **row)
{
    uint32_t n = 0;
    while (n < ATTEND_KEYS && k->at < k->end)
        row[n++] = window_row(k, k->at++);
    while (n < ATTEND_KEYS && k->entry < k->entries) {
        uint32_t entry = k->chosen ? k->chosen[k->entry] : k->entry;
        if (entry == UINT32_MAX) {
            k->entry = k->entries;
            break;
        }
        row[n++] = entry_row(k, entry);
        k->entry++;
    }
    return n;
}

static void attention_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct attention *a = arg;
    const struct backend *b = a->b;
    const struct model_shape *s = b->shape;
    uint32_t t = item / a->groups, c = s->head_dim, r = s->rope_dim, first = item % a->groups * ATTEND_HEADS;
    size_t offset = ((size_t)t * s->heads + first) * c;
    float max[ATTEND_HEADS], sum[ATTEND_HEADS], *o = a->o + offset;
    struct cpu_attend step = {.shape = s, .kv = b->kv, .heads = MIN(s->heads - first, (uint32_t)ATTEND_HEADS),
                              .q = a->q + offset, .scale = a->scale, .max = max, .sum = sum, .acc = o};
    memset(o, 0, (size_t)step.heads * c * sizeof(float));
    for (uint32_t h = 0; h < step.heads; h++) {
        max[h] = a->sink[first + h];
        sum[h] = max[h] == -INFINITY ? 0 : 1;
    }

    struct keys keys;
    const uint8_t *row[ATTEND_KEYS];
    keys_init(&keys, a, t);
    for (uint32_t n; (n = keys_next(&keys, row)) > 0;)
        b->k->attend(&step, n, row, cpu_scratch(b, thread));

    const float *rotation = b->rotation[s->ratio[a->layer] != 0] + (size_t)t * r;
    for (uint32_t h = 0; h < step.heads; h++) {
        float *x = o + (size_t)h * c;
        for (uint32_t i = 0; i < c; i++)
            x[i] /= sum[h];
        rope(x + c - r, rotation, r, true);
    }
}

int cpu_attention(struct backend *b, uint32_t layer, const float *q, const uint8_t *rows, const uint32_t *chosen,
                  const float *sink, float *o)
{
    const struct model_shape *s = b->shape;
    struct attention a = {.b = b, .layer = layer, .groups = (uint32_t)div_up(s->heads, ATTEND_HEADS), .q = q,
                          .sink = sink, .rows = rows, .chosen = chosen, .o = o,
                          .scale = (float)(1 / sqrt(s->head_dim))};
    pool_run(b->pool, b->batch->tokens * a.groups, attention_item, &a);
    return 0;
}
