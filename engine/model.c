/* SPDX-License-Identifier: MIT */
/* Opens a model: checkpoint, device, weights, KV pool, scratch; and counts its memory before touching any of it. */
#include "engine/forward.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/size.h"

#define KV_BYTES_LEAST ((uint64_t)64 << 20) /* of a pool whose size nobody chose */
#define STEP_TOKENS_MAX 65536

/* What a model takes of its device's memory. */
struct memory_plan {
    uint64_t weights, scratch, states, pages; /* bytes */
    uint32_t n_pages, n_states;
};

static int fail_range(struct fail *f, const char *what, uint64_t value, uint64_t max)
{
    int r = fail_set(f, ERANGE, "RANGE", "%s is %" PRIu64 "; 1 to %" PRIu64 " is possible", what, value, max);

    fail_field(f, what);
    fail_limit(f, (int64_t)max, (int64_t)value);
    return r;
}

static int take_limits(struct model *m, const struct model_options *o, struct fail *f)
{
    m->max_step_tokens = o->max_step_tokens ? o->max_step_tokens : MODEL_STEP_TOKENS;
    m->context_tokens = o->context_tokens ? o->context_tokens : m->shape->max_position;
    if (m->max_step_tokens > STEP_TOKENS_MAX)
        return fail_range(f, "tokens of a step", m->max_step_tokens, STEP_TOKENS_MAX);
    if (m->context_tokens > m->shape->max_position)
        return fail_range(f, "context", m->context_tokens, m->shape->max_position);
    return 0;
}

static int open_backend(struct model *m, const struct model_options *o, struct fail *f)
{
    const char *device = o->device ? o->device : "cpu";
    const struct backend_params params = {
        .numerics = o->numerics,
        .shape = m->shape,
        .kv = &m->kv,
        .max_tokens = m->max_step_tokens,
        .threads = o->threads,
        .isa = o->isa,
    };

    m->ops = backend_find(device);
    if (!m->ops)
        return fail_set(f, EOPNOTSUPP, "UNSUPPORTED", "this program has no backend '%s'", device);
    return m->ops->open(&params, &m->backend, f);
}

/* Bytes of the page pool: what was asked for, or enough for one longest session within reason. */
static uint64_t choose_kv_bytes(const struct model *m, const struct model_options *o, uint64_t room)
{
    uint64_t one = div_up(m->context_tokens, KV_PAGE_TOKENS) * (uint64_t)m->kv.page_bytes;

    if (o->kv_bytes > 0)
        return o->kv_bytes;
    return MIN(MAX(one, KV_BYTES_LEAST), room / 2);
}

static int plan_memory(const struct model *m, const struct model_options *o, struct memory_plan *p, struct fail *f)
{
    struct backend_info info = {0};
    uint64_t fixed, room, pages, need;
    int r = weights_arena_bytes(m->checkpoint, m->ops, m->backend, &p->weights, f);

    if (r < 0)
        return r;
    m->ops->info(m->backend, &info);
    p->n_states = o->sessions ? o->sessions : MODEL_SESSIONS;
    p->states = (uint64_t)p->n_states * m->kv.state_bytes;
    p->scratch = forward_scratch_bytes(m->shape, &m->kv, m->max_step_tokens);
    fixed = p->weights + p->scratch + p->states;
    room = info.memory_free > fixed ? info.memory_free - fixed : 0;
    pages = choose_kv_bytes(m, o, room) / m->kv.page_bytes;
    if (pages == 0 && o->kv_bytes > 0)
        return fail_set(f, ERANGE, "RANGE", "%" PRIu64 " bytes of KV memory hold no page; one has %zu bytes", o->kv_bytes,
                        m->kv.page_bytes);
    p->n_pages = (uint32_t)MIN(MAX(pages, (uint64_t)1), (uint64_t)UINT32_MAX - 1);
    p->pages = p->n_pages * (uint64_t)m->kv.page_bytes;
    need = fixed + p->pages;
    if (need <= info.memory_free)
        return 0;
    r = fail_set(f, ENOMEM, "NO_MEMORY", "the model needs %" PRIu64 " bytes on %s (weights %" PRIu64 ", KV pages %" PRIu64
                 ", session states %" PRIu64 ", scratch %" PRIu64 ") and %" PRIu64 " bytes are available", need, info.name,
                 p->weights, p->pages, p->states, p->scratch, info.memory_free);
    fail_limit(f, (int64_t)info.memory_free, (int64_t)need);
    return r;
}

int model_open(const char *directory, const struct model_options *o, struct model **ret, struct fail *f)
{
    _cleanup_(model_freep) struct model *m = calloc(1, sizeof(*m));
    struct load_options load = o->load;
    struct memory_plan plan = {0};
    int r;

    if (!m)
        return fail_oom(f);
    r = checkpoint_open(directory, &m->checkpoint, f);
    if (r < 0)
        return r;
    m->shape = &m->checkpoint->config->shape;
    r = take_limits(m, o, f);
    if (r < 0)
        return r;
    kv_layout_init(&m->kv, m->shape, o->numerics);
    r = open_backend(m, o, f);
    if (r < 0)
        return r;
    r = plan_memory(m, o, &plan, f);
    if (r < 0)
        return r;
    r = weights_load(m->checkpoint, m->ops, m->backend, &load, &m->weights, f);
    if (r < 0)
        return r;
    r = kv_pool_new(m->ops, m->backend, &m->kv, plan.n_pages, plan.n_states, &m->pool, f);
    if (r < 0)
        return r;
    r = forward_new(m, &m->forward, f);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(m);
    return 0;
}

struct model *model_free(struct model *m)
{
    if (!m)
        return NULL;
    (void)forward_free(m->forward, m->ops, m->backend);
    (void)kv_pool_free(m->pool);
    (void)weights_free(m->weights);
    if (m->ops)
        m->ops->close(m->backend);
    (void)checkpoint_free(m->checkpoint);
    free(m);
    return NULL;
}
