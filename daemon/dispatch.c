/* SPDX-License-Identifier: MIT */
/*
 * What clients may ask, an operation a function. peer_dispatch is the one place where a message becomes a request: it
 * scans, unpacks, checks the greeting, the id and the file descriptors, and answers whatever an operation refuses.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "daemon/check.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "proto/error.h"
#include "proto/scan.h"

#define PROTOCOL_VERSION 1

typedef Dsv4__V1__ClientMessage Question;
typedef Dsv4__V1__ServerMessage Answer;
typedef Dsv4__Engine__V1__FrontMessage FrontMessage;
#define ASKS(name) DSV4__V1__CLIENT_MESSAGE__OPERATION_##name
#define ANSWER(name) DSV4__V1__SERVER_MESSAGE__EVENT_##name
#define FRONT(name) DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_##name

static void answer(struct peer *p, const Question *q, Answer *sm)
{
    sm->request_id = q->request_id;
    peer_send(p, sm);
}

/* ---- the connection */

static int on_hello(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__HelloReply reply = DSV4__V1__HELLO_REPLY__INIT;
    const Dsv4__V1__Hello *h = q->hello;

    if (p->version)
        return fail_set(f, EPROTO, "ALREADY_GREETED", "Hello was sent before");
    if (h->version_min > PROTOCOL_VERSION || h->version_max < PROTOCOL_VERSION) {
        fail_set(f, EPROTONOSUPPORT, "VERSION", "the client speaks protocol %u to %u, this server %d", h->version_min,
                 h->version_max, PROTOCOL_VERSION);
        fail_limit(f, PROTOCOL_VERSION, h->version_min > PROTOCOL_VERSION ? h->version_min : h->version_max);
        return -EPROTONOSUPPORT;
    }
    int r = check_label(h->client, "client", f);
    if (r < 0)
        return r;
    p->version = PROTOCOL_VERSION;
    log_debug("uid %u (process %d): hello from \"%s\"", (unsigned)p->account->uid, (int)p->who.pid, h->client ? h->client : "");
    reply.version = PROTOCOL_VERSION;
    reply.server = (char *)(uintptr_t)PACKAGE_NAME " " PACKAGE_VERSION;
    reply.max_frame_bytes = FRAME_MAX;
    reply.has_uid = true;
    reply.uid = p->account->uid;
    sm.event_case = ANSWER(HELLO);
    sm.hello = &reply;
    answer(p, q, &sm);
    return 0;
}

static int on_cancel(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Done done = DSV4__V1__DONE__INIT;
    struct request *r = map_get_u64(p->requests, q->cancel->target);

    if (!r) {
        fail_set(f, ENOENT, "NO_SUCH_REQUEST", "there is no unfinished request %llu on this connection",
                 (unsigned long long)q->cancel->target);
        fail_field(f, "target");
        return -ENOENT;
    }
    request_cancel(r);
    sm.event_case = ANSWER(DONE);
    sm.done = &done;
    answer(p, q, &sm);
    return 0;
}

/* ---- models and state */

/* Those that p may use. */
static size_t describe_models(struct peer *p, Dsv4__V1__Model **ret, Dsv4__V1__Model ***ret_list)
{
    size_t n = 0, i = 0;

    LIST_FOR_EACH(l, &p->m->models)
        n++;
    *ret = calloc(n + 1, sizeof(**ret));
    *ret_list = calloc(n + 1, sizeof(**ret_list));
    if (!*ret || !*ret_list)
        return 0;
    LIST_FOR_EACH(l, &p->m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        if (!access_allows(&model->access, &p->who))
            continue;
        model_describe(model, &(*ret)[i]);
        (*ret_list)[i] = &(*ret)[i];
        i++;
    }
    return i;
}

