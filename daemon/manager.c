/* SPDX-License-Identifier: MIT */
/* The front as a whole: accepting, signals, and stopping in order. See daemon.h. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

#define ACCEPTS_PER_TURN 32
#define ACCEPT_PAUSE_USEC 200000ull     /* out of file descriptors: others must give some back first */
#define CANCEL_TIMEOUT_USEC 2000000ull  /* for engines to end what was cancelled, and then to exit */

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata);

/* ---- accepting */

static int accept_again(sd_event_source *source, uint64_t usec, void *userdata)
{
    (void)source;
    (void)usec;
    sd_event_source_set_enabled(userdata, SD_EVENT_ON);
    return 0;
}

/* 1: accepted, 0: nothing to accept now. */
static int accept_one(struct manager *m, int fd, sd_event_source *source, sd_event_source **pause, int *ret)
{
    *ret = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (*ret >= 0)
        return 1;
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        log_warning("cannot accept a connection now: %s", strerror(errno));
        sd_event_source_set_enabled(source, SD_EVENT_OFF);
        timer_arm(m->event, pause, ACCEPT_PAUSE_USEC, accept_again, source);
    }
    return 0;
}

static int on_client(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
    struct manager *m = userdata;
    int client;

    (void)revents;
    for (int i = 0; i < ACCEPTS_PER_TURN && accept_one(m, fd, source, &m->accept_again, &client) > 0; i++)
        peer_accept(m, client);
    return 0;
}

static int on_engine(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
    struct manager *m = userdata;
    int engine;

    (void)revents;
    if (accept_one(m, fd, source, &m->engine_accept_again, &engine) > 0)
        engine_accept(m, engine);
    return 0;
}

/* ---- made and freed */

int manager_new(struct manager **ret)
{
    _cleanup_(manager_freep) struct manager *m = calloc(1, sizeof(*m));

    if (!m)
        return -ENOMEM;
    m->listen_fd = m->engine_fd = -1;
    m->engine_uid = (uid_t)-1;
    m->next_id = 1;
    m->started_usec = now_realtime_usec();
    limits_init(&m->limits);
    list_init(&m->models);
    list_init(&m->peers);
    list_init(&m->engines);
    int r = accounts_init(&m->accounts, &m->limits, &m->quotas);
    if (r == 0)
        r = map_new(&m->sessions);
    if (r == 0)
        r = map_new(&m->resumes);
    if (r == 0)
        r = sd_event_new(&m->event);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(m);
    return 0;
}

static void free_requests(struct manager *m)
{
    struct request *r;
    size_t cursor = 0;

    LIST_FOR_EACH(l, &m->engines) {
        struct engine *e = LIST_MEMBER(l, struct engine, link);
        cursor = 0;
        while ((r = map_next(e->requests, &cursor, NULL, NULL)))
            request_free(r);
    }
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        while (!list_empty(&model->waiting))
            request_free(LIST_MEMBER(model->waiting.next, struct request, link));
    }
    cursor = 0;
    while (m->resumes && (r = map_next(m->resumes, &cursor, NULL, NULL)))
        request_free(r);
}

struct manager *manager_free(struct manager *m)
{
    struct session *s;
    size_t cursor = 0;

    if (!m)
        return NULL;
    m->stopping = true;
    free_requests(m);
    LIST_FOR_EACH(l, &m->peers)
        peer_free(LIST_MEMBER(l, struct peer, link));
    while (m->sessions && (s = map_next(m->sessions, &cursor, NULL, NULL)))
        session_free(s);
    LIST_FOR_EACH(l, &m->engines)
        engine_free(LIST_MEMBER(l, struct engine, link));
    LIST_FOR_EACH(l, &m->models) {
        model_kill(LIST_MEMBER(l, struct model, link), SIGKILL);
        model_free(LIST_MEMBER(l, struct model, link));
    }
    sd_event_source **sources[] = {&m->listen, &m->engine_listen, &m->accept_again, &m->engine_accept_again, &m->sigterm,
                                   &m->sigint, &m->grace};
    for (size_t i = 0; i < ELEMENTS(sources); i++)
        sd_event_source_disable_unref(*sources[i]);
    closep(&m->listen_fd);
    closep(&m->engine_fd);
    if (m->socket_path)
        unlink(m->socket_path);
    if (m->engine_path)
        unlink(m->engine_path);
    free(m->socket_path);
    free(m->engine_path);
    map_free(m->sessions);
    map_free(m->resumes);
    accounts_deinit(&m->accounts);
    quotas_deinit(&m->quotas);
    sd_event_unref(m->event);
    free(m);
    return NULL;
}

