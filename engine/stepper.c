/* SPDX-License-Identifier: MIT */
/* See stepper.h. The thread, its orders and the steps. */
#include "engine/stepper.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/map.h"
#include "engine/clock.h"
#include "engine/wake.h"

#define PROGRESS_USEC 100000 /* between two Prefill events of a request */
#define POSITION_USEC 500000 /* between two Queued events */
#define STATS_USEC 1000000

struct stepper {
    const struct request_env *env;
    const char *name;
    int wake_fd;
    pthread_t thread;
    bool started;
    _Atomic enum stepper_state state;

    pthread_mutex_t lock; /* over the next four */
    pthread_cond_t more;
    struct step_order *first, **last;
    bool ending, kicked;

    /* the step thread's own */
    struct sched *sched;
    struct map *requests; /* id -> request */
    struct session_table sessions;
    float *logits;        /* [RUNNING_MAX][vocab] */
    bool draining, told_idle;
    uint64_t stats_usec, output_tokens;
};

/* ---------------------------------------------------------------- requests come and go */

static void drop(struct stepper *s, struct request *r)
{
    sched_remove(s->sched, &r->item);
    map_remove_u64(s->requests, r->id);
    request_free(r);
}

static void finish(struct stepper *s, struct request *r, Dsv4__V1__FinishReason reason)
{
    request_finish(r, reason, clock_usec());
    drop(s, r);
}

static void fail(struct stepper *s, struct request *r, struct fail *f)
{
    request_fail(r, f);
    drop(s, r);
}

static void begin(struct stepper *s, struct step_order *o)
{
    _cleanup_(request_freep) struct request *r = TAKE_PTR(o->request);
    struct fail f = FAIL_INIT;
    int e = map_put_u64(s->requests, r->id, r);

    if (e == -EEXIST)
        fail_set(&f, EALREADY, "DUPLICATE_REQUEST", "the request id is in use");
    else if (e < 0)
        fail_oom(&f);
    if (e == 0) {
        e = request_attach(r, &s->sessions, &f);
        if (e < 0)
            map_remove_u64(s->requests, r->id);
    }
    if (e < 0)
        request_fail(r, &f);
    else
        r = NULL; /* the map's */
}

static void take_prompt(struct stepper *s, struct step_order *o)
{
    struct request *r = map_get_u64(s->requests, o->id);
    struct fail f = FAIL_INIT;

    if (!r || r->item.owner)
        return; /* cancelled meanwhile */
    if (o->failed.err)
        f = o->failed;
    else if (request_take_prompt(r, &o->prompt, &f) == 0 && sched_add(s->sched, &r->item, r->owner, r->weight) < 0)
        fail_oom(&f);
    if (f.err)
        fail(s, r, &f);
}

static void cancel(struct stepper *s, const struct step_order *o)
{
    struct request *r = map_get_u64(s->requests, o->id);

    if (!r)
        return;
    r->quiet = o->flag;
    finish(s, r, DSV4__V1__FINISH_REASON__CANCELLED);
}

/* ---------------------------------------------------------------- sessions */

static void send_session(struct stepper *s, uint64_t id, struct session *session)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__SessionInfo i = DSV4__V1__SESSION_INFO__INIT;

    i.session = session->id;
    i.model = (char *)(uintptr_t)s->name; /* only read */
    i.label = session->label;
    i.has_tokens = i.has_kv_bytes = i.has_place = i.has_created_usec = i.has_used_usec = true;
    i.tokens = (uint32_t)session->tokens.n;
    i.kv_bytes = session_kv_bytes(session);
    i.place = DSV4__V1__SESSION_PLACE__DEVICE;
    i.created_usec = session->created_usec;
    i.used_usec = session->used_usec;
    m.id = id;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_SESSION;
    m.session = &i;
    (void)outbox_put(s->env->outbox, &m);
}

static void close_session(struct stepper *s, const struct step_order *o, struct session *session)
{
    struct request *r;

    for (size_t cursor = 0; session->busy && (r = map_next(s->requests, &cursor, NULL, NULL));)
        if (r->session == session)
            finish(s, r, DSV4__V1__FINISH_REASON__CANCELLED);
    session_free(session);
    outbox_put_done(s->env->outbox, o->id);
}

