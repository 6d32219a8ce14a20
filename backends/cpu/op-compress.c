/* SPDX-License-Identifier: MIT */
/*
 * The compressor: an entry per `ratio` tokens is sum_t softmax_t(s_t) k_t per dimension, over its window's tokens; for
 * ratio 4 over the first halves of the window before and the second halves of its own. Kept as running softmax sums,
 * one token after the other, so that a chunk's borders leave no trace.
 *
 * Two passes: sums, by session and block of dimensions; then norm, rope and rounding of the entries completed.
 */
#include <math.h>
#include <string.h>

#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"
#include "base/size.h"

#define DIM_BLOCK 64

struct compress {
    struct backend *b;
    uint32_t layer, ratio, width, blocks;
    bool index, overlap;
    const float *k, *s;
    const struct compressor_weights *w;
};

static size_t open_offset(const struct backend *b, uint32_t layer, bool index)
{
    return index ? b->kv->state_open_index[layer] : b->kv->state_open[layer];
}

/* One more (s, k) for dimension e of the accumulator at a: [3][width], maximum, sum and weighted sum. */
static void accumulate(float *a, uint32_t width, uint32_t e, float s, float k)
{
    float *max = a + e, *sum = a + width + e, *acc = a + 2 * (size_t)width + e;
    if (s == -INFINITY)
        return;
    if (s <= *max) {
        float p = expf(s - *max);
        *sum += p;
        *acc += p * k;
    } else {
        float shrink = expf(*max - s); /* 0 for the first one */
        *max = s;
        *sum = *sum * shrink + 1;
        *acc = *acc * shrink + k;
    }
}

static void clear(float *a, uint32_t width, uint32_t from, uint32_t to)
{
    for (uint32_t e = from; e < to; e++) {
        a[e] = -INFINITY;
        a[width + e] = 0;
        a[2 * (size_t)width + e] = 0;
    }
}

/* The entry is complete: its value to `out`; the next one's first half, if there are halves, moves up. */
static void finish(float *a, bool overlap, uint32_t width, uint32_t from, uint32_t to, float *out)
{
    for (uint32_t e = from; e < to; e++)
        out[e] = a[2 * (size_t)width + e] / a[width + e];
    if (!overlap) {
        clear(a, width, from, to);
        return;
    }
    float *next = a + 3 * (size_t)width;
    for (uint32_t i = 0; i < 3; i++)
        memcpy(a + (size_t)i * width + from, next + (size_t)i * width + from, (to - from) * sizeof(float));
    clear(next, width, from, to);
}

static void sum_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const struct compress *c = arg;
    const struct backend_seq *seq = &c->b->batch->seq[item / c->blocks];
    uint32_t width = c->width, from = item % c->blocks * DIM_BLOCK, to = MIN(from + DIM_BLOCK, width);
    size_t row = (size_t)width * (c->overlap ? 2 : 1);
    float *a = (float *)(void *)(seq->state + open_offset(c->b, c->layer, c->index));

    for (uint32_t t = seq->first; t < seq->first + seq->count; t++) {
        uint32_t phase = c->b->token[t].position % c->ratio;
        const float *k = c->k + t * row, *s = c->s + t * row, *ape = c->w->ape + phase * row;
        uint32_t own = c->overlap ? width : 0; /* where the part of this window begins */
        for (uint32_t e = from; e < to; e++)
            accumulate(a, width, e, s[own + e] + ape[own + e], k[own + e]);
        if (c->overlap)
            for (uint32_t e = from; e < to; e++)
                accumulate(a + 3 * (size_t)width, width, e, s[e] + ape[e], k[e]);
        if (phase + 1 == c->ratio)
            finish(a, c->overlap, width, from, to, c->b->compressed + (size_t)t * width);
    }
}

/* Where entry number `entry` of a session lies. */
static uint8_t *entry_place(const struct compress *c, const struct backend_seq *seq, uint32_t entry)
{
    const struct kv_layout *kv = c->b->kv;
    uint32_t per_page = KV_PAGE_TOKENS / c->ratio;
    uint8_t *page = c->b->batch->pages + seq->page[entry / per_page] * kv->page_bytes;
    size_t base = c->index ? kv->page_index[c->layer] : kv->page_rows[c->layer];
    return page + base + entry % per_page * (c->index ? kv->index_row_bytes : kv->row_bytes);
}

static void store_item(void *arg, uint32_t t, uint32_t thread)
{
    const struct compress *c = arg;
    const struct backend *b = c->b;
    const struct model_shape *s = b->shape;
    uint32_t position = b->token[t].position;
    if ((position + 1) % c->ratio != 0)
        return;
    uint32_t entry = position / c->ratio, r = s->rope_dim;
    float *x = b->compressed + (size_t)t * c->width;
    float *rotation = cpu_scratch(b, thread); /* [r] */
    rms_norm(x, c->w->norm, c->width, s->rms_eps);
    rotation_init(s->theta[1], r, entry * c->ratio, rotation);
    rope(x + c->width - r, rotation, r, false);
    uint8_t *place = entry_place(c, &b->batch->seq[b->token[t].seq], entry);
    if (c->index) {
        hadamard(x, c->width);
        index_row_pack(c->width, x, place);
    } else {
        row_pack(s, b->kv, x, place);
    }
}

int cpu_compress_store(struct backend *b, uint32_t layer, bool index, const float *k, const float *s,
                       const struct compressor_weights *w)
{
    uint32_t width = index ? b->shape->index_dim : b->shape->head_dim, ratio = b->shape->ratio[layer];
    struct compress c = {b, layer, ratio, width, (uint32_t)div_up(width, DIM_BLOCK), index, ratio == 4, k, s, w};
    pool_run(b->pool, b->batch->n_seqs * c.blocks, sum_item, &c);
    pool_run(b->pool, b->batch->tokens, store_item, &c);
    return 0;
}

int cpu_state_reset(struct backend *b, uint8_t *state)
{
    memset(state, 0, b->kv->state_bytes);
    for (uint32_t layer = 0; layer < b->shape->layers; layer++) {
        uint32_t ratio = b->shape->ratio[layer];
        if (ratio == 0)
            continue;
        for (int index = 0; index < (ratio == 4 ? 2 : 1); index++) {
            uint32_t width = index ? b->shape->index_dim : b->shape->head_dim;
            float *a = (float *)(void *)(state + open_offset(b, layer, index));
            clear(a, width, 0, width);
            if (ratio == 4)
                clear(a + 3 * (size_t)width, width, 0, width);
        }
    }
    return 0;
}