static int on_list_models(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__ModelList list = DSV4__V1__MODEL_LIST__INIT;
    _cleanup_free_ Dsv4__V1__Model *models = NULL;
    _cleanup_free_ Dsv4__V1__Model **pointers = NULL;

    list.n_model = describe_models(p, &models, &pointers);
    if (!models || !pointers)
        return fail_oom(f);
    list.model = pointers;
    sm.event_case = ANSWER(MODELS);
    sm.models = &list;
    answer(p, q, &sm);
    return 0;
}

static uint32_t count_sessions(struct peer *p)
{
    struct session *s = NULL;
    size_t cursor = 0;
    uint32_t n = 0;

    while ((s = map_next(p->m->sessions, &cursor, NULL, NULL)))
        n += s->open && session_is_of(s, p);
    return n;
}

static int on_get_status(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Status status = DSV4__V1__STATUS__INIT;
    _cleanup_free_ Dsv4__V1__Model *models = NULL;
    _cleanup_free_ Dsv4__V1__Model **pointers = NULL;

    status.n_model = describe_models(p, &models, &pointers);
    if (!models || !pointers)
        return fail_oom(f);
    status.model = pointers;
    status.version = (char *)(uintptr_t)PACKAGE_VERSION;
    status.started_usec = p->m->started_usec;
    status.running = p->m->running;
    status.queued = p->m->waiting;
    status.has_sessions = true;
    status.sessions = count_sessions(p);
    sm.event_case = ANSWER(STATUS);
    sm.status = &status;
    answer(p, q, &sm);
    return 0;
}

#define N_QUOTAS (N_CHARGES + 2)

static void describe_quotas(const struct account *a, Dsv4__V1__Quota quotas[N_QUOTAS], Dsv4__V1__Quota *pointers[N_QUOTAS])
{
    const struct window *windows[] = {&a->minute, &a->day};
    const uint64_t limits[] = {a->limits.tokens_per_minute, a->limits.tokens_per_day};
    static const char *const names[] = {"TokensPerMinute", "TokensPerDay"};

    for (int i = 0; i < N_QUOTAS; i++) {
        Dsv4__V1__Quota *one = pointers[i] = &quotas[i];
        dsv4__v1__quota__init(one);
        if (i < N_CHARGES) {
            one->name = (char *)(uintptr_t)charge_name((enum charge_kind)i);
            one->limit = account_limit(a, (enum charge_kind)i);
            one->used = a->used[i];
            continue;
        }
        const struct window *w = windows[i - N_CHARGES];
        uint64_t now = now_monotonic_usec();
        one->name = (char *)(uintptr_t)names[i - N_CHARGES];
        one->limit = limits[i - N_CHARGES];
        one->used = w->ends_usec > now ? w->used : 0;
        one->has_resets_usec = w->ends_usec > now;
        one->resets_usec = now_realtime_usec() + (w->ends_usec - now);
    }
}

static int on_get_usage(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Usage usage = DSV4__V1__USAGE__INIT;
    Dsv4__V1__Quota quotas[N_QUOTAS], *quota_pointers[N_QUOTAS];
    size_t n = 0;

    for (struct usage *u = p->account->usage; u; u = u->next)
        n++;
    _cleanup_free_ Dsv4__V1__ModelUsage *rows = calloc(n + 1, sizeof(*rows));
    _cleanup_free_ Dsv4__V1__ModelUsage **pointers = calloc(n + 1, sizeof(*pointers));
    _cleanup_free_ Dsv4__V1__TokenCounts *counts = calloc(n + 1, sizeof(*counts));
    if (!rows || !pointers || !counts)
        return fail_oom(f);
    for (struct usage *u = p->account->usage; u; u = u->next) {
        size_t i = usage.n_model++;
        dsv4__v1__model_usage__init(&rows[i]);
        dsv4__v1__token_counts__init(&counts[i]);
        counts[i].input_computed = u->input_computed;
        counts[i].input_cached = u->input_cached;
        counts[i].output = u->output;
        counts[i].has_reasoning = true;
        counts[i].reasoning = u->reasoning;
        rows[i].model = u->model;
        rows[i].requests = u->requests;
        rows[i].counts = &counts[i];
        pointers[i] = &rows[i];
    }
    usage.model = pointers;
    describe_quotas(p->account, quotas, quota_pointers);
    usage.n_quota = N_QUOTAS;
    usage.quota = quota_pointers;
    sm.event_case = ANSWER(USAGE);
    sm.usage = &usage;
    answer(p, q, &sm);
    return 0;
}