static void session_order(struct stepper *s, const struct step_order *o)
{
    struct session *session = NULL, *new_session = NULL;
    struct fail f = FAIL_INIT;
    int r;

    if (o->kind == ORDER_SESSION_NEW)
        r = session_new(&s->sessions, o->session, o->owner, o->label, &session, &f);
    else
        r = session_find(&s->sessions, o->session, o->owner, &session, &f);
    if (r == 0 && o->kind == ORDER_SESSION_CLOSE) {
        close_session(s, o, session);
        return;
    }
    if (r == 0 && o->kind == ORDER_SESSION_FORK) {
        r = session_fork(&s->sessions, session, o->new_session, o->label, &new_session, &f);
        session = new_session;
    }
    if (r == 0 && o->kind == ORDER_SESSION_TRIM)
        r = session_trim(session, o->tokens, &f);
    if (r < 0)
        outbox_put_error(s->env->outbox, o->id, &f);
    else
        send_session(s, o->id, session);
}

/* ---------------------------------------------------------------- orders */

struct step_order *step_order_new(enum step_order_kind kind, uint64_t id, uint64_t owner)
{
    struct step_order *o = calloc(1, sizeof(*o));

    if (o) {
        o->kind = kind;
        o->id = id;
        o->owner = owner;
    }
    return o;
}

struct step_order *step_order_free(struct step_order *o)
{
    if (!o)
        return NULL;
    request_free(o->request);
    request_prompt_deinit(&o->prompt);
    free(o->session);
    free(o->new_session);
    free(o->label);
    free(o);
    return NULL;
}

