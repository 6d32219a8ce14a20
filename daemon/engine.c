/* SPDX-License-Identifier: MIT */
/*
 * The connection of one engine: who may connect, what it says about itself, and frames to and from it. An engine that
 * breaks the protocol loses its connection (and its process): nothing it says is trusted to be well-formed.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "proto/error.h"
#include "proto/scan.h"

#define ENGINE_HIGH_BYTES (16u << 20)      /* more is not queued for an engine that does not read */
#define ENGINE_STUCK_USEC 60000000ull      /* an engine that takes nothing for this long hangs */
#define GREETING_TIMEOUT_USEC 10000000ull  /* from connect to Register */
#define FRAMES_PER_TURN 64                 /* then others have their turn */

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata);

/* ---- the end */

struct engine *engine_free(struct engine *e)
{
    if (!e)
        return NULL;
    list_remove(&e->link);
    sd_event_source_disable_unref(e->io);
    sd_event_source_disable_unref(e->timer);
    closep(&e->fd);
    frame_reader_deinit(&e->reader);
    frame_writer_deinit(&e->writer);
    map_free(e->requests);
    free(e);
    return NULL;
}

static void engine_gone(struct engine *e, const char *why)
{
    struct model *model = e->model;
    struct request *r;
    size_t cursor = 0;

    if (model)
        log_line(model->m->stopping ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING, "lost the engine of %s: %s", model->name, why);
    else
        log_warning("refused an engine (process %d): %s", (int)e->pid, why);
    sd_event_source_disable_unref(TAKE_PTR(e->io));
    if (model)
        model->engine = NULL;
    while ((r = map_next(e->requests, &cursor, NULL, NULL))) {
        struct fail f = FAIL_INIT;
        fail_set(&f, EIO, "ENGINE_GONE", "the engine of %s stopped while it worked on this; it is being restarted",
                 model->name);
        f.retry_after_ms = 100;
        request_fail(r, &f);
    }
    if (model)
        sessions_drop_model(e->m, model);
    struct manager *m = e->m;
    engine_free(e);
    if (model)
        model_disconnected(model);
    manager_check_stopped(m);
}

static int stuck(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct engine *e = userdata;

    (void)source;
    (void)usec;
    engine_gone(e, e->model ? "it does not read" : "it did not register");
    return 0;
}

/* ---- sending */

/* What is queued must move before the timer ends. */
static void expect_progress(struct engine *e)
{
    if (e->sent_before == e->writer.sent)
        return;
    e->sent_before = e->writer.sent;
    if (timer_arm(e->m->event, &e->timer, ENGINE_STUCK_USEC, stuck, e) < 0)
        e->broken = true;
}

static void update_events(struct engine *e)
{
    bool out = frame_pending(&e->writer) > 0 || e->broken;

    if (frame_pending(&e->writer) > 0 && e->sent_before == UINT64_MAX)
        expect_progress(e);
    if (e->io)
        sd_event_source_set_io_events(e->io, EPOLLIN | (out ? EPOLLOUT : 0));
}

int engine_send(struct engine *e, const Dsv4__Engine__V1__FrontMessage *fm)
{
    int r = frame_queue(&e->writer, &fm->base, -1);
    if (r < 0)
        e->broken = true;
    update_events(e);
    return r;
}

int engine_send_request(struct engine *e, struct request *r)
{
    int err = map_put_u64(e->requests, r->id, r);
    if (err < 0)
        return err;
    err = frame_queue_packed(&e->writer, r->payload, r->payload_size, r->fd);
    if (err < 0) {
        map_remove_u64(e->requests, r->id);
        return err;
    }
    list_remove(&r->link);
    r->model->n_waiting--;
    e->m->waiting--;
    r->engine = e;
    if (r->kind == REQUEST_GENERATE)
        e->m->running++;
    timer_off(&r->timer);
    free(TAKE_PTR(r->payload));
    closep(&r->fd);
    r->fd = -1;
    charge_release(&r->waiting_charge);
    update_events(e);
    request_pause(r);
    return 0;
}

void engine_cancel(struct engine *e, uint64_t id, bool quiet)
{
    Dsv4__Engine__V1__FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__Cancel cancel = DSV4__ENGINE__V1__CANCEL__INIT;

    cancel.target = id;
    cancel.has_quiet = cancel.quiet = quiet;
    fm.operation_case = DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_CANCEL;
    fm.cancel = &cancel;
    engine_send(e, &fm);
}

void engine_pace(struct engine *e, uint64_t id, bool paused)
{
    Dsv4__Engine__V1__FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__Pace pace = DSV4__ENGINE__V1__PACE__INIT;

    pace.target = id;
    pace.paused = paused;
    fm.operation_case = DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_PACE;
    fm.pace = &pace;
    engine_send(e, &fm);
}

bool engine_congested(const struct engine *e)
{
    return frame_pending(&e->writer) > ENGINE_HIGH_BYTES;
}

static int flush(struct engine *e)
{
    if (e->broken)
        return -ENOMEM;
    int r = frame_send(&e->writer, e->fd);
    if (r < 0)
        return r;
    if (r == 0)
        expect_progress(e);
    if (r == 1 && e->model)
        timer_off(&e->timer); /* before Register it is the one for that */
    if (r == 1)
        e->sent_before = UINT64_MAX;
    if (e->model)
        model_pump(e->model);
    update_events(e);
    return 0;
}

/* ---- what it says about itself */