/* ---- requests that go to an engine */

static int find_model(struct peer *p, const char *name, struct model **ret, struct fail *f)
{
    *ret = model_find_for(p->m, name, &p->who);
    if (*ret)
        return model_admit(*ret, f);
    fail_set(f, ENOENT, "NO_SUCH_MODEL", "there is no model \"%.64s\"", name);
    fail_field(f, "model");
    return -ENOENT;
}

/* Make the request and its payload. The operation of fm is set by the caller. */
static int prepare(struct peer *p, const Question *q, enum request_kind kind, struct model *model, FrontMessage *fm,
                   struct request **ret, struct fail *f)
{
    struct request *r = NULL;

    int e = request_new(p, q->request_id, kind, model, &r, f);
    if (e < 0)
        return e;
    e = request_set_payload(r, fm, f);
    if (e < 0) {
        request_free(r);
        return e;
    }
    *ret = r;
    return 0;
}

static void name_session(struct request *r, struct session *s)
{
    memcpy(r->session, s->id, sizeof(r->session));
    s->busy++;
    if (s->open)
        session_touch(s);
}

static int on_open_session(struct peer *p, const Question *q, struct fail *f)
{
    const Dsv4__V1__OpenSession *o = q->open_session;
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__SessionNew new_session = DSV4__ENGINE__V1__SESSION_NEW__INIT;
    struct model *model = NULL;
    struct session *s = NULL;
    struct request *r = NULL;
    uint64_t idle = o->has_idle_seconds && o->idle_seconds ? o->idle_seconds * 1000000ull : p->m->limits.idle_timeout_usec;

    int e = check_label(o->label, "label", f);
    if (e == 0)
        e = find_model(p, o->model, &model, f);
    if (e == 0)
        e = session_new(p, model, o->label, idle, &s, f);
    if (e < 0)
        return e;
    new_session.session = s->id;
    new_session.label = s->label;
    fm.operation_case = FRONT(SESSION_NEW);
    fm.session_new = &new_session;
    e = prepare(p, q, REQUEST_OPEN, model, &fm, &r, f);
    if (e < 0) {
        session_free(s);
        return e;
    }
    name_session(r, s);
    model_submit(model, r);
    return 0;
}

static int on_fork_session(struct peer *p, const Question *q, struct fail *f)
{
    const Dsv4__V1__ForkSession *o = q->fork_session;
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__SessionFork fork_session = DSV4__ENGINE__V1__SESSION_FORK__INIT;
    struct session *from = NULL, *s = NULL;
    struct request *r = NULL;

    int e = check_label(o->label, "label", f);
    if (e == 0)
        e = session_find(p, o->session, &from, f);
    if (e == 0)
        e = model_admit(from->model, f);
    if (e == 0)
        e = session_new(p, from->model, o->label, from->idle_usec, &s, f);
    if (e < 0)
        return e;
    fork_session.session = from->id;
    fork_session.new_session = s->id;
    fork_session.label = s->label;
    fm.operation_case = FRONT(SESSION_FORK);
    fm.session_fork = &fork_session;
    e = prepare(p, q, REQUEST_FORK, from->model, &fm, &r, f);
    if (e < 0) {
        session_free(s);
        return e;
    }
    session_touch(from);
    name_session(r, s);
    model_submit(from->model, r);
    return 0;
}

/* Operations on one session that exists. */
static int on_session(struct peer *p, const Question *q, const char *id, enum request_kind kind, FrontMessage *fm,
                      struct fail *f)
{
    struct session *s = NULL;
    struct request *r = NULL;

