/* SPDX-License-Identifier: MIT */
/* See kv.h. Books are kept on the host; what they describe lies in device memory and is touched only through ops. */
#include "engine/kv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "base/size.h"

#define PAGE_ALIGN 16  /* of a layer's rows in a page: there are many pages, and rows are a multiple of 8 anyway */
#define STATE_ALIGN 64

/* A page or a state. Whoever had it last may get it again as it is; for anybody else it is zeroed first. */
struct slot {
    uint64_t owner;
    uint32_t refs;
    bool dirty; /* had an owner since it was last zeroed */
};

/* Equal pieces of one device allocation. */
struct slots {
    uint8_t *memory;      /* device, [count][bytes] */
    size_t bytes;
    struct slot *slot;    /* [count] */
    uint32_t *free;       /* [n_free], the last one goes out first */
    uint32_t count, n_free;
    _Atomic uint32_t used; /* = count - n_free, for other threads */
};

struct kv_pool {
    const struct backend_ops *ops;
    struct backend *backend;
    struct slots pages, states;
    uint32_t sessions;
};

/* ---------------------------------------------------------------- layout */

static size_t accumulator_floats(uint32_t ratio, uint32_t width)
{
    return ratio == 4 ? (size_t)2 * 3 * width : (size_t)3 * width;
}

static void layer_in_page(struct kv_layout *l, uint32_t layer, uint32_t ratio)
{
    size_t rows = KV_PAGE_TOKENS / ratio;

    l->page_rows[layer] = l->page_bytes;
    l->page_bytes += align_up(rows * l->row_bytes, PAGE_ALIGN);
    if (ratio != 4)
        return;
    l->page_index[layer] = l->page_bytes;
    l->page_bytes += align_up(rows * l->index_row_bytes, PAGE_ALIGN);
}

static void layer_in_state(struct kv_layout *l, const struct model_shape *shape, uint32_t layer)
{
    uint32_t ratio = shape->ratio[layer];

    l->state_ring[layer] = l->state_bytes;
    l->state_bytes += align_up(shape->window * l->row_bytes, STATE_ALIGN);
    if (ratio == 0)
        return;
    l->state_open[layer] = l->state_bytes;
    l->state_bytes += align_up(accumulator_floats(ratio, shape->head_dim) * sizeof(float), STATE_ALIGN);
    if (ratio != 4)
        return;
    l->state_open_index[layer] = l->state_bytes;
    l->state_bytes += align_up(accumulator_floats(ratio, shape->index_dim) * sizeof(float), STATE_ALIGN);
}

void kv_layout_init(struct kv_layout *l, const struct model_shape *shape, enum numerics numerics)
{
    size_t plain = shape->head_dim - shape->rope_dim;

    *l = (struct kv_layout){.rope_f32 = numerics == NUMERICS_EXACT};
    l->row_bytes = align_up(plain + plain / KV_BLOCK, 8) +
                   shape->rope_dim * (l->rope_f32 ? sizeof(float) : sizeof(uint16_t));
    l->index_row_bytes = shape->index_dim / 2 + shape->index_dim / INDEX_BLOCK;
    for (uint32_t i = 0; i < shape->layers; i++) {
        if (shape->ratio[i] != 0)
            layer_in_page(l, i, shape->ratio[i]);
        layer_in_state(l, shape, i);
    }
    /* A model without compressed layers still has pages, so that nothing need treat it apart. */
    l->page_bytes = MAX(align_up(l->page_bytes, 64), (size_t)64);
}

/* ---------------------------------------------------------------- slots */

static void slots_deinit(struct slots *s, struct kv_pool *p)
{
    if (s->memory)
        p->ops->free(p->backend, s->memory);
    free(s->slot);
    free(s->free);
}

static int slots_init(struct slots *s, struct kv_pool *p, uint32_t count, size_t bytes, const char *what, struct fail *f)
{
    void *memory;
    size_t total;
    int r;

    s->bytes = bytes;
    s->slot = calloc(count, sizeof(*s->slot));
    s->free = calloc(count, sizeof(*s->free));
    if (!s->slot || !s->free)
        return fail_oom(f);
    if (!size_mul(bytes, count, &total))
        return fail_set(f, EOVERFLOW, "RANGE", "%" PRIu32 " KV %s of %zu bytes are more than fits an address", count, what,
                        bytes);
    r = p->ops->alloc(p->backend, total, &memory);
    if (r < 0)
        return fail_set(f, -r, r == -EIO ? "IO_ERROR" : "NO_MEMORY",
                        "%zu bytes for %" PRIu32 " KV %s could not be allocated", total, count, what);
    s->memory = memory;
    s->count = s->n_free = count;
    for (uint32_t i = 0; i < count; i++)
        s->free[i] = count - 1 - i;
    return 0;
}