void stepper_put(struct stepper *s, struct step_order *o)
{
    if (!o) {
        atomic_store(&s->state, STEPPER_BROKEN);
        wake(s->wake_fd);
        return;
    }
    pthread_mutex_lock(&s->lock);
    *s->last = o;
    s->last = &o->next;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

void stepper_kick(struct stepper *s)
{
    pthread_mutex_lock(&s->lock);
    s->kicked = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

static void obey(struct stepper *s, struct step_order *o)
{
    struct request *r;

    switch (o->kind) {
    case ORDER_BEGIN:
        begin(s, o);
        break;
    case ORDER_PROMPT:
        take_prompt(s, o);
        break;
    case ORDER_CANCEL:
        cancel(s, o);
        break;
    case ORDER_PACE:
        if ((r = map_get_u64(s->requests, o->id)))
            sched_set_paused(s->sched, &r->item, o->flag);
        break;
    case ORDER_DRAIN:
        s->draining = true;
        break;
    default:
        session_order(s, o);
    }
}

/* Waits for orders if `idle`, takes and obeys them. False: the end. */
static bool take_orders(struct stepper *s, bool idle)
{
    pthread_mutex_lock(&s->lock);
    while (idle && !s->first && !s->ending && !s->kicked)
        pthread_cond_wait(&s->more, &s->lock);
    struct step_order *o = s->first;
    bool ending = s->ending;
    s->first = NULL;
    s->last = &s->first;
    s->kicked = false;
    pthread_mutex_unlock(&s->lock);
    while (o) {
        struct step_order *next = o->next;
        if (!ending)
            obey(s, o);
        step_order_free(o);
        o = next;
    }
    return !ending;
}

/* ---------------------------------------------------------------- admission */

static void admit(struct stepper *s)
{
    struct sched_item *i;

    while ((i = sched_next(s->sched))) {
        struct request *r = i->userdata;
        struct fail f = FAIL_INIT;
        uint32_t pending;
        if (request_start(r, &s->sessions, clock_usec(), &pending, &f) < 0)
            fail(s, r, &f);
        else if (pending == 0)
            finish(s, r, DSV4__V1__FINISH_REASON__PREFILLED);
        else
            sched_start(s->sched, i, pending);
    }
}

static void tell_positions(struct stepper *s)
{
    uint64_t now = clock_usec();
    struct request *r;

    if (sched_queued(s->sched) == 0)
        return;
    for (size_t cursor = 0; (r = map_next(s->requests, &cursor, NULL, NULL));) {
        if (!r->item.owner || r->item.running || (r->position && now - r->progress_usec < POSITION_USEC))
            continue;
        uint32_t position = sched_position(s->sched, &r->item);
        if (position != r->position)
            request_send_queued(r, position, now);
    }
}

static void send_stats(struct stepper *s, bool always)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__Engine__V1__Stats stats = DSV4__ENGINE__V1__STATS__INIT;
    struct kv_stats kv;
    uint64_t now = clock_usec(), elapsed = now - s->stats_usec;

    if (elapsed < STATS_USEC && !always)
        return;
    kv_pool_stats(s->env->model->pool, &kv);
    stats.running = sched_running(s->sched);
    stats.queued = (uint32_t)map_size(s->requests) - stats.running; /* those being tokenised too */
    stats.has_kv_used_bytes = stats.has_kv_total_bytes = stats.has_tokens_per_second = true;
    stats.kv_used_bytes = kv.used_bytes;
    stats.kv_total_bytes = kv.total_bytes;
    stats.tokens_per_second = elapsed > 0 ? (double)s->output_tokens * 1e6 / (double)elapsed : 0;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_STATS;
    m.stats = &stats;
    (void)outbox_put(s->env->outbox, &m);
    s->stats_usec = now;
    s->output_tokens = 0;
}

/* ---------------------------------------------------------------- one step */

struct batch {
    struct request *request[RUNNING_MAX];
    struct step_part part[RUNNING_MAX];
    bool failed[RUNNING_MAX];
    uint32_t n, prefill_tokens, decodes;
};

/* KV for its tokens. An output without max_tokens has no reservation: it ends where memory does. */
static bool reserve(struct stepper *s, struct request *r, uint32_t tokens)
{
    struct fail f = FAIL_INIT;
    int e = session_reserve(&s->sessions, r->session, tokens, &f);

    if (e == 0)
        return true;
    if (e == -ENOSPC && r->output > 0)
        finish(s, r, DSV4__V1__FINISH_REASON__LENGTH);
    else
        fail(s, r, &f);
    return false;
}

/* Returns how many parts were planned; some may have ended for lack of memory. */
static uint32_t collect(struct stepper *s, struct batch *b)
{
    struct sched_part plan[RUNNING_MAX];
    uint32_t n = sched_plan(s->sched, plan, RUNNING_MAX);

    for (uint32_t i = 0; i < n; i++) {
        struct request *r = plan[i].item->userdata;
        if (!reserve(s, r, plan[i].tokens))
            continue;
        b->request[b->n] = r;
        b->part[b->n++] = (struct step_part){
            .session = r->session->kv,
            .token = r->session->tokens.id + r->session->kv->tokens,
            .count = plan[i].tokens,
            .logit_rows = r->item.pending == 0 && !r->append_only,
        };
        if (plan[i].tokens > 1)
            b->prefill_tokens += plan[i].tokens;
        else
            b->decodes++;
    }
    return n;
}

static void device_failed(struct stepper *s, struct fail *f)
{
    struct request *r;

    snprintf(f->code, sizeof(f->code), "INTERNAL");
    for (size_t cursor = 0; (r = map_next(s->requests, &cursor, NULL, NULL));)
        fail(s, r, f);
    atomic_store(&s->state, STEPPER_BROKEN);
    wake(s->wake_fd);
}

/* What failed together may work one by one (memory): then only those fail that must. -EIO: the device is gone. */
static int compute_singly(struct stepper *s, struct batch *b, struct fail *f)
{
    float *logits = s->logits;

    for (uint32_t i = 0; i < b->n; i++) {
        int e = forward_step(s->env->model, &b->part[i], 1, logits, f);
        if (e == -EIO)
            return e;
        b->failed[i] = e < 0;
        if (e < 0)
            request_fail(b->request[i], f);
        logits += (size_t)b->part[i].logit_rows * s->env->model->shape->vocab;
    }
    return 0;
}

static void look_at(struct stepper *s, struct request *r, const float *logits)
{
    Dsv4__V1__FinishReason reason;
    struct fail f = FAIL_INIT;
    uint64_t now = clock_usec();

    if (r->output == 0 && (r->item.pending == 0 || now - r->progress_usec >= PROGRESS_USEC))
        request_send_prefill(r, now);
    if (r->item.pending > 0)
        return;
    if (r->append_only) {
        finish(s, r, DSV4__V1__FINISH_REASON__PREFILLED);
        return;
    }
    s->output_tokens++;
    int e = request_token(r, logits, now, &reason, &f);
    if (e < 0)
        fail(s, r, &f);
    else if (e > 0)
        finish(s, r, reason);
    else
        sched_set_pending(s->sched, &r->item, 1);
}

/* False: nothing to do, or nothing that can be done. */
static bool step(struct stepper *s)
{
    struct batch b = {0};
    struct fail f = FAIL_INIT;
    uint64_t began = clock_usec();
    const float *logits = s->logits;

    if (collect(s, &b) == 0)
        return false;
    int e = b.n > 0 ? forward_step(s->env->model, b.part, b.n, s->logits, &f) : 0;
    if (e < 0 && e != -EIO)
        e = compute_singly(s, &b, &f);
    if (e < 0) {
        device_failed(s, &f);
        return false;
    }
    for (uint32_t i = 0; i < b.n; i++) {
        if (b.failed[i])
            drop(s, b.request[i]);
        else
            look_at(s, b.request[i], logits);
        logits += (size_t)b.part[i].logit_rows * s->env->model->shape->vocab;
    }
    sched_measured(s->sched, b.prefill_tokens, b.decodes, clock_usec() - began);
    return true;
}

/* ---------------------------------------------------------------- the thread */

static void go_idle(struct stepper *s)
{
    if (!s->told_idle) {
        send_stats(s, true);
        s->told_idle = true;
    }
    if (s->draining && map_size(s->requests) == 0) {
        enum stepper_state working = STEPPER_WORKING;
        atomic_compare_exchange_strong(&s->state, &working, STEPPER_DRAINED);
        wake(s->wake_fd);
    }
}

static void *run(void *userdata)
{
    struct stepper *s = userdata;
    bool idle = true;

    while (take_orders(s, idle)) {
        if (atomic_load(&s->state) == STEPPER_BROKEN) {
            idle = true;
            continue;
        }
        admit(s);
        tell_positions(s);
        if (outbox_full(s->env->outbox)) {
            idle = true; /* until the main thread kicks */
            continue;
        }
        idle = !step(s);
        if (idle) {
            /* a request that ended may have freed a slot */
            idle = !sched_next(s->sched);
            if (idle)
                go_idle(s);
            continue;
        }
        s->told_idle = false;
        send_stats(s, false);
    }
    return NULL;
}

int stepper_new(const struct request_env *e, const char *name, int wake_fd, struct stepper **ret, struct fail *f)
{
    const struct sched_params params = {
        .max_running = RUNNING_MAX,
        .max_step_tokens = e->model->max_step_tokens,
        .target_usec = STEP_TARGET_USEC,
    };
    _cleanup_(stepper_freep) struct stepper *s = calloc(1, sizeof(*s));

    if (!s)
        return fail_oom(f);
    s->env = e;
    s->name = name;
    s->wake_fd = wake_fd;
    s->last = &s->first;
    s->told_idle = true;
    s->stats_usec = clock_usec();
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    s->logits = calloc((size_t)RUNNING_MAX * e->model->shape->vocab, sizeof(*s->logits));
    if (!s->logits || sched_new(&params, &s->sched) < 0 || map_new(&s->requests) < 0 ||
        session_table_init(&s->sessions, e->model->pool) < 0)
        return fail_oom(f);
    int r = pthread_create(&s->thread, NULL, run, s);
    if (r != 0)
        return fail_set(f, r, "NO_MEMORY", "the step thread could not be started: %s", strerror(r));
    s->started = true;
    *ret = TAKE_PTR(s);
    return 0;
}

struct stepper *stepper_free(struct stepper *s)
{
    struct request *r;

    if (!s)
        return NULL;
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    if (s->started)
        pthread_join(s->thread, NULL);
    (void)take_orders(s, false); /* what came after the end: only freed */
    if (s->requests)
        for (size_t cursor = 0; (r = map_next(s->requests, &cursor, NULL, NULL));)
            drop(s, r);
    session_table_deinit(&s->sessions);
    sched_free(s->sched);
    map_free(s->requests);
    free(s->logits);
    pthread_cond_destroy(&s->more);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return NULL;
}

enum stepper_state stepper_state(const struct stepper *s)
{
    return atomic_load(&s->state);
}
