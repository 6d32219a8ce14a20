/* SPDX-License-Identifier: MIT */
/* See session.h. */
#include "engine/session.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/size.h"

static uint64_t now_realtime_usec(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

int session_table_init(struct session_table *t, struct kv_pool *pool)
{
    t->pool = pool;
    return map_new(&t->by_id);
}

void session_table_deinit(struct session_table *t)
{
    struct session *s;

    if (!t->by_id)
        return;
    for (size_t cursor = 0; (s = map_next(t->by_id, &cursor, NULL, NULL));)
        session_free(s);
    t->by_id = map_free(t->by_id);
}

int session_new_temporary(struct session_table *t, uint64_t owner, struct session **ret, struct fail *f)
{
    struct session *s = calloc(1, sizeof(*s));

    (void)t;
    if (!s)
        return fail_oom(f);
    s->owner = owner;
    s->created_usec = s->used_usec = now_realtime_usec();
    *ret = s;
    return 0;
}

int session_new(struct session_table *t, const char *id, uint64_t owner, const char *label, struct session **ret,
                struct fail *f)
{
    _cleanup_(session_freep) struct session *s = NULL;
    size_t n = strlen(id), count = map_size(t->by_id);

    if (n == 0 || n > SESSION_ID_MAX)
        return fail_set(f, ERANGE, "RANGE", "the session's id has %zu bytes; 1 to %d are possible", n, SESSION_ID_MAX);
    if (count >= SESSIONS_MAX) {
        fail_set(f, ENOSPC, "KV_FULL", "the model has %zu sessions open, which is its limit", count);
        fail_limit(f, SESSIONS_MAX, (int64_t)count + 1);
        return -ENOSPC;
    }
    int r = session_new_temporary(t, owner, &s, f);
    if (r < 0)
        return r;
    s->id = strdup(id);
    s->label = label ? strdup(label) : NULL;
    if (!s->id || (label && !s->label))
        return fail_oom(f);
    r = map_put(t->by_id, id, n, s);
    if (r == -EEXIST)
        return fail_set(f, EIO, "INTERNAL", "a session of that id exists already");
    if (r < 0)
        return fail_oom(f);
    s->table = t;
    *ret = TAKE_PTR(s);
    return 0;
}

struct session *session_free(struct session *s)
{
    if (!s)
        return NULL;
    assert(!s->busy);
    if (s->table)
        map_remove(s->table->by_id, s->id, strlen(s->id));
    kv_session_free(s->kv);
    tokens_deinit(&s->tokens);
    free(s->id);
    free(s->label);
    free(s);
    return NULL;
}

int session_find(struct session_table *t, const char *id, uint64_t owner, struct session **ret, struct fail *f)
{
    struct session *s = map_get(t->by_id, id, strlen(id));

    if (!s || s->owner != owner)
        return fail_set(f, ENOENT, "NO_SUCH_SESSION", "there is no session of that id");
    *ret = s;
    return 0;
}

static int check_idle(const struct session *s, struct fail *f)
{
    if (s->busy)
        return fail_set(f, EBUSY, "SESSION_BUSY", "the session is in use by another request");
    return 0;
}

static void drop_kv(struct session *s)
{
    s->kv = kv_session_free(s->kv);
}

/* ---------------------------------------------------------------- KV memory */

/* Who loses its KV: an idle session, one of this owner before any other, the longest unused of them. */
static struct session *victim(const struct session_table *t, const struct session *for_whom)
{
    struct session *best = NULL, *s;

    for (size_t cursor = 0; (s = map_next(t->by_id, &cursor, NULL, NULL));) {
        if (s == for_whom || s->busy || !s->kv)
            continue;
        bool own = s->owner == for_whom->owner, best_own = best && best->owner == for_whom->owner;
        if (!best || (own && !best_own) || (own == best_own && s->used_usec < best->used_usec))
            best = s;
    }
    return best;
}

static bool make_room(struct session_table *t, const struct session *for_whom)
{
    struct session *s = victim(t, for_whom);

    if (s)
        drop_kv(s);
    return s != NULL;
}

/* Could evicting help at all? Nobody's KV is taken for a request that does not fit anyway. Shared pages count for each of
 * their sessions here, so this may be too hopeful, never too strict. */
static bool may_fit(const struct session_table *t, const struct session *s, uint32_t n)
{
    struct kv_stats stats;
    const struct session *other;
    uint64_t need, have = s->kv ? s->kv->n_pages : 0;

    kv_pool_stats(t->pool, &stats);
    need = div_up((s->kv ? s->kv->tokens : 0) + (uint64_t)n, KV_PAGE_TOKENS);
    have += stats.page_count - stats.pages_used;
    for (size_t cursor = 0; have < need && (other = map_next(t->by_id, &cursor, NULL, NULL));)
        if (other != s && !other->busy && other->kv)
            have += other->kv->n_pages;
    return have >= need;
}

int session_reserve(struct session_table *t, struct session *s, uint32_t n, struct fail *f)
{
    int r = 0;

    do
        if (!s->kv)
            r = kv_session_new(t->pool, s->owner, &s->kv, f);
    while (r == -ENOSPC && may_fit(t, s, n) && make_room(t, s));
    if (r < 0)
        return r;
    do
        r = kv_session_reserve(s->kv, n, f);
    while (r == -ENOSPC && may_fit(t, s, n) && make_room(t, s));
    return r;
}

uint64_t session_kv_bytes(const struct session *s)
{
    return s->kv ? kv_session_bytes(s->kv) : 0;
}

/* ---------------------------------------------------------------- fork and trim */

int session_fork(struct session_table *t, struct session *s, const char *id, const char *label, struct session **ret,
                 struct fail *f)
{
    _cleanup_(session_freep) struct session *copy = NULL;
    int r = check_idle(s, f);

    if (r < 0)
        return r;
    r = session_new(t, id, s->owner, label, &copy, f);
    if (r < 0)
        return r;
    if (tokens_append(&copy->tokens, s->tokens.id, s->tokens.n) < 0)
        return fail_oom(f);
    if (s->kv) {
        /* not evicted for its own copy */
        s->busy = true;
        do
            r = kv_session_fork(s->kv, &copy->kv, f);
        while (r == -ENOSPC && make_room(t, copy));
        s->busy = false;
        if (r < 0)
            return r;
    }
    *ret = TAKE_PTR(copy);
    return 0;
}

int session_trim(struct session *s, uint32_t tokens, struct fail *f)
{
    int r = check_idle(s, f);

    if (r < 0)
        return r;
    if (tokens > s->tokens.n) {
        fail_set(f, ERANGE, "RANGE", "the session has %zu tokens; %" PRIu32 " cannot be kept", s->tokens.n, tokens);
        fail_field(f, "tokens");
        fail_limit(f, (int64_t)s->tokens.n, tokens);
        return -ERANGE;
    }
    s->tokens.n = tokens;
    if (s->kv && s->kv->tokens > tokens)
        drop_kv(s);
    s->used_usec = now_realtime_usec();
    return 0;
}

/* ---------------------------------------------------------------- requests */

int session_begin(struct session *s, struct fail *f)
{
    int r = check_idle(s, f);

    if (r < 0)
        return r;
    s->busy = true;
    s->base = s->tokens.n;
    return 0;
}

int session_append(struct session *s, const uint32_t *id, size_t n, struct fail *f)
{
    return tokens_append(&s->tokens, id, n) < 0 ? fail_oom(f) : 0;
}

int session_replace(struct session *s, const uint32_t *id, size_t n, struct fail *f)
{
    struct tokens list = TOKENS_INIT;
    size_t held = s->kv ? s->kv->tokens : 0, same = 0;

    if (tokens_append(&list, id, n) < 0)
        return fail_oom(f);
    while (same < n && same < s->tokens.n && id[same] == s->tokens.id[same])
        same++;
    if (held > same || held >= n) /* one token at least must be left to compute */
        drop_kv(s);
    tokens_deinit(&s->tokens);
    s->tokens = list;
    s->base = same;
    return 0;
}

void session_prepare(struct session *s)
{
    if (s->kv && s->kv->tokens >= s->tokens.n)
        drop_kv(s);
}

int session_push(struct session *s, uint32_t id, struct fail *f)
{
    if (tokens_append(&s->tokens, &id, 1) < 0)
        return fail_oom(f);
    s->base = s->tokens.n;
    return 0;
}

void session_end(struct session *s)
{
    size_t computed = s->kv ? s->kv->tokens : 0;

    s->busy = false;
    s->used_usec = now_realtime_usec();
    s->tokens.n = MIN(s->tokens.n, MAX(s->base, computed));
    if (s->kv)
        kv_session_trim(s->kv);
}