    int e = session_find(p, id, &s, f);
    if (e == 0)
        e = model_admit(s->model, f);
    if (e == 0)
        e = prepare(p, q, kind, s->model, fm, &r, f);
    if (e < 0)
        return e;
    name_session(r, s);
    s->closing = kind == REQUEST_CLOSE;
    model_submit(s->model, r);
    return 0;
}

static int on_close_session(struct peer *p, const Question *q, struct fail *f)
{
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__SessionRef ref = DSV4__ENGINE__V1__SESSION_REF__INIT;

    ref.session = q->close_session->session;
    fm.operation_case = FRONT(SESSION_CLOSE);
    fm.session_close = &ref;
    return on_session(p, q, ref.session, REQUEST_CLOSE, &fm, f);
}

static int on_trim_session(struct peer *p, const Question *q, struct fail *f)
{
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__SessionTrim trim = DSV4__ENGINE__V1__SESSION_TRIM__INIT;

    trim.session = q->trim_session->session;
    trim.tokens = q->trim_session->tokens;
    fm.operation_case = FRONT(SESSION_TRIM);
    fm.session_trim = &trim;
    return on_session(p, q, trim.session, REQUEST_TRIM, &fm, f);
}

static int on_list_sessions(struct peer *p, const Question *q, struct fail *f)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__SessionList list = DSV4__V1__SESSION_LIST__INIT;
    size_t n = count_sessions(p), cursor = 0;
    _cleanup_free_ Dsv4__V1__SessionInfo *rows = calloc(n + 1, sizeof(*rows));
    _cleanup_free_ Dsv4__V1__SessionInfo **pointers = calloc(n + 1, sizeof(*pointers));
    struct session *s = NULL;

    if (!rows || !pointers)
        return fail_oom(f);
    while (list.n_session < n && (s = map_next(p->m->sessions, &cursor, NULL, NULL))) {
        if (!s->open || !session_is_of(s, p))
            continue;
        session_describe(s, &rows[list.n_session]);
        pointers[list.n_session] = &rows[list.n_session];
        list.n_session++;
    }
    list.session = pointers;
    sm.event_case = ANSWER(SESSIONS);
    sm.sessions = &list;
    answer(p, q, &sm);
    return 0;
}

static int on_tokenize(struct peer *p, const Question *q, struct fail *f)
{
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    struct model *model = NULL;
    struct request *r = NULL;

    if (q->tokenize->input_case == DSV4__V1__TOKENIZE__INPUT__NOT_SET) {
        fail_set(f, EINVAL, "MISSING_FIELD", "Tokenize needs text or chat");
        fail_field(f, "input");
        return -EINVAL;
    }
    int e = q->tokenize->input_case == DSV4__V1__TOKENIZE__INPUT_CHAT ? check_chat(q->tokenize->chat, f) : 0;
    if (e == 0)
        e = find_model(p, q->tokenize->model, &model, f);
    if (e < 0)
        return e;
    fm.operation_case = FRONT(TOKENIZE);
    fm.tokenize = q->tokenize;
    e = prepare(p, q, REQUEST_TOKENIZE, model, &fm, &r, f);
    if (e == 0)
        model_submit(model, r);
    return e;
}

static int on_detokenize(struct peer *p, const Question *q, struct fail *f)
{
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    struct model *model = NULL;
    struct request *r = NULL;

    int e = find_model(p, q->detokenize->model, &model, f);
    if (e < 0)
        return e;
    fm.operation_case = FRONT(DETOKENIZE);
    fm.detokenize = q->detokenize;
    e = prepare(p, q, REQUEST_DETOKENIZE, model, &fm, &r, f);
    if (e == 0)
        model_submit(model, r);
    return e;
}

/* ---- generate */

