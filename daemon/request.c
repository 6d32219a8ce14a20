/* SPDX-License-Identifier: MIT */
/* The life of a request: made for a client, waiting, with an engine, ended or detached. See daemon.h. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "proto/error.h"

int request_new_own(struct manager *m, enum request_kind kind, struct model *model, struct request **ret)
{
    struct request *r = calloc(1, sizeof(*r));

    if (!r)
        return -ENOMEM;
    r->m = m;
    r->kind = kind;
    r->model = model;
    r->id = m->next_id++;
    r->fd = -1;
    r->started_usec = now_monotonic_usec();
    list_init(&r->link);
    *ret = r;
    return 0;
}

int request_new(struct peer *p, uint64_t client_id, enum request_kind kind, struct model *model, struct request **ret,
                struct fail *f)
{
    struct request *r;

    if (request_new_own(p->m, kind, model, &r) < 0)
        return fail_oom(f);
    r->account = p->account;
    int e = charge_take(&r->charge, p->account, CHARGE_REQUESTS, 1, f);
    if (e == 0 && map_put_u64(p->requests, client_id, r) < 0)
        e = fail_oom(f);
    if (e < 0) {
        request_free(r);
        return e;
    }
    r->peer = p;
    r->client_id = client_id;
    *ret = r;
    return 0;
}

int request_set_payload(struct request *r, Dsv4__Engine__V1__FrontMessage *fm, struct fail *f)
{
    fm->id = r->id;
    if (r->account) {
        fm->has_owner = true;
        fm->owner = (uint64_t)r->account->uid + 1; /* 0 is nobody */
    }
    size_t n = dsv4__engine__v1__front_message__get_packed_size(fm);
    if (n > FRAME_MAX) {
        fail_set(f, EMSGSIZE, "FRAME_TOO_LARGE", "the request is too large to pass on; send long text as a sealed memfd");
        fail_limit(f, FRAME_MAX, (int64_t)n);
        return -EMSGSIZE;
    }
    int e = r->account ? charge_take(&r->waiting_charge, r->account, CHARGE_WAITING_BYTES, n, f) : 0;
    if (e < 0)
        return e;
    r->payload = malloc(n);
    if (!r->payload)
        return fail_oom(f);
    r->payload_size = dsv4__engine__v1__front_message__pack(fm, r->payload);
    return 0;
}

static void leave_peer(struct request *r)
{
    if (!r->peer)
        return;
    map_remove_u64(r->peer->requests, r->client_id);
    r->peer = NULL;
}

/* Neither waiting nor with an engine any more, and its charges given back. */
static void leave_engine(struct request *r)
{
    struct session *s = session_get(r->m, r->session);

    if (!list_empty(&r->link)) {
        list_remove(&r->link);
        r->model->n_waiting--;
        r->m->waiting--;
    }
    if (r->engine) {
        map_remove_u64(r->engine->requests, r->id);
        r->engine = NULL;
        if (r->kind == REQUEST_GENERATE)
            r->m->running--;
    }
    if (s) {
        assert(s->busy > 0);
        s->busy--;
        session_touch(s);
    }
    r->session[0] = '\0';
    timer_off(&r->timer);
    free(TAKE_PTR(r->payload));
    closep(&r->fd);
    r->fd = -1;
    charge_release(&r->waiting_charge);
    r->ended = true;
}

struct request *request_free(struct request *r)
{
    if (!r)
        return NULL;
    leave_engine(r);
    leave_peer(r);
    sd_event_source_disable_unref(r->timer);
    r->replay = replay_free(r->replay, r->m);
    charge_release(&r->charge);
    struct manager *m = r->m;
    free(r);
    manager_check_stopped(m);
    return NULL;
}

void request_event(struct request *r, Dsv4__V1__ServerMessage *sm)
{
    if (!r->peer)
        return;
    sm->request_id = r->client_id;
    peer_send(r->peer, sm);
}

void request_finish(struct request *r, Dsv4__V1__ServerMessage *sm)
{
    request_event(r, sm);
    if (r->replay && replay_end(r, sm) == 0) {
        leave_engine(r);
        leave_peer(r);
        charge_release(&r->charge);
        replay_wait(r);
        manager_check_stopped(r->m);
        return;
    }
    request_free(r);
}

void request_fail(struct request *r, struct fail *f)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Error e;

    if (r->kind == REQUEST_OPEN || r->kind == REQUEST_FORK)
        session_free(session_get(r->m, r->session)); /* it never came to be */
    error_from_fail(&e, f);
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_ERROR;
    sm.error = &e;
    request_finish(r, &sm);
}

/* Ends a Generate that no engine has seen. */
static void finish_cancelled(struct request *r)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Finished finished = DSV4__V1__FINISHED__INIT;
    struct fail f = FAIL_INIT;

    if (r->kind != REQUEST_GENERATE) {
        fail_set(&f, ECANCELED, "CANCELLED", "the request was cancelled");
        request_fail(r, &f);
        return;
    }
    finished.reason = DSV4__V1__FINISH_REASON__CANCELLED;
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_FINISHED;
    sm.finished = &finished;
    request_finish(r, &sm);
}

void request_cancel(struct request *r)
{
    if (!r->engine) {
        finish_cancelled(r);
        return;
    }
    if (r->kind == REQUEST_GENERATE && !r->cancelled)
        engine_cancel(r->engine, r->id, false);
    r->cancelled = true;
}

/* Drop what nobody waits for: now if it waits, else when the engine has ended it. */
void request_detach(struct request *r)
{
    leave_peer(r);
    if (r->replay && !r->m->stopping) {
        request_pause(r);
        replay_wait(r);
        return;
    }
    r->replay = replay_free(r->replay, r->m);
    if (!r->engine) {
        struct session *s = r->kind == REQUEST_OPEN || r->kind == REQUEST_FORK ? session_get(r->m, r->session) : NULL;
        request_free(r);
        session_free(s); /* no engine has heard of it */
        return;
    }
    if (r->kind == REQUEST_GENERATE && !r->cancelled)
        engine_cancel(r->engine, r->id, true);
    r->cancelled = true;
    request_pause(r); /* a paused stream must be able to end */
}

void request_pause(struct request *r)
{
    bool paused = r->peer ? r->peer->congested : replay_full(r);

    if (r->kind != REQUEST_GENERATE || !r->engine || r->paused == paused)
        return;
    r->paused = paused;
    engine_pace(r->engine, r->id, paused);
}
