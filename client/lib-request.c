/* SPDX-License-Identifier: MIT */
/* A generation: starting it, what arrives for it, taking its events, ending and resuming it. */
#include "client/lib.h"

#include <errno.h>
#include <string.h>

#include "proto/error.h"

static struct dsv4_request *request_new(struct dsv4 *c, dsv4_event_handler handler, void *userdata)
{
    struct dsv4_request *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->n_ref = 1;
    r->c = dsv4_ref(c);
    r->handler = handler;
    r->userdata = userdata;
    r->last = &r->first;
    r->deadline = NEVER;
    return r;
}

struct dsv4_request *dsv4_request_ref(struct dsv4_request *r)
{
    if (r)
        r->n_ref++;
    return r;
}

static void send_cancel(struct dsv4_request *r)
{
    Dsv4__V1__ClientMessage m = DSV4__V1__CLIENT_MESSAGE__INIT;
    Dsv4__V1__Cancel cancel = DSV4__V1__CANCEL__INIT;

    if (r->c->state != READY)
        return; /* request_resume() will say it */
    cancel.target = r->id;
    m.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_CANCEL;
    m.cancel = &cancel;
    (void)conn_send(r->c, &m, -1); /* without memory for a few bytes it goes on to its end */
}

struct dsv4_request *dsv4_request_unref(struct dsv4_request *r)
{
    if (!r || --r->n_ref > 0)
        return NULL;
    if (map_remove_u64(r->c->requests, r->id) && !r->cancelled)
        send_cancel(r);
    event_free(r->current);
    while (r->first) {
        struct dsv4_event *e = r->first;
        r->first = e->next;
        event_free(e);
    }
    for (size_t i = 0; i < r->n_calls; i++) {
        buf_deinit(&r->calls[i].id);
        buf_deinit(&r->calls[i].name);
        buf_deinit(&r->calls[i].arguments);
    }
    free(r->calls);
    buf_deinit(&r->content);
    buf_deinit(&r->reasoning);
    free(r->resume_token);
    dsv4_unref(r->c);
    free(r);
    return NULL;
}

/* ---------------------------------------------------------------- starting */

/* Put the input into m, a copy of the parameters' message; long input into a memfd. *ret_fd: -1 or the caller's. */
static int place_input(struct dsv4 *c, const struct dsv4_generate *g, Dsv4__V1__Generate *m, Dsv4__V1__MemfdText *memfd,
                       int *ret_fd)
{
    size_t size = 0;
    int r = 0;

    if (g->chat) {
        m->input_case = DSV4__V1__GENERATE__INPUT_CHAT;
        m->chat = g->chat->m;
        size = dsv4__v1__chat__get_packed_size(m->chat);
    } else if (m->input_case == DSV4__V1__GENERATE__INPUT_TEXT) {
        size = strlen(m->text);
    } else if (m->input_case == DSV4__V1__GENERATE__INPUT__NOT_SET) {
        conn_fail(c, EINVAL, "MISSING_FIELD", "there is no input: a text, a chat or tokens must be set");
        fail_field(&c->error.f, "input");
        return -EINVAL;
    }
    if (size <= MIN(MEMFD_FROM_BYTES, c->max_frame / 2))
        return 0;
    memfd->is_chat = g->chat != NULL;
    r = g->chat ? memfd_of_message(&m->chat->base, size, ret_fd) : memfd_of_text(m->text, size, ret_fd);
    if (r < 0)
        return conn_fail(c, -r, "IO_ERROR", "the input cannot be put into a memfd: %s", strerror(-r));
    m->input_case = DSV4__V1__GENERATE__INPUT_MEMFD;
    m->memfd = memfd;
    return 0;
}

int dsv4_generate_start(struct dsv4 *c, const struct dsv4_generate *g, dsv4_event_handler handler, void *userdata,
                        struct dsv4_request **ret)
{
    Dsv4__V1__ClientMessage m = DSV4__V1__CLIENT_MESSAGE__INIT;
    Dsv4__V1__MemfdText memfd = DSV4__V1__MEMFD_TEXT__INIT;
    Dsv4__V1__Generate copy = *g->m;
    _cleanup_close_ int fd = -1;

    int e = conn_wait_ready(c);
    if (e < 0)
        return e;
    e = place_input(c, g, &copy, &memfd, &fd);
    if (e < 0)
        return e;
    if (!copy.model && !copy.session) {
        conn_fail(c, EINVAL, "MISSING_FIELD", "neither a model nor a session is named");
        fail_field(&c->error.f, "model");
        return -EINVAL;
    }
    _cleanup_(dsv4_request_unrefp) struct dsv4_request *r = request_new(c, handler, userdata);
    if (!r)
        return conn_oom(c);
    r->resume_seconds = copy.has_resume_seconds ? copy.resume_seconds : 0;
    m.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_GENERATE;
    m.generate = &copy;
    r->id = c->last_id + 1;
    if (map_put_u64(c->requests, r->id, r) < 0)
        return conn_oom(c);
    e = conn_send(c, &m, fd);
    if (e < 0) {
        map_remove_u64(c->requests, r->id);
        return e;
    }
    *ret = TAKE_PTR(r);
    return 0;
}