static int bad_memfd(struct fail *f, const char *what)
{
    fail_set(f, EINVAL, "BAD_MEMFD", "%s", what);
    fail_field(f, "memfd");
    return -EINVAL;
}

static int take_memfd(struct peer *p, int *ret, struct fail *f)
{
    _cleanup_close_ int fd = frame_take_fd(&p->reader);
    struct stat st;

    if (fd < 0)
        return bad_memfd(f, "no file descriptor came with the first byte of the frame");
    if (fd_is_sealed_memfd(fd) != 1 || fstat(fd, &st) < 0)
        return bad_memfd(f, "the file descriptor must be a memfd sealed against writing, growing and shrinking");
    if ((uint64_t)st.st_size > p->m->limits.memfd_max_bytes) {
        bad_memfd(f, "the memfd is larger than accepted");
        fail_limit(f, (int64_t)MIN(p->m->limits.memfd_max_bytes, (uint64_t)INT64_MAX), st.st_size);
        return -EINVAL;
    }
    *ret = TAKE_FD(fd);
    return 0;
}

/* The session that is named, or NULL, and the model. */
static int find_target(struct peer *p, const Dsv4__V1__Generate *g, struct session **ret, struct model **ret_model,
                       struct fail *f)
{
    *ret = NULL;
    if (!g->session && !g->model) {
        fail_set(f, EINVAL, "MISSING_FIELD", "Generate without a session needs a model");
        fail_field(f, "model");
        return -EINVAL;
    }
    if (!g->session)
        return find_model(p, g->model, ret_model, f);
    int e = session_find(p, g->session, ret, f);
    if (e < 0)
        return e;
    *ret_model = (*ret)->model;
    if (g->model && model_find_for(p->m, g->model, &p->who) != *ret_model) {
        fail_set(f, ENOENT, "NO_SUCH_MODEL", "the session belongs to another model");
        fail_field(f, "model");
        return -ENOENT;
    }
    return model_admit(*ret_model, f);
}

static void accept_generate(struct peer *p, const Question *q, struct request *r)
{
    Answer sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Accepted accepted = DSV4__V1__ACCEPTED__INIT;

    accepted.resume_token = r->replay ? r->replay->token : NULL;
    sm.event_case = ANSWER(ACCEPTED);
    sm.accepted = &accepted;
    answer(p, q, &sm);
}

static int on_generate(struct peer *p, const Question *q, struct fail *f)
{
    Dsv4__V1__Generate *g = q->generate;
    FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__Work work = DSV4__ENGINE__V1__WORK__INIT;
    _cleanup_close_ int fd = -1;
    struct model *model = NULL;
    struct session *s = NULL;
    struct request *r = NULL;

    int e = check_generate(g, f);
    if (e == 0 && g->input_case == DSV4__V1__GENERATE__INPUT_MEMFD)
        e = take_memfd(p, &fd, f);
    if (e == 0)
        e = find_target(p, g, &s, &model, f);
    if (e == 0)
        e = account_check_tokens(p->account, now_monotonic_usec(), f);
    if (e < 0)
        return e;
    work.generate = g;
    work.has_weight = true;
    work.weight = (uint32_t)p->account->limits.weight;
    fm.operation_case = FRONT(GENERATE);
    fm.generate = &work;
    e = prepare(p, q, REQUEST_GENERATE, model, &fm, &r, f);
    if (e < 0)
        return e;
    if (g->has_resume_seconds && g->resume_seconds > 0)
        e = replay_new(r, g->resume_seconds, f);
    if (e < 0) {
        request_free(r);
        return e;
    }
    r->fd = TAKE_FD(fd);
    if (s)
        name_session(r, s);
    accept_generate(p, q, r);
    model_submit(model, r);
    return 0;
}

/* ---- all of them */

static int unsupported(struct fail *f, const char *what)
{
    return fail_set(f, EOPNOTSUPP, "UNSUPPORTED", "this server does not offer %s yet", what);
}

