/* SPDX-License-Identifier: MIT */
/* The connection object: life, settings, the event-loop interface and synchronous calls. The socket is lib-link.c's. */
#include "client/lib.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "proto/error.h"
#include "proto/scan.h"

#define MESSAGES_AT_ONCE 64

uint64_t conn_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int conn_fail(struct dsv4 *c, int err, const char *code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int r = fail_setv(&c->error.f, err, code, fmt, ap);
    va_end(ap);
    return r;
}

int conn_oom(struct dsv4 *c)
{
    return fail_oom(&c->error.f);
}

int dsv4_new(struct dsv4 **ret)
{
    _cleanup_(dsv4_unrefp) struct dsv4 *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->n_ref = 1;
    c->fd = -1;
    c->in = FRAME_READER_INIT;
    c->out = FRAME_WRITER_INIT;
    c->timeout_usec = ANSWER_TIMEOUT_USEC;
    c->uid = (uint32_t)-1;
    int r = map_new(&c->requests);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(c);
    return 0;
}

struct dsv4 *dsv4_ref(struct dsv4 *c)
{
    if (c)
        c->n_ref++;
    return c;
}

struct dsv4 *dsv4_unref(struct dsv4 *c)
{
    if (!c || --c->n_ref > 0)
        return NULL;
    link_close(c); /* no request is left: each holds a reference */
    map_free(c->requests);
    free(c->path);
    free(c->client_name);
    free(c->server);
    free(c);
    return NULL;
}

int dsv4_set_client_name(struct dsv4 *c, const char *name)
{
    if (c->state != CLOSED)
        return conn_fail(c, EISCONN, "ALREADY_GREETED", "the client's name must be set before connecting");
    if (name && strlen(name) > 64)
        return conn_fail(c, EINVAL, "RANGE", "the client's name is %zu bytes long, at most 64 are allowed",
                         strlen(name));
    return replace_string(&c->client_name, name) < 0 ? conn_oom(c) : 0;
}

int dsv4_set_timeout(struct dsv4 *c, uint64_t usec)
{
    c->timeout_usec = usec;
    return 0;
}

const char *dsv4_get_server(const struct dsv4 *c)
{
    return c->server;
}

uint32_t dsv4_get_protocol_version(const struct dsv4 *c)
{
    return c->version;
}

uint32_t dsv4_get_server_uid(const struct dsv4 *c)
{
    return c->uid;
}

int dsv4_get_fd(const struct dsv4 *c)
{
    if (c->state == CLOSED)
        return -ENOTCONN;
    return c->fd; /* -1 in WAITING, which poll ignores */
}

int dsv4_get_events(const struct dsv4 *c)
{
    if (c->fd < 0)
        return 0;
    return POLLIN | (frame_pending(&c->out) > 0 ? POLLOUT : 0);
}

int dsv4_get_timeout(const struct dsv4 *c, uint64_t *ret_usec)
{
    *ret_usec = c->state == WAITING ? c->retry_at : c->state == GREETING ? c->greeting_until : NEVER;
    return 0;
}

static uint64_t add_usec(uint64_t a, uint64_t b)
{
    return a > NEVER - b ? NEVER : a + b;
}

int dsv4_wait(struct dsv4 *c, uint64_t timeout_usec)
{
    uint64_t until, now = conn_now(), own;

    if (c->state == CLOSED)
        return conn_fail(c, ENOTCONN, "NOT_CONNECTED", "the client is not connected");
    dsv4_get_timeout(c, &own);
    until = MIN(own, add_usec(now, timeout_usec));
    uint64_t left = until > now ? until - now : 0;
    struct timespec t = {.tv_sec = (time_t)(left / 1000000), .tv_nsec = (long)(left % 1000000) * 1000};
    struct pollfd p = {.fd = c->fd, .events = (short)dsv4_get_events(c)};
    int n = ppoll(&p, 1, until == NEVER ? NULL : &t, NULL);
    if (n < 0)
        return -errno;
    return n > 0 || (own != NEVER && conn_now() >= own);
}

/* One message from the server, ours to free. */
static void dispatch(struct dsv4 *c, Dsv4__V1__ServerMessage *message)
{
    _cleanup_answer_ Dsv4__V1__ServerMessage *m = message;

    if (m->request_id == 0) {
        if (m->event_case == DSV4__V1__SERVER_MESSAGE__EVENT_ERROR)
            error_to_fail(m->error, &c->reason);
        return;
    }
    if (c->call && c->call->id == m->request_id) {
        c->call->answer = TAKE_PTR(m);
        c->call->done = true;
        c->call = NULL;
        return;
    }
    struct dsv4_request *r = map_get_u64(c->requests, m->request_id);
    if (r)
        request_handle(r, TAKE_PTR(m));
    /* else an answer that nobody waits for any more: to Cancel, to a call that timed out, to a dropped request */
}

/* 1 and a message, 0, or an error that ends the connection. */
static int next_message(struct dsv4 *c, Dsv4__V1__ServerMessage **ret)
{
    const uint8_t *data;
    size_t n;

    int r = frame_next(&c->in, &data, &n, &c->reason);
    if (r <= 0)
        return r;
    r = scan_message(&dsv4__v1__server_message__descriptor, data, n, &c->reason);
    if (r < 0)
        return r;
    *ret = dsv4__v1__server_message__unpack(NULL, n, data);
    frame_done(&c->in);
    if (!*ret)
        return fail_set(&c->reason, EBADMSG, "MALFORMED", "the server sent what is not a message");
    return 1;
}