int dsv4_generate_run(struct dsv4 *c, const struct dsv4_generate *g, dsv4_event_handler handler, void *userdata,
                      struct dsv4_request **ret_request)
{
    _cleanup_(dsv4_request_unrefp) struct dsv4_request *r = NULL;
    const struct dsv4_event *event;

    if (c->busy)
        return conn_fail(c, EBUSY, "NOT_CONNECTED", "a callback may not wait for a request");
    int e = dsv4_generate_start(c, g, NULL, NULL, &r);
    if (e < 0)
        return e;
    if (ret_request)
        *ret_request = dsv4_request_ref(r);
    for (;;) {
        e = dsv4_request_next(r, &event);
        if (e == -EINTR)
            continue;
        if (e <= 0)
            break;
        e = handler && r->handler_result >= 0 ? handler(r, event, userdata) : 0;
        if (e < 0) {
            r->handler_result = e;
            dsv4_request_cancel(r);
        }
    }
    if (r->handler_result < 0)
        return r->handler_result;
    if (r->failed.f.err)
        c->error = r->failed;
    return e < 0 ? e : -r->failed.f.err;
}

/* ---------------------------------------------------------------- what arrives */

static int keep_tool_call(struct dsv4_request *r, const Dsv4__V1__ToolCallDelta *d)
{
    if (d->call >= TOOL_CALLS_MAX)
        return -EPROTO;
    if (d->call >= r->n_calls) {
        struct tool_call *calls = reallocarray(r->calls, (size_t)d->call + 1, sizeof(*calls));
        if (!calls)
            return -ENOMEM;
        memset(calls + r->n_calls, 0, ((size_t)d->call + 1 - r->n_calls) * sizeof(*calls));
        r->calls = calls;
        r->n_calls = (size_t)d->call + 1;
    }
    struct tool_call *call = &r->calls[d->call];
    int e = d->id ? buf_append_str(&call->id, d->id) : 0;
    if (e >= 0 && d->name)
        e = buf_append_str(&call->name, d->name);
    if (e >= 0 && d->arguments)
        e = buf_append_str(&call->arguments, d->arguments);
    return e;
}

static int keep_delta(struct dsv4_request *r, const Dsv4__V1__Delta *d)
{
    int e = d->content ? buf_append_str(&r->content, d->content) : 0;

    if (e >= 0 && d->reasoning)
        e = buf_append_str(&r->reasoning, d->reasoning);
    if (e >= 0 && d->tool_call)
        e = keep_tool_call(r, d->tool_call);
    r->next_index = d->index + 1;
    return e;
}

/* 1 and the event's type, 0 when the message is not to be passed on, negative: it is not one of a request. */
static int classify(struct dsv4_request *r, const Dsv4__V1__ServerMessage *m, enum dsv4_event_type *ret)
{
    switch (m->event_case) {
    case DSV4__V1__SERVER_MESSAGE__EVENT_ACCEPTED:
        *ret = DSV4_EVENT_ACCEPTED;
        if (m->accepted->resume_token && replace_string(&r->resume_token, m->accepted->resume_token) < 0)
            return -ENOMEM;
        return r->n_resumed == 0;
    case DSV4__V1__SERVER_MESSAGE__EVENT_QUEUED:
        *ret = DSV4_EVENT_QUEUED;
        return 1;
    case DSV4__V1__SERVER_MESSAGE__EVENT_PREFILL:
        *ret = DSV4_EVENT_PREFILL;
        return 1;
    case DSV4__V1__SERVER_MESSAGE__EVENT_DELTA: {
        *ret = DSV4_EVENT_DELTA;
        if (m->delta->index < r->next_index)
            return 0; /* came before the connection broke */
        int e = keep_delta(r, m->delta);
        return e < 0 ? e : 1;
    }
    case DSV4__V1__SERVER_MESSAGE__EVENT_FINISHED:
        *ret = DSV4_EVENT_FINISHED;
        return 1;
    case DSV4__V1__SERVER_MESSAGE__EVENT_ERROR:
        *ret = DSV4_EVENT_ERROR;
        error_to_fail(m->error, &r->failed.f);
        return 1;
    default:
        return -EPROTO;
    }
}