static int operate(struct peer *p, const Question *q, struct fail *f)
{
    switch (q->operation_case) {
    case ASKS(HELLO):
        return on_hello(p, q, f);
    case ASKS(LIST_MODELS):
        return on_list_models(p, q, f);
    case ASKS(OPEN_SESSION):
        return on_open_session(p, q, f);
    case ASKS(CLOSE_SESSION):
        return on_close_session(p, q, f);
    case ASKS(LIST_SESSIONS):
        return on_list_sessions(p, q, f);
    case ASKS(FORK_SESSION):
        return on_fork_session(p, q, f);
    case ASKS(TRIM_SESSION):
        return on_trim_session(p, q, f);
    case ASKS(GENERATE):
        return on_generate(p, q, f);
    case ASKS(CANCEL):
        return on_cancel(p, q, f);
    case ASKS(RESUME):
        return replay_resume(p, q->request_id, q->resume, f);
    case ASKS(TOKENIZE):
        return on_tokenize(p, q, f);
    case ASKS(DETOKENIZE):
        return on_detokenize(p, q, f);
    case ASKS(GET_USAGE):
        return on_get_usage(p, q, f);
    case ASKS(GET_STATUS):
        return on_get_status(p, q, f);
    case ASKS(FREEZE_SESSION):
    case ASKS(THAW_SESSION):
        return unsupported(f, "freezing and thawing sessions");
    case ASKS(EXPORT_SESSION):
    case ASKS(IMPORT_SESSION):
        return unsupported(f, "exporting and importing sessions");
    default:
        return fail_set(f, EOPNOTSUPP, "UNKNOWN_OPERATION", "the message has no operation that this server knows");
    }
}

/* How many file descriptors may come with it. */
static uint32_t fds_allowed(const Question *q)
{
    if (q->operation_case == ASKS(IMPORT_SESSION))
        return 1;
    return q->operation_case == ASKS(GENERATE) && q->generate->input_case == DSV4__V1__GENERATE__INPUT_MEMFD;
}

static int check_question(struct peer *p, const Question *q, struct fail *f)
{
    if (q->request_id == 0) {
        fail_set(f, ERANGE, "RANGE", "request_id is 0; it must be at least 1");
        fail_field(f, "request_id");
        fail_limit(f, 1, 0);
        return -ERANGE;
    }
    if (map_get_u64(p->requests, q->request_id))
        return fail_set(f, EALREADY, "DUPLICATE_REQUEST", "request %llu is not finished on this connection",
                        (unsigned long long)q->request_id);
    uint32_t allowed = fds_allowed(q);
    if (p->reader.fds_dropped || p->reader.n_fds > allowed) {
        fail_set(f, EPROTO, "UNEXPECTED_FDS", "%u file descriptor(s) or more came with a message that takes %u",
                 p->reader.n_fds, allowed);
        fail_limit(f, allowed, p->reader.n_fds);
        return -EPROTO;
    }
    if (!p->version && q->operation_case != ASKS(HELLO))
        return fail_set(f, EPROTO, "NOT_GREETED", "the first message must be Hello");
    return 0;
}

void peer_dispatch(struct peer *p, const uint8_t *data, size_t n)
{
    struct fail f = FAIL_INIT;
    uint64_t id = 0;

    int r = scan_message(&dsv4__v1__client_message__descriptor, data, n, &f);
    if (r < 0) {
        scan_find_u64(data, n, 1, &id);
        peer_error(p, map_get_u64(p->requests, id) ? 0 : id, &f);
        return;
    }
    Question *q = dsv4__v1__client_message__unpack(NULL, n, data);
    if (!q) {
        fail_oom(&f);
        peer_error(p, 0, &f);
        return;
    }
    r = check_question(p, q, &f);
    if (r == 0)
        r = operate(p, q, &f);
    if (r < 0)
        peer_error(p, q->request_id, &f);
    dsv4__v1__client_message__free_unpacked(q, NULL);
}
