/* SPDX-License-Identifier: MIT */
/* y = W x: one matrix or several that share x, and block-diagonal (a matrix per group). */
#include <string.h>

#include "backends/cpu/ops.h"
#include "base/size.h"

/* Rows of an item, at most: a block of decoded rows and its results stay in the cache. */
#define ITEM_ROWS_MAX 128
/* Items per thread wished for, so that a late thread does not hold up the others. */
#define ITEMS_PER_THREAD 4

uint32_t linear_item_rows(const struct backend *b, size_t rows)
{
    size_t want = div_up(rows, (size_t)pool_threads(b->pool) * ITEMS_PER_THREAD);
    want = align_up(MAX(want, 1), ROW_GROUP);
    return (uint32_t)MIN(want, ITEM_ROWS_MAX);
}

struct prepare {
    struct backend *b;
    enum weight_type type;
    uint32_t cols;
    const float *x;
    size_t x_step, bytes;
};

static void prepare_item(void *arg, uint32_t item, uint32_t thread)
{
    (void)thread;
    const struct prepare *p = arg;
    p->b->k->activation(p->type, p->cols, p->x + item * p->x_step, p->b->activation + item * p->bytes);
}

void linear_prepare(struct backend *b, enum weight_type type, uint32_t cols, uint32_t n, const float *x, size_t x_step,
                    struct cpu_matmul *m)
{
    struct prepare p = {b, type, cols, x, x_step, b->k->activation_bytes(type, cols)};
    m->x = p.bytes ? b->activation : (const uint8_t *)x;
    m->x_stride = p.bytes ? p.bytes : x_step * sizeof(float);
    if (p.bytes)
        pool_run(b->pool, n, prepare_item, &p);
}

struct run {
    struct backend *b;
    const struct cpu_matmul *m;
    uint32_t n, item_rows;
    uint32_t first[LINEAR_JOBS + 1]; /* first item of each matrix, and the number of items */
};

static void run_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct run *r = arg;
    uint32_t i = 0;
    while (item >= r->first[i + 1])
        i++;
    const struct cpu_matmul *m = &r->m[i];
    uint32_t row = (item - r->first[i]) * r->item_rows;
    uint32_t end = (uint32_t)MIN((size_t)row + r->item_rows, m->w->rows);
    r->b->k->matmul[m->w->type](m, row, end, cpu_scratch(r->b, thread));
}

void linear_run(struct backend *b, const struct cpu_matmul *m, uint32_t n)
{
    size_t rows = 0;
    for (uint32_t i = 0; i < n; i++)
        rows += m[i].w->rows;
    struct run r = {.b = b, .m = m, .n = n, .item_rows = linear_item_rows(b, rows)};
    for (uint32_t i = 0; i < n; i++)
        r.first[i + 1] = r.first[i] + (uint32_t)div_up(m[i].w->rows, r.item_rows);
    pool_run(b->pool, r.first[n], run_item, &r);
}

/* Matrices of one type share the prepared activations. */
static void linear_of_type(struct backend *b, enum weight_type type, const float *x, uint32_t count,
                           const struct weight *const *w, float *const *y)
{
    struct cpu_matmul m[LINEAR_JOBS];
    uint32_t n = 0, tokens = b->batch->tokens;
    for (uint32_t i = 0; i < count; i++) {
        if (w[i]->type != type)
            continue;
        if (n == LINEAR_JOBS) {
            linear_run(b, m, n);
            n = 0;
        }
        struct cpu_matmul job = {.w = w[i], .n = tokens, .y = y[i], .y_stride = w[i]->rows};
        if (n == 0)
            linear_prepare(b, type, w[i]->cols, tokens, x, w[i]->cols, &job);
        else
            job.x = m[0].x, job.x_stride = m[0].x_stride;
        m[n++] = job;
    }
    if (n)
        linear_run(b, m, n);
}

int cpu_linear(struct backend *b, const float *x, uint32_t count, const struct weight *const *w, float *const *y)
{
    for (enum weight_type type = WEIGHT_BF16; type <= WEIGHT_F32; type++)
        linear_of_type(b, type, x, count, w, y);
    return 0;
}

struct grouped {
    struct backend *b;
    const struct cpu_matmul *m;
    uint32_t rank, item_rows, items_per_group;
    size_t group_bytes; /* between the activations of two groups of one token */
};

/* Rows first .. end - 1 of one ROW_GROUP that begin inside it: kernels begin at its start, so their results go through
 * a buffer and only those asked for to y, where the others are of another group's activations. */
static void matmul_edge(const struct backend *b, const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    enum { TOKENS = 32 };
    uint32_t base = first / ROW_GROUP * ROW_GROUP;
    for (uint32_t t = 0; t < m->n; t += TOKENS) {
        float part[TOKENS][ROW_GROUP];
        struct cpu_matmul sub = *m;
        sub.n = MIN(m->n - t, (uint32_t)TOKENS);
        sub.x += t * m->x_stride;
        sub.y = (float *)((uintptr_t)part - base * sizeof(float)); /* row `base` at part[.][0] */
        sub.y_stride = ROW_GROUP;
        b->k->matmul[m->w->type](&sub, base, end, scratch);
        for (uint32_t i = 0; i < sub.n; i++)
            memcpy(m->y + (t + i) * m->y_stride + first, part[i] + (first - base), (end - first) * sizeof(float));
    }
}

static void grouped_item(void *arg, uint32_t item, uint32_t thread)
{
    const struct grouped *g = arg;
    uint32_t group = item / g->items_per_group, begin = group * g->rank;
    uint32_t from = begin / ROW_GROUP * ROW_GROUP + item % g->items_per_group * g->item_rows;
    uint32_t first = MAX(from, begin), end = MIN(from + g->item_rows, begin + g->rank);
    struct cpu_matmul m = *g->m;
    m.x += group * g->group_bytes;
    if (first < end && first % ROW_GROUP) {
        uint32_t edge = MIN(end, (uint32_t)align_up(first, ROW_GROUP));
        matmul_edge(g->b, &m, first, edge, cpu_scratch(g->b, thread));
        first = edge;
    }
    if (first < end)
        g->b->k->matmul[m.w->type](&m, first, end, cpu_scratch(g->b, thread));
}

/* y[t][g*rank + i] = W[g*rank + i] . x[t][g*cols ..]: the activations are T * groups rows of cols values. */
int cpu_grouped_linear(struct backend *b, uint32_t groups, const float *x, const struct weight *w, float *y)
{
    uint32_t tokens = b->batch->tokens, rank = w->rows / groups;
    struct cpu_matmul m = {.w = w, .n = tokens, .y = y, .y_stride = w->rows};
    linear_prepare(b, w->type, w->cols, tokens * groups, x, w->cols, &m);
    struct grouped g = {.b = b, .m = &m, .rank = rank, .group_bytes = m.x_stride};
    m.x_stride *= groups;
    g.item_rows = linear_item_rows(b, w->rows);
    g.items_per_group = (uint32_t)div_up(rank + ROW_GROUP - 1, g.item_rows);
    pool_run(b->pool, groups * g.items_per_group, grouped_item, &g);
    return 0;
}