static void deliver(struct dsv4_request *request, struct dsv4_event *event)
{
    _cleanup_(event_freep) struct dsv4_event *e = event;
    _cleanup_(dsv4_request_unrefp) struct dsv4_request *r = dsv4_request_ref(request);

    if (e->type == DSV4_EVENT_FINISHED || e->type == DSV4_EVENT_ERROR) {
        map_remove_u64(r->c->requests, r->id);
        r->done = true;
    }
    if (!r->handler) {
        *r->last = e;
        r->last = &TAKE_PTR(e)->next;
        return;
    }
    int result = r->handler(r, e, r->userdata);
    if (result < 0 && !r->done) {
        r->handler_result = result;
        dsv4_request_cancel(r);
    }
}

void request_handle(struct dsv4_request *r, Dsv4__V1__ServerMessage *message)
{
    _cleanup_answer_ Dsv4__V1__ServerMessage *m = message;
    enum dsv4_event_type type;
    struct fail f = FAIL_INIT;

    r->deadline = NEVER; /* it goes on */
    int e = classify(r, m, &type);
    if (e == 0)
        return;
    if (e < 0) {
        if (e == -ENOMEM)
            fail_oom(&f);
        else
            fail_set(&f, EPROTO, "PROTOCOL", "the server sent a message that does not belong to a generation");
        send_cancel(r);
        request_fail(r, &f);
        return;
    }
    struct dsv4_event *event = calloc(1, sizeof(*event));
    if (!event) {
        send_cancel(r);
        fail_oom(&f);
        request_fail(r, &f);
        return;
    }
    event->type = type;
    event->m = TAKE_PTR(m);
    event->error = r->failed;
    deliver(r, event);
}

void request_fail(struct dsv4_request *r, const struct fail *f)
{
    r->failed.f = *f;
    struct dsv4_event *event = calloc(1, sizeof(*event));
    if (!event) { /* without its event: dsv4_request_is_done() tells, and next() ends */
        map_remove_u64(r->c->requests, r->id);
        r->done = true;
        return;
    }
    event->type = DSV4_EVENT_ERROR;
    event->error.f = *f;
    deliver(r, event);
}

int request_resume(struct dsv4_request *r)
{
    Dsv4__V1__ClientMessage m = DSV4__V1__CLIENT_MESSAGE__INIT;
    Dsv4__V1__Resume resume = DSV4__V1__RESUME__INIT;

    if (r->deadline == NEVER)
        return 0; /* started on this connection */
    resume.resume_token = r->resume_token;
    resume.next_index = r->next_index;
    m.request_id = r->id; /* ids only grow, so it is free on the new connection too */
    m.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_RESUME;
    m.resume = &resume;
    int e = conn_send(r->c, &m, -1);
    if (e < 0)
        return e;
    r->n_resumed++;
    if (r->cancelled)
        send_cancel(r);
    return 0;
}

/* ---------------------------------------------------------------- what the caller does */

int dsv4_request_try_next(struct dsv4_request *r, const struct dsv4_event **ret)
{
    if (r->handler)
        return conn_fail(r->c, EINVAL, "PROTOCOL", "the request's events go to its handler");
    r->current = event_free(r->current);
    if (!r->first)
        return r->done ? 0 : -EAGAIN;
    r->current = r->first;
    r->first = r->current->next;
    if (!r->first)
        r->last = &r->first;
    r->current->next = NULL;
    *ret = r->current;
    return 1;
}

int dsv4_request_next(struct dsv4_request *r, const struct dsv4_event **ret)
{
    for (;;) {
        int e = dsv4_request_try_next(r, ret);
        if (e != -EAGAIN)
            return e;
        e = dsv4_process(r->c);
        if (e == 0)
            e = dsv4_wait(r->c, NEVER);
        if (e < 0 && !r->first && !r->done)
            return e;
    }
}

int dsv4_request_cancel(struct dsv4_request *r)
{
    if (r->done || r->cancelled)
        return 0;
    r->cancelled = true;
    send_cancel(r);
    return 0;
}

int dsv4_request_is_done(const struct dsv4_request *r)
{
    return r->done;
}

const char *dsv4_request_get_content(const struct dsv4_request *r)
{
    return r->content.data ? r->content.data : "";
}

const char *dsv4_request_get_reasoning(const struct dsv4_request *r)
{
    return r->reasoning.data ? r->reasoning.data : "";
}

size_t dsv4_request_get_n_tool_calls(const struct dsv4_request *r)
{
    return r->n_calls;
}

int dsv4_request_get_tool_call(const struct dsv4_request *r, size_t i, const char **ret_id, const char **ret_name,
                               const char **ret_arguments_json)
{
    if (i >= r->n_calls)
        return -ENOENT;
    const struct tool_call *call = &r->calls[i];
    if (ret_id)
        *ret_id = call->id.data ? call->id.data : "";
    if (ret_name)
        *ret_name = call->name.data ? call->name.data : "";
    if (ret_arguments_json)
        *ret_arguments_json = call->arguments.data ? call->arguments.data : "";
    return 0;
}

uint32_t dsv4_request_get_n_resumed(const struct dsv4_request *r)
{
    return r->n_resumed;
}