static int on_register(struct engine *e, const Dsv4__Engine__V1__Register *q)
{
    Dsv4__Engine__V1__FrontMessage fm = DSV4__ENGINE__V1__FRONT_MESSAGE__INIT;
    Dsv4__Engine__V1__Welcome welcome = DSV4__ENGINE__V1__WELCOME__INIT;
    struct model *model = model_find(e->m, q->model);
    const char *wrong = NULL;

    if (strcmp(q->build, PACKAGE_VERSION) != 0)
        wrong = "it is of another build";
    else if (!model || strcmp(model->name, q->model) != 0)
        wrong = "its model is not configured";
    else if (model->engine)
        wrong = "its model has an engine already";
    else if (e->m->engine_program && model->pid != e->pid)
        wrong = "it is not the process that was started for its model";
    if (wrong) {
        log_warning("engine for \"%.64s\" (process %d): %s", q->model, (int)e->pid, wrong);
        return -EPERM;
    }
    e->model = model;
    timer_off(&e->timer);
    model_registered(model, e);
    fm.operation_case = DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_WELCOME;
    fm.welcome = &welcome;
    return engine_send(e, &fm);
}

static int on_ready(struct engine *e, const Dsv4__Engine__V1__Ready *ready)
{
    size_t n = dsv4__v1__model__get_packed_size(ready->model);
    _cleanup_free_ uint8_t *copy = malloc(n ? n : 1);

    if (!copy)
        return -ENOMEM;
    dsv4__v1__model__pack(ready->model, copy);
    Dsv4__V1__Model *info = dsv4__v1__model__unpack(NULL, n, copy);
    if (!info)
        return -ENOMEM;
    if (e->model->info)
        dsv4__v1__model__free_unpacked(e->model->info, NULL);
    e->model->info = info;
    if (e->model->state != DSV4__V1__MODEL_STATE__READY)
        model_ready(e->model);
    return 0;
}

static int on_news(struct engine *e, const Dsv4__Engine__V1__EngineMessage *em)
{
    switch (em->event_case) {
    case DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_LOADING:
        e->model->done_bytes = em->loading->done_bytes;
        e->model->total_bytes = em->loading->total_bytes;
        return 0;
    case DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_READY:
        return on_ready(e, em->ready);
    case DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_FAILED:
        error_to_fail(em->failed->error, &e->model->why);
        return 0;
    case DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_STATS:
        return 0;
    case DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_ERROR:
        log_warning("engine of %s: %s: %s", e->model->name, em->error->code, em->error->message);
        return 0;
    default:
        return -EPROTO;
    }
}

static int dispatch(struct engine *e, Dsv4__Engine__V1__EngineMessage *em)
{
    if (!e->model)
        return em->id == 0 && em->event_case == DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_REGISTER
                   ? on_register(e, em->register_)
                   : -EPROTO;
    return em->id == 0 ? on_news(e, em) : serve_event(e, em);
}

/* ---- receiving */

static int read_one(struct engine *e, const char **why)
{
    const uint8_t *data;
    size_t n;
    struct fail f = FAIL_INIT;

    int r = frame_receive(&e->reader, e->fd);
    if (r == -EAGAIN)
        return 0;
    *why = r == 0 ? "its connection ended" : "its connection failed";
    if (r == 0 || (r < 0 && r != -EBADMSG && r != -EMSGSIZE))
        return -ECONNRESET;
    *why = "it sent something that is no message";
    r = frame_next(&e->reader, &data, &n, &f);
    if (r <= 0)
        return r;
    if (e->reader.n_fds > 0 || scan_message(&dsv4__engine__v1__engine_message__descriptor, data, n, &f) < 0)
        return -EPROTO;
    Dsv4__Engine__V1__EngineMessage *em = dsv4__engine__v1__engine_message__unpack(NULL, n, data);
    if (!em)
        return -ENOMEM;
    frame_done(&e->reader);
    *why = e->model ? "it said something that it may not say now" : "it may not register";
    r = dispatch(e, em);
    dsv4__engine__v1__engine_message__free_unpacked(em, NULL);
    return r < 0 ? r : 1;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
    struct engine *e = userdata;
    const char *why = "its connection failed";
    int r = 1;

    (void)source;
    (void)fd;
    if (revents & EPOLLIN)
        for (int i = 0; i < FRAMES_PER_TURN && r > 0; i++)
            r = read_one(e, &why);
    else if (revents & (EPOLLHUP | EPOLLERR))
        r = -ECONNRESET;
    if (r >= 0) {
        why = "writing to it failed";
        r = flush(e);
    }
    if (r < 0)
        engine_gone(e, why);
    return 0;
}

/* ---- the beginning */

int engine_accept(struct manager *m, int fd_in)
{
    _cleanup_close_ int fd = fd_in;
    struct ucred cred;
    socklen_t n = sizeof(cred);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return -errno;
    if (cred.uid != geteuid() && cred.uid != m->engine_uid) {
        log_warning("uid %u may not run engines (process %d)", (unsigned)cred.uid, (int)cred.pid);
        return -EPERM;
    }
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    e->m = m;
    e->pid = cred.pid;
    e->sent_before = UINT64_MAX;
    e->fd = TAKE_FD(fd);
    list_init(&e->link);
    list_append(&m->engines, &e->link);
    int r = map_new(&e->requests);
    if (r == 0)
        r = timer_arm(m->event, &e->timer, GREETING_TIMEOUT_USEC, stuck, e);
    if (r == 0)
        r = sd_event_add_io(m->event, &e->io, e->fd, EPOLLIN, on_io, e);
    if (r < 0)
        engine_free(e);
    return r;
}