/* What has come, at most so many messages: others want their turn in an event loop. */
static int receive(struct dsv4 *c)
{
    int did = 0;

    for (int i = 0; i < MESSAGES_AT_ONCE && c->fd >= 0; i++) {
        _cleanup_answer_ Dsv4__V1__ServerMessage *m = NULL;
        int got = frame_receive(&c->in, c->fd);
        int r = next_message(c, &m);
        if (r < 0)
            return link_lost(c, -r);
        if (r == 0 && got == -EAGAIN)
            break;
        if (r == 0 && got <= 0)
            return link_lost(c, got < 0 ? -got : ECONNRESET);
        did = 1;
        if (r == 0)
            continue;
        if (c->state == GREETING && m->request_id == c->hello_id)
            r = link_greeted(c, m);
        else
            dispatch(c, TAKE_PTR(m));
        if (r < 0)
            return link_lost(c, -r);
    }
    return did;
}

static int flush(struct dsv4 *c)
{
    if (c->fd < 0 || frame_pending(&c->out) == 0)
        return 0;
    int r = frame_send(&c->out, c->fd);
    /* what the server said before it closed is still to be read: end of file will tell */
    if (r == -EPIPE || r == -ECONNRESET) {
        frame_writer_deinit(&c->out);
        c->out = FRAME_WRITER_INIT;
        return 1;
    }
    return r < 0 ? link_lost(c, -r) : r;
}

static int step(struct dsv4 *c)
{
    if (c->state == CLOSED)
        return conn_fail(c, ENOTCONN, "NOT_CONNECTED", "the client is not connected");
    if (c->state == WAITING)
        return conn_now() >= c->retry_at ? link_retry(c) : 0;
    if (c->state == GREETING && conn_now() >= c->greeting_until)
        return link_lost(c, ETIMEDOUT);
    int r = flush(c);
    if (r < 0 || c->fd < 0)
        return r;
    r = receive(c);
    if (r < 0 || c->fd < 0)
        return r;
    int sent = flush(c); /* what callbacks queued */
    return sent < 0 ? sent : r;
}

int dsv4_process(struct dsv4 *c)
{
    if (c->busy)
        return conn_fail(c, EBUSY, "NOT_CONNECTED", "a callback may not process its own connection");
    /* a callback may drop the last other reference */
    _cleanup_(dsv4_unrefp) __attribute__((unused)) struct dsv4 *keep = dsv4_ref(c);
    c->busy = true;
    int r = step(c);
    c->busy = false;
    return r;
}

int conn_send(struct dsv4 *c, Dsv4__V1__ClientMessage *m, int fd)
{
    if (m->request_id == 0)
        m->request_id = ++c->last_id;
    size_t size = dsv4__v1__client_message__get_packed_size(m);
    if (size > c->max_frame) {
        conn_fail(c, EMSGSIZE, "FRAME_TOO_LARGE", "the request would be %zu bytes long, at most %u are allowed",
                  size, c->max_frame);
        fail_limit(&c->error.f, c->max_frame, (int64_t)size);
        return -EMSGSIZE;
    }
    int r = frame_queue(&c->out, &m->base, fd);
    if (r < 0)
        return conn_fail(c, -r, r == -ENOMEM ? "NO_MEMORY" : "IO_ERROR", "the request cannot be queued: %s",
                         strerror(-r));
    if (!c->busy && c->fd >= 0)
        (void)frame_send(&c->out, c->fd); /* a lost connection is found by the next dsv4_process() */
    return 0;
}

/* Process, or wait for something to process, at most until then. */
static int turn(struct dsv4 *c, uint64_t until)
{
    int r = dsv4_process(c);
    if (r != 0)
        return r;
    uint64_t now = conn_now();
    if (now >= until)
        return conn_fail(c, ETIMEDOUT, "TIMEOUT", "the service did not answer in time");
    r = dsv4_wait(c, until == NEVER ? NEVER : until - now);
    return r == -EINTR ? 0 : r;
}

int conn_wait_ready(struct dsv4 *c)
{
    uint64_t until = add_usec(conn_now(), c->timeout_usec);

    if (c->state == READY)
        return 0;
    if (c->busy)
        return conn_fail(c, EBUSY, "NOT_CONNECTED", "the connection is being resumed and a callback cannot wait");
    while (c->state != READY) {
        int r = turn(c, until);
        if (r < 0)
            return r;
    }
    return 0;
}

int conn_call(struct dsv4 *c, Dsv4__V1__ClientMessage *m, Dsv4__V1__ServerMessage__EventCase kind,
              Dsv4__V1__ServerMessage **ret)
{
    uint64_t until = add_usec(conn_now(), c->timeout_usec);

    if (c->busy)
        return conn_fail(c, EBUSY, "NOT_CONNECTED", "a callback may not make synchronous calls");
    int r = conn_wait_ready(c);
    if (r < 0)
        return r;
    r = conn_send(c, m, -1);
    if (r < 0)
        return r;
    struct call call = {.id = m->request_id};
    c->call = &call;
    while (!call.done && r >= 0)
        r = turn(c, until);
    c->call = NULL;
    if (!call.done)
        return r;
    _cleanup_answer_ Dsv4__V1__ServerMessage *answer = call.answer;
    if (!answer)
        return c->error.f.err ? -c->error.f.err : -ECONNRESET; /* link_lost() said why */
    if (answer->event_case == DSV4__V1__SERVER_MESSAGE__EVENT_ERROR)
        return error_to_fail(answer->error, &c->error.f);
    if (answer->event_case != kind)
        return conn_fail(c, EPROTO, "PROTOCOL", "the server answered with a message of kind %d instead of %d",
                         (int)answer->event_case, (int)kind);
    if (ret)
        *ret = TAKE_PTR(answer);
    return 0;
}
