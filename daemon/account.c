/* SPDX-License-Identifier: MIT */
/* See account.h. */
#include "daemon/account.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define MINUTE_USEC 60000000ull
#define DAY_USEC (24 * 60 * MINUTE_USEC)
#define QUOTA_RETRY_MS 1000 /* when something held must be given back first: a guess */

int accounts_init(struct accounts *a, const struct limits *l, const struct quotas *q)
{
    *a = (struct accounts){.limits = l, .quotas = q};
    return map_new(&a->by_uid);
}

static void account_free(struct account *a)
{
    while (a->usage) {
        struct usage *u = a->usage;
        a->usage = u->next;
        free(u->model);
        free(u);
    }
    free(a);
}

void accounts_deinit(struct accounts *a)
{
    size_t cursor = 0;
    struct account *one;

    if (!a->by_uid)
        return;
    while ((one = map_next(a->by_uid, &cursor, NULL, NULL))) {
        for (int i = 0; i < N_CHARGES; i++)
            assert(one->used[i] == 0);
        account_free(one);
    }
    a->by_uid = map_free(a->by_uid);
}

static struct account *get(struct accounts *all, uid_t uid)
{
    struct account *a = map_get_u64(all->by_uid, uid);

    if (a)
        return a;
    a = calloc(1, sizeof(*a));
    if (!a)
        return NULL;
    a->all = all;
    a->uid = uid;
    if (map_put_u64(all->by_uid, uid, a) < 0) {
        free(a);
        return NULL;
    }
    return a;
}

static void drop_if_unused(struct account *a)
{
    for (int i = 0; i < N_CHARGES; i++)
        if (a->used[i] > 0)
            return;
    if (a->usage)
        return;
    map_remove_u64(a->all->by_uid, a->uid);
    account_free(a);
}

const char *charge_name(enum charge_kind kind)
{
    static const char *const names[] = {"Connections", "Sessions", "QueuedRequests", "WaitingBytes", "Resumes"};
    return names[kind];
}

uint64_t account_limit(const struct account *a, enum charge_kind kind)
{
    const struct limits *l = &a->limits;
    const uint64_t limits[] = {l->connections, l->sessions, l->queued_requests, l->waiting_bytes, l->resumes};
    return limits[kind];
}

static uint64_t total_limit(const struct accounts *all, enum charge_kind kind)
{
    switch (kind) {
    case CHARGE_CONNECTIONS:
        return all->limits->max_connections;
    case CHARGE_WAITING_BYTES:
        return all->limits->max_waiting_bytes;
    default:
        return UINT64_MAX;
    }
}

static int over(const char *name, const char *whose, uint64_t limit, uint64_t used, struct fail *f)
{
    fail_set(f, EDQUOT, "QUOTA", "%s of %s: the limit is %llu and %llu are used", name, whose, (unsigned long long)limit,
             (unsigned long long)used);
    fail_field(f, name);
    fail_limit(f, (int64_t)MIN(limit, (uint64_t)INT64_MAX), (int64_t)MIN(used, (uint64_t)INT64_MAX));
    if (f)
        f->retry_after_ms = QUOTA_RETRY_MS;
    return -EDQUOT;
}

static bool fits(uint64_t used, uint64_t n, uint64_t limit)
{
    return n <= limit && used <= limit - n;
}

int charge_take(struct charge *c, struct account *a, enum charge_kind kind, uint64_t n, struct fail *f)
{
    uint64_t limit = account_limit(a, kind), total = total_limit(a->all, kind);

    if (!fits(a->used[kind], n, limit))
        return over(charge_name(kind), "this user", limit, a->used[kind], f);
    if (!fits(a->all->total[kind], n, total))
        return over(charge_name(kind), "all users", total, a->all->total[kind], f);
    a->used[kind] += n;
    a->all->total[kind] += n;
    *c = (struct charge){.account = a, .kind = kind, .n = n};
    return 0;
}

int charge_take_who(struct charge *c, struct accounts *all, const struct who *w, enum charge_kind kind, uint64_t n,
                    struct fail *f)
{
    struct account *a = get(all, w->uid);

    if (!a)
        return fail_oom(f);
    a->limits = *all->limits;
    quotas_apply(all->quotas, w, &a->limits);
    int r = charge_take(c, a, kind, n, f);
    if (r < 0)
        drop_if_unused(a);
    return r;
}

void charge_release(struct charge *c)
{
    struct account *a = c->account;

    if (!a)
        return;
    assert(a->used[c->kind] >= c->n && a->all->total[c->kind] >= c->n);
    a->used[c->kind] -= c->n;
    a->all->total[c->kind] -= c->n;
    *c = CHARGE_NONE;
    drop_if_unused(a);
}

/* ---- tokens */

static void roll(struct window *w, uint64_t now, uint64_t length)
{
    if (now >= w->ends_usec)
        *w = (struct window){.ends_usec = now + length};
}

static int check_window(const struct window *w, const char *name, uint64_t limit, uint64_t now, struct fail *f)
{
    if (w->used < limit)
        return 0;
    over(name, "this user", limit, w->used, f);
    if (f)
        f->retry_after_ms = (uint32_t)((w->ends_usec - now) / 1000 + 1);
    return -EDQUOT;
}

int account_check_tokens(struct account *a, uint64_t now, struct fail *f)
{
    const struct limits *l = &a->limits;

    roll(&a->minute, now, MINUTE_USEC);
    roll(&a->day, now, DAY_USEC);
    int r = check_window(&a->minute, "TokensPerMinute", l->tokens_per_minute, now, f);
    return r < 0 ? r : check_window(&a->day, "TokensPerDay", l->tokens_per_day, now, f);
}

void account_add_tokens(struct account *a, uint64_t now, uint64_t tokens)
{
    roll(&a->minute, now, MINUTE_USEC);
    roll(&a->day, now, DAY_USEC);
    if (__builtin_add_overflow(a->minute.used, tokens, &a->minute.used))
        a->minute.used = UINT64_MAX;
    if (__builtin_add_overflow(a->day.used, tokens, &a->day.used))
        a->day.used = UINT64_MAX;
}

struct usage *account_usage(struct account *a, const char *model)
{
    struct usage *u = a->usage;

    while (u && strcmp(u->model, model) != 0)
        u = u->next;
    if (u)
        return u;
    u = calloc(1, sizeof(*u));
    if (!u || !(u->model = strdup(model))) {
        free(u);
        return NULL;
    }
    u->next = a->usage;
    a->usage = u;
    return u;
}
