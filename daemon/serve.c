/* SPDX-License-Identifier: MIT */
/* What an engine's event means for the request it belongs to. Each kind of request may get only its own events. */
#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

typedef Dsv4__Engine__V1__EngineMessage Event;
typedef Dsv4__V1__ServerMessage Answer;
#define EVENT(name) DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_##name
#define ANSWER(name) DSV4__V1__SERVER_MESSAGE__EVENT_##name

static int shut_down(struct request *r)
{
    struct fail f = FAIL_INIT;

    fail_set(&f, ESHUTDOWN, "SHUTTING_DOWN", "the service is stopping; try again when it is back");
    request_fail(r, &f);
    return 0;
}

static int on_error(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    struct session *s = session_get(r->m, r->session);
    bool unknown = strcmp(em->error->code, "NO_SUCH_SESSION") == 0;

    if (r->m->cancelled_all && strcmp(em->error->code, "CANCELLED") == 0)
        return shut_down(r);
    if (s && (r->kind == REQUEST_OPEN || r->kind == REQUEST_FORK || unknown))
        session_free(s);
    else if (s && r->kind == REQUEST_CLOSE)
        s->closing = false;
    sm.event_case = ANSWER(ERROR);
    sm.error = em->error;
    request_finish(r, &sm);
    return 0;
}

static void note_size(struct session *s, const Dsv4__V1__SessionInfo *info)
{
    if (info->has_tokens)
        s->tokens = info->tokens;
    if (info->has_kv_bytes)
        s->kv_bytes = info->kv_bytes;
}

static int on_session(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__SessionInfo info;
    struct session *s = session_get(r->m, r->session);
    bool heard = r->peer != NULL;

    if (r->kind == REQUEST_GENERATE) { /* on the way: how large the session is now */
        if (s)
            note_size(s, em->session);
        return 0;
    }
    if (!s || (r->kind != REQUEST_OPEN && r->kind != REQUEST_FORK && r->kind != REQUEST_TRIM))
        return -EPROTO;
    bool made = !s->open;
    s->open = true;
    note_size(s, em->session);
    session_describe(s, &info);
    sm.event_case = ANSWER(SESSION);
    sm.session = &info;
    request_finish(r, &sm);
    if (made && !heard)
        session_close_quietly(s); /* nobody learnt its id */
    return 0;
}

static int on_done(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;

    if (r->kind != REQUEST_CLOSE)
        return -EPROTO;
    session_free(session_get(r->m, r->session));
    sm.event_case = ANSWER(DONE);
    sm.done = em->done;
    request_finish(r, &sm);
    return 0;
}

static int on_progress(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;

    if (r->kind != REQUEST_GENERATE)
        return -EPROTO;
    if (em->event_case == EVENT(QUEUED)) {
        sm.event_case = ANSWER(QUEUED);
        sm.queued = em->queued;
    } else {
        sm.event_case = ANSWER(PREFILL);
        sm.prefill = em->prefill;
    }
    request_event(r, &sm);
    return 0;
}

static int on_delta(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;

    if (r->kind != REQUEST_GENERATE)
        return -EPROTO;
    em->delta->index = r->n_deltas++; /* what Resume counts by is not left to the engine */
    sm.event_case = ANSWER(DELTA);
    sm.delta = em->delta;
    request_event(r, &sm);
    if (r->replay && replay_add(r, em->delta) < 0)
        r->replay = replay_free(r->replay, r->m); /* out of memory: it cannot be resumed */
    return 0;
}

static void account_finished(struct request *r, const Dsv4__V1__TokenCounts *counts)
{
    struct usage *u = r->account && counts ? account_usage(r->account, r->model->name) : NULL;

    if (!u)
        return;
    u->requests++;
    u->input_computed += counts->input_computed;
    u->input_cached += counts->input_cached;
    u->output += counts->output;
    u->reasoning += counts->has_reasoning ? counts->reasoning : 0;
    account_add_tokens(r->account, now_monotonic_usec(), counts->input_computed + counts->output);
}

static int on_finished(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    char *said = em->finished->session;

    if (r->kind != REQUEST_GENERATE)
        return -EPROTO;
    const Dsv4__V1__TokenCounts *counts = em->finished->counts;
    struct session *s = session_get(r->m, r->session);
    account_finished(r, counts);
    if (s && counts) /* what it had, what was added, what came of it */
        s->tokens = (uint32_t)(counts->input_cached + counts->input_computed + counts->output);
    if (r->m->cancelled_all && em->finished->reason == DSV4__V1__FINISH_REASON__CANCELLED)
        return shut_down(r);
    em->finished->session = r->session[0] ? r->session : NULL; /* as the client knows it */
    sm.event_case = ANSWER(FINISHED);
    sm.finished = em->finished;
    request_finish(r, &sm);
    em->finished->session = said;
    return 0;
}

static int on_text(struct request *r, Event *em)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;

    if (r->kind != (em->event_case == EVENT(TOKENS) ? REQUEST_TOKENIZE : REQUEST_DETOKENIZE))
        return -EPROTO;
    if (em->event_case == EVENT(TOKENS)) {
        sm.event_case = ANSWER(TOKENS);
        sm.tokens = em->tokens;
    } else {
        sm.event_case = ANSWER(TEXT);
        sm.text = em->text;
    }
    request_finish(r, &sm);
    return 0;
}

int serve_event(struct engine *e, Event *em)
{
    struct request *r = map_get_u64(e->requests, em->id);

    if (!r)
        return -EPROTO; /* never asked, or answered before */
    switch (em->event_case) {
    case EVENT(ERROR):
        return on_error(r, em);
    case EVENT(SESSION):
        return on_session(r, em);
    case EVENT(DONE):
        return on_done(r, em);
    case EVENT(QUEUED):
    case EVENT(PREFILL):
        return on_progress(r, em);
    case EVENT(DELTA):
        return on_delta(r, em);
    case EVENT(FINISHED):
        return on_finished(r, em);
    case EVENT(TOKENS):
    case EVENT(TEXT):
        return on_text(r, em);
    default:
        return -EPROTO;
    }
}