static uint8_t *slots_at(const struct slots *s, uint32_t i)
{
    return s->memory + (size_t)i * s->bytes;
}

/* The caller knows that one is free. */
static int slots_take(struct slots *s, struct kv_pool *p, uint64_t owner, uint32_t *ret)
{
    uint32_t i = s->free[s->n_free - 1];
    struct slot *slot = &s->slot[i];

    assert(slot->refs == 0);
    if (slot->dirty && slot->owner != owner) {
        int r = p->ops->zero(p->backend, slots_at(s, i), s->bytes);
        if (r < 0)
            return r;
    }
    s->n_free--;
    atomic_store_explicit(&s->used, s->count - s->n_free, memory_order_relaxed);
    *slot = (struct slot){.owner = owner, .refs = 1, .dirty = true};
    *ret = i;
    return 0;
}

static void slots_put(struct slots *s, uint32_t i)
{
    assert(s->slot[i].refs > 0);
    if (--s->slot[i].refs > 0)
        return;
    s->free[s->n_free++] = i;
    atomic_store_explicit(&s->used, s->count - s->n_free, memory_order_relaxed);
}

/* ---------------------------------------------------------------- the pool */

int kv_pool_new(const struct backend_ops *ops, struct backend *b, const struct kv_layout *l, uint32_t pages,
                uint32_t states, struct kv_pool **ret, struct fail *f)
{
    _cleanup_(kv_pool_freep) struct kv_pool *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return fail_oom(f);
    p->ops = ops;
    p->backend = b;
    if (pages == 0 || states == 0)
        return fail_set(f, ERANGE, "RANGE", "a KV pool has %" PRIu32 " pages and %" PRIu32 " states; 1 is the least of each",
                        pages, states);
    r = slots_init(&p->pages, p, pages, l->page_bytes, "pages", f);
    if (r < 0)
        return r;
    r = slots_init(&p->states, p, states, l->state_bytes, "states", f);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(p);
    return 0;
}

struct kv_pool *kv_pool_free(struct kv_pool *p)
{
    if (!p)
        return NULL;
    assert(p->sessions == 0);
    slots_deinit(&p->pages, p);
    slots_deinit(&p->states, p);
    free(p);
    return NULL;
}

uint8_t *kv_pool_pages(const struct kv_pool *p)
{
    return p->pages.memory;
}

void kv_pool_stats(const struct kv_pool *p, struct kv_stats *ret)
{
    *ret = (struct kv_stats){
        .page_count = p->pages.count,
        .state_count = p->states.count,
        .pages_used = atomic_load_explicit(&p->pages.used, memory_order_relaxed),
        .states_used = atomic_load_explicit(&p->states.used, memory_order_relaxed),
    };
    ret->total_bytes = (uint64_t)ret->page_count * p->pages.bytes + (uint64_t)ret->state_count * p->states.bytes;
    ret->used_bytes = (uint64_t)ret->pages_used * p->pages.bytes + (uint64_t)ret->states_used * p->states.bytes;
}

/* ---------------------------------------------------------------- sessions */

static int fail_device(struct fail *f, int r)
{
    return fail_set(f, -r, "INTERNAL", "the device failed while it prepared KV memory");
}

/* How many pages hold the session's tokens. */
static uint32_t pages_of(uint64_t tokens)
{
    return (uint32_t)(tokens / KV_PAGE_TOKENS + (tokens % KV_PAGE_TOKENS != 0));
}

/* A session with a state whose content is undefined. */
static int session_new(struct kv_pool *p, uint64_t owner, struct kv_session **ret, struct fail *f)
{
    struct kv_session *s;
    uint32_t i;
    int r;

    if (p->states.n_free == 0) {
        r = fail_set(f, ENOSPC, "KV_FULL", "all %" PRIu32 " sessions of the model are in use", p->states.count);
        fail_limit(f, p->states.count, (int64_t)p->states.count + 1);
        return r;
    }
    s = calloc(1, sizeof(*s));
    if (!s)
        return fail_oom(f);
    r = slots_take(&p->states, p, owner, &i);
    if (r < 0) {
        free(s);
        return fail_device(f, r);
    }
    p->sessions++;
    *s = (struct kv_session){.pool = p, .state = slots_at(&p->states, i), .owner = owner};
    *ret = s;
    return 0;
}

int kv_session_new(struct kv_pool *p, uint64_t owner, struct kv_session **ret, struct fail *f)
{
    _cleanup_(kv_session_freep) struct kv_session *s = NULL;
    int r = session_new(p, owner, &s, f);

    if (r < 0)
        return r;
    r = p->ops->state_reset(p->backend, s->state);
    if (r < 0)
        return fail_device(f, r);
    *ret = TAKE_PTR(s);
    return 0;
}