/* ---- stopping: no new work, a time for what runs, then it is cancelled, then engines are killed */

void manager_check_stopped(struct manager *m)
{
    if (!m->stopping || m->running > 0 || m->waiting > 0)
        return;
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        if (model->pid || model->engine)
            return;
    }
    LIST_FOR_EACH(l, &m->peers) { /* last words, as far as there is room */
        struct peer *p = LIST_MEMBER(l, struct peer, link);
        frame_send(&p->writer, p->fd);
    }
    if (sd_event_get_state(m->event) != SD_EVENT_FINISHED)
        sd_event_exit(m->event, 0);
}

static void drain(struct manager *m)
{
    Dsv4__Engine__V1__FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__Drain drain_message = DSV4__ENGINE__V1__DRAIN__INIT;
    struct fail f = FAIL_INIT;

    fm.operation_case = DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_DRAIN;
    fm.drain = &drain_message;
    fail_set(&f, ESHUTDOWN, "SHUTTING_DOWN", "the service is stopping; try again when it is back");
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        model_fail_waiting(model, &f);
        timer_off(&model->retry);
        if (model->engine)
            engine_send(model->engine, &fm);
        if (model->state == DSV4__V1__MODEL_STATE__READY)
            model->state = DSV4__V1__MODEL_STATE__DRAINING;
        else
            model_kill(model, SIGTERM); /* it has nothing to finish */
    }
}

static void cancel_all(struct manager *m)
{
    m->cancelled_all = true;
    LIST_FOR_EACH(l, &m->engines) {
        struct engine *e = LIST_MEMBER(l, struct engine, link);
        struct request *r;
        size_t cursor = 0;
        while ((r = map_next(e->requests, &cursor, NULL, NULL)))
            request_cancel(r);
    }
}

static int on_grace_over(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct manager *m = userdata;

    (void)source;
    (void)usec;
    if (!m->cancelled_all) {
        cancel_all(m);
        timer_arm(m->event, &m->grace, CANCEL_TIMEOUT_USEC, on_grace_over, m);
        return 0;
    }
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        if (!model->pid)
            continue;
        log_warning("engine of %s does not stop: killing it", model->name);
        model_kill(model, SIGKILL);
    }
    if (!m->engine_program)
        sd_event_exit(m->event, 0); /* others look after those engines */
    return 0;
}

void manager_stop(struct manager *m)
{
    if (m->stopping) {
        on_grace_over(NULL, 0, m); /* asked twice: faster */
        return;
    }
    log_info("stopping");
    m->stopping = true;
    sd_event_source_set_enabled(m->listen, SD_EVENT_OFF);
    sd_event_source_set_enabled(m->engine_listen, SD_EVENT_OFF);
    timer_off(&m->accept_again);
    timer_off(&m->engine_accept_again);
    closep(&m->listen_fd);
    m->listen_fd = -1;
    drain(m);
    timer_arm(m->event, &m->grace, m->limits.shutdown_grace_usec, on_grace_over, m);
    manager_check_stopped(m);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
    (void)source;
    (void)si;
    manager_stop(userdata);
    return 0;
}

int manager_start(struct manager *m)
{
    int r = sd_event_add_signal(m->event, &m->sigterm, SIGTERM, on_signal, m);
    if (r >= 0)
        r = sd_event_add_signal(m->event, &m->sigint, SIGINT, on_signal, m);
    if (r >= 0)
        r = sd_event_add_io(m->event, &m->listen, m->listen_fd, EPOLLIN, on_client, m);
    if (r >= 0)
        r = sd_event_add_io(m->event, &m->engine_listen, m->engine_fd, EPOLLIN, on_engine, m);
    if (r < 0)
        return r;
    LIST_FOR_EACH(l, &m->models)
        model_start(LIST_MEMBER(l, struct model, link));
    return 0;
}
