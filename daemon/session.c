/* SPDX-License-Identifier: MIT */
/* Sessions as the front knows them: id, owner, model, idle time. Their tokens are the engine's. See daemon.h. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

static int idle_expired(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct session *s = userdata;

    (void)source;
    (void)usec;
    if (s->busy > 0)
        session_touch(s);
    else
        session_close_quietly(s);
    return 0;
}

int session_new(struct peer *p, struct model *model, const char *label, uint64_t idle_usec, struct session **ret,
                struct fail *f)
{
    struct session *s = calloc(1, sizeof(*s));

    if (!s)
        return fail_oom(f);
    s->m = p->m;
    s->model = model;
    s->account = p->account;
    s->created_usec = s->used_usec = now_realtime_usec();
    s->idle_usec = idle_usec;
    int r = charge_take(&s->charge, p->account, CHARGE_SESSIONS, 1, f);
    if (r < 0) {
        free(s);
        return r;
    }
    if ((label && !(s->label = strdup(label))) || random_id(s->id) < 0 ||
        map_put(p->m->sessions, s->id, strlen(s->id), s) < 0) {
        s->id[0] = '\0'; /* not in the map */
        session_free(s);
        return fail_oom(f);
    }
    *ret = s;
    return 0;
}

struct session *session_free(struct session *s)
{
    if (!s)
        return NULL;
    if (s->id[0])
        map_remove(s->m->sessions, s->id, strlen(s->id));
    sd_event_source_disable_unref(s->timer);
    charge_release(&s->charge);
    free(s->label);
    free(s);
    return NULL;
}

struct session *session_get(struct manager *m, const char *id)
{
    return id[0] ? map_get(m->sessions, id, strlen(id)) : NULL;
}

bool session_is_of(const struct session *s, const struct peer *p)
{
    return s->account == p->account && access_allows(&s->model->access, &p->who);
}

int session_find(struct peer *p, const char *id, struct session **ret, struct fail *f)
{
    struct session *s = session_get(p->m, id);

    if (s && session_is_of(s, p) && s->open && !s->closing) {
        *ret = s;
        return 0;
    }
    fail_set(f, ENOENT, "NO_SUCH_SESSION", "there is no session of that id");
    fail_field(f, "session");
    return -ENOENT;
}

void session_touch(struct session *s)
{
    s->used_usec = now_realtime_usec();
    if (timer_arm(s->m->event, &s->timer, s->idle_usec, idle_expired, s) < 0)
        log_warning("no timer for an idle session: it stays open");
}

void session_describe(const struct session *s, Dsv4__V1__SessionInfo *ret)
{
    dsv4__v1__session_info__init(ret);
    ret->session = (char *)(uintptr_t)s->id;
    ret->model = s->model->name;
    ret->label = s->label;
    ret->has_tokens = ret->has_place = ret->has_created_usec = ret->has_used_usec = true;
    ret->has_kv_bytes = s->kv_bytes > 0; /* as far as the engine told */
    ret->tokens = s->tokens;
    ret->kv_bytes = s->kv_bytes;
    ret->place = DSV4__V1__SESSION_PLACE__DEVICE;
    ret->created_usec = s->created_usec;
    ret->used_usec = s->used_usec;
}

void sessions_drop_model(struct manager *m, const struct model *model)
{
    size_t cursor = 0;
    struct session *s;

    while ((s = map_next(m->sessions, &cursor, NULL, NULL)))
        if (s->model == model && s->open)
            session_free(s);
}

/* Nobody asked: it was idle for too long, or its opener went away before it heard of it. */
void session_close_quietly(struct session *s)
{
    Dsv4__Engine__V1__FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__SessionRef ref = DSV4__ENGINE__V1__SESSION_REF__INIT;
    struct request *r = NULL;

    if (s->closing || !s->model->engine)
        return;
    ref.session = s->id;
    fm.operation_case = DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_SESSION_CLOSE;
    fm.session_close = &ref;
    fm.has_owner = true;
    fm.owner = (uint64_t)s->account->uid + 1;
    if (request_new_own(s->m, REQUEST_CLOSE, s->model, &r) < 0 || request_set_payload(r, &fm, NULL) < 0) {
        request_free(r);
        session_touch(s); /* out of memory: try again after another idle time */
        return;
    }
    s->closing = true;
    s->busy++;
    memcpy(r->session, s->id, sizeof(r->session));
    model_submit(s->model, r);
}