static void drop_pages(struct kv_session *s, uint32_t keep)
{
    while (s->n_pages > keep)
        slots_put(&s->pool->pages, s->page[--s->n_pages]);
}

struct kv_session *kv_session_free(struct kv_session *s)
{
    if (!s)
        return NULL;
    drop_pages(s, 0);
    slots_put(&s->pool->states, (uint32_t)((size_t)(s->state - s->pool->states.memory) / s->pool->states.bytes));
    s->pool->sessions--;
    free(s->page);
    free(s);
    return NULL;
}

static int page_room(struct kv_session *s, uint32_t n)
{
    uint32_t capacity = MAX(n, s->page_capacity > UINT32_MAX / 2 ? UINT32_MAX : s->page_capacity * 2);
    uint32_t *page;

    if (n <= s->page_capacity)
        return 0;
    page = reallocarray(s->page, capacity, sizeof(*page));
    if (!page)
        return -ENOMEM;
    s->page = page;
    s->page_capacity = capacity;
    return 0;
}

/* Where the next token goes if that is in a page which others read too, else UINT32_MAX. */
static uint32_t shared_tail(const struct kv_session *s)
{
    uint32_t i = s->tokens / KV_PAGE_TOKENS;

    if (s->tokens % KV_PAGE_TOKENS == 0 || s->pool->pages.slot[s->page[i]].refs == 1)
        return UINT32_MAX;
    return i;
}

static int unshare(struct kv_session *s, uint32_t i)
{
    struct kv_pool *p = s->pool;
    uint32_t own;
    int r = slots_take(&p->pages, p, s->owner, &own);

    if (r < 0)
        return r;
    r = p->ops->copy(p->backend, slots_at(&p->pages, own), slots_at(&p->pages, s->page[i]), p->pages.bytes);
    if (r < 0) {
        slots_put(&p->pages, own);
        return r;
    }
    slots_put(&p->pages, s->page[i]);
    s->page[i] = own;
    return 0;
}

int kv_session_reserve(struct kv_session *s, uint32_t n, struct fail *f)
{
    struct slots *pages = &s->pool->pages;
    uint32_t want = MAX(pages_of((uint64_t)s->tokens + n), s->n_pages), had = s->n_pages;
    uint32_t tail = n > 0 ? shared_tail(s) : UINT32_MAX;
    uint32_t more = want - had + (tail != UINT32_MAX);
    int r = 0;

    if (more > pages->n_free) {
        r = fail_set(f, ENOSPC, "KV_FULL", "the session needs %" PRIu32 " more pages of KV memory and %" PRIu32 " of %" PRIu32
                     " are free", more, pages->n_free, pages->count);
        fail_limit(f, pages->n_free, more);
        return r;
    }
    if (page_room(s, want) < 0)
        return fail_oom(f);
    while (r == 0 && s->n_pages < want) {
        r = slots_take(pages, s->pool, s->owner, &s->page[s->n_pages]);
        if (r == 0)
            s->n_pages++;
    }
    if (r == 0 && tail != UINT32_MAX)
        r = unshare(s, tail);
    if (r == 0)
        return 0;
    drop_pages(s, had);
    return fail_device(f, r);
}

void kv_session_trim(struct kv_session *s)
{
    drop_pages(s, MIN(s->n_pages, pages_of(s->tokens)));
}

int kv_session_fork(const struct kv_session *s, struct kv_session **ret, struct fail *f)
{
    _cleanup_(kv_session_freep) struct kv_session *copy = NULL;
    struct kv_pool *p = s->pool;
    uint32_t n = pages_of(s->tokens);
    int r = session_new(p, s->owner, &copy, f);

    if (r < 0)
        return r;
    if (page_room(copy, n) < 0)
        return fail_oom(f);
    r = p->ops->copy(p->backend, copy->state, s->state, p->states.bytes);
    if (r < 0)
        return fail_device(f, r);
    for (; copy->n_pages < n; copy->n_pages++) {
        copy->page[copy->n_pages] = s->page[copy->n_pages];
        p->pages.slot[s->page[copy->n_pages]].refs++;
    }
    copy->tokens = s->tokens;
    *ret = TAKE_PTR(copy);
    return 0;
}

int kv_session_reset(struct kv_session *s)
{
    s->tokens = 0;
    drop_pages(s, 0);
    return s->pool->ops->state_reset(s->pool->backend, s->state);
}

uint64_t kv_session_bytes(const struct kv_session *s)
{
    return s->pool->states.bytes + (uint64_t)s->n_pages * s->pool->pages.bytes;
}
