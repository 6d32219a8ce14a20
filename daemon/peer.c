/* SPDX-License-Identifier: MIT */
/*
 * A client's connection: who it is, frames in and out, and every way it can end. Whoever does not read is paused at the
 * high mark and ended after a time; whoever sends half a frame is ended too; nobody else notices.
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "proto/error.h"

#define FRAMES_PER_TURN 16             /* then others have their turn */
#define FLUSH_TIMEOUT_USEC 5000000ull  /* for the last words of a connection that is being closed */
#define LINGER_USEC 1000000ull         /* input thrown away so that the last words are not lost to a reset */
#define HARD_LIMIT_FACTOR 16           /* times the high mark: what engines had under way when a stream was paused */

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata);

/* ---- the end */

struct peer *peer_free(struct peer *p)
{
    struct request *r;
    size_t cursor = 0;

    if (!p)
        return NULL;
    list_remove(&p->link);
    while (p->requests && (r = map_next(p->requests, &cursor, NULL, NULL)))
        request_detach(r);
    map_free(p->requests);
    sd_event_source_disable_unref(p->io);
    sd_event_source_disable_unref(p->frame_timer);
    sd_event_source_disable_unref(p->send_timer);
    sd_event_source_disable_unref(p->close_timer);
    closep(&p->fd);
    frame_reader_deinit(&p->reader);
    frame_writer_deinit(&p->writer);
    charge_release(&p->charge);
    who_deinit(&p->who);
    free(p);
    return NULL;
}

static int close_now(sd_event_source *source, uint64_t usec, void *userdata)
{
    (void)source;
    (void)usec;
    peer_free(userdata);
    return 0;
}

static void update_events(struct peer *p)
{
    uint32_t events = p->eof || (p->congested && !p->closing) ? 0 : EPOLLIN;

    if (frame_pending(&p->writer) > 0 || p->broken || (p->closing && !p->shut))
        events |= EPOLLOUT;
    if (p->io)
        sd_event_source_set_io_events(p->io, (int)events);
}

void peer_close(struct peer *p)
{
    struct request *r;
    size_t cursor = 0;

    if (p->closing)
        return;
    p->closing = true;
    while ((r = map_next(p->requests, &cursor, NULL, NULL)))
        request_detach(r);
    timer_off(&p->frame_timer);
    timer_off(&p->send_timer);
    if (timer_arm(p->m->event, &p->close_timer, FLUSH_TIMEOUT_USEC, close_now, p) < 0)
        p->broken = true;
    update_events(p);
}

/* ---- output */

static void pace_streams(struct peer *p, bool congested)
{
    struct request *r;
    size_t cursor = 0;

    if (p->congested == congested)
        return;
    p->congested = congested;
    while ((r = map_next(p->requests, &cursor, NULL, NULL)))
        request_pause(r);
}

static int too_slow(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct peer *p = userdata;
    struct fail f = FAIL_INIT;
    struct request *r;
    size_t cursor = 0;
    const void *key;

    (void)source;
    (void)usec;
    log_info("uid %u (process %d) does not read: its connection ends", (unsigned)p->account->uid, (int)p->who.pid);
    frame_drop_unsent(&p->writer); /* it reads what the kernel has, then why there is no more */
    fail_set(&f, EPIPE, "SLOW_READER", "nothing was read for %llu ms; the request was ended",
             (unsigned long long)(p->m->limits.slow_reader_timeout_usec / 1000));
    if (map_size(p->requests) == 0)
        peer_error(p, 0, &f);
    while ((r = map_next(p->requests, &cursor, &key, NULL)))
        peer_error(p, r->client_id, &f);
    peer_close(p);
    /* it gets as long again to read that */
    timer_arm(p->m->event, &p->close_timer, p->m->limits.slow_reader_timeout_usec, close_now, p);
    return 0;
}

/* Something is queued: it must move before the timer ends. A full socket is not even said to be writable, so this starts
 * with queueing, not with the first attempt to send. */
static void expect_progress(struct peer *p)
{
    if (p->sent_before == p->writer.sent || p->closing)
        return;
    p->sent_before = p->writer.sent;
    if (timer_arm(p->m->event, &p->send_timer, p->m->limits.slow_reader_timeout_usec, too_slow, p) < 0)
        p->broken = true;
}

static void after_queueing(struct peer *p, int r)
{
    size_t pending = frame_pending(&p->writer), high = p->m->limits.output_high_bytes;

    if (r < 0 || pending > high * HARD_LIMIT_FACTOR + FRAME_MAX)
        p->broken = true;
    if (pending > high)
        pace_streams(p, true);
    if (p->sent_before == UINT64_MAX)
        expect_progress(p);
    update_events(p);
}

void peer_send(struct peer *p, Dsv4__V1__ServerMessage *sm)
{
    if (!p->broken)
        after_queueing(p, frame_queue(&p->writer, &sm->base, -1));
}

void peer_error(struct peer *p, uint64_t id, struct fail *f)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Error e;

    log_debug("uid %u (process %d): %s", (unsigned)p->account->uid, (int)p->who.pid, f->code);
    error_from_fail(&e, f);
    sm.request_id = id;
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_ERROR;
    sm.error = &e;
    peer_send(p, &sm);
}

/* The last words are out: say so, and wait a moment for the other side to close. */
static int finish_closing(struct peer *p)
{
    if (p->shut)
        return 0;
    p->shut = true;
    if (shutdown(p->fd, SHUT_WR) < 0 || timer_arm(p->m->event, &p->close_timer, LINGER_USEC, close_now, p) < 0)
        return -ECONNRESET;
    return 0;
}

/* Negative: the connection is of no use any more. */
static int flush(struct peer *p)
{
    if (p->broken)
        return -ENOMEM;
    int r = frame_send(&p->writer, p->fd);
    if (r < 0)
        return r;
    if (r == 0)
        expect_progress(p);
    else
        timer_off(&p->send_timer);
    if (r == 1)
        p->sent_before = UINT64_MAX;
    if (frame_pending(&p->writer) <= p->m->limits.output_high_bytes / 4)
        pace_streams(p, false);
    if (r == 1 && p->closing && (p->eof || finish_closing(p) < 0))
        return -ECONNRESET;
    update_events(p);
    return 0;
}

/* ---- input */

static int half_a_frame(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct peer *p = userdata;
    struct fail f = FAIL_INIT;

    (void)source;
    (void)usec;
    if (!frame_partial(&p->reader) || p->closing)
        return 0;
    if (p->congested) { /* we do not read either */
        timer_arm(p->m->event, &p->frame_timer, p->m->limits.frame_timeout_usec, half_a_frame, p);
        return 0;
    }
    fail_set(&f, ETIMEDOUT, "TIMEOUT", "the rest of a frame did not come within %llu ms",
             (unsigned long long)(p->m->limits.frame_timeout_usec / 1000));
    peer_error(p, 0, &f);
    peer_close(p);
    return 0;
}

static void throw_input_away(struct peer *p)
{
    char waste[4096];
    ssize_t n;

    do
        n = recv(p->fd, waste, sizeof(waste), MSG_DONTWAIT);
    while (n == (ssize_t)sizeof(waste));
    if (n == 0)
        p->eof = true;
}

/* One frame's worth. 1: more may be there, 0: not now, negative: the connection is over (the client closed it). This is
 * the one place where a protocol error of the framing, the end of the stream and a message are told apart. */
static int read_one(struct peer *p)
{
    struct fail f = FAIL_INIT;
    const uint8_t *data;
    size_t n;

    bool was_partial = frame_partial(&p->reader);
    int r = frame_receive(&p->reader, p->fd);
    if (r == -EAGAIN)
        return 0;
    if (r == 0) { /* end of file: what runs is cancelled, what is queued still goes out */
        p->eof = true;
        peer_close(p);
        return 0;
    }
    if (r < 0 && r != -EBADMSG && r != -EMSGSIZE)
        return r;
    r = frame_next(&p->reader, &data, &n, &f);
    if (r < 0) {
        peer_error(p, 0, &f);
        peer_close(p);
        return 0;
    }
    if (r == 0) {
        if (!was_partial)
            timer_arm(p->m->event, &p->frame_timer, p->m->limits.frame_timeout_usec, half_a_frame, p);
        return 1;
    }
    timer_off(&p->frame_timer);
    peer_dispatch(p, data, n);
    frame_done(&p->reader);
    return 1;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
    struct peer *p = userdata;
    int r = 1;

    (void)source;
    (void)fd;
    if (p->closing && (revents & (EPOLLHUP | EPOLLERR)))
        r = -ECONNRESET; /* it has closed as well */
    else if (p->closing && (revents & EPOLLIN))
        throw_input_away(p);
    else if (revents & EPOLLIN)
        for (int i = 0; i < FRAMES_PER_TURN && r > 0 && !p->closing && !p->congested; i++)
            r = read_one(p);
    else if (revents & (EPOLLHUP | EPOLLERR))
        r = -ECONNRESET;
    if (r >= 0)
        r = flush(p);
    if (r < 0)
        peer_free(p);
    return 0;
}

/* ---- the beginning */

static void refuse(int fd, struct fail *f)
{
    _cleanup_(frame_writer_deinit) struct frame_writer w = FRAME_WRITER_INIT;
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Error e;

    error_from_fail(&e, f);
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_ERROR;
    sm.error = &e;
    if (frame_queue(&w, &sm.base, -1) == 0)
        frame_send(&w, fd); /* a fresh socket has room for it */
    shutdown(fd, SHUT_WR);
}

static int set_up(struct peer *p)
{
    int r = map_new(&p->requests);
    return r < 0 ? r : sd_event_add_io(p->m->event, &p->io, p->fd, EPOLLIN, on_io, p);
}

void peer_accept(struct manager *m, int fd_in)
{
    _cleanup_close_ int fd = fd_in;
    struct fail f = FAIL_INIT;
    struct charge charge = CHARGE_NONE;
    _cleanup_(who_deinit) struct who who = {0};

    if (who_of_socket(fd, &who) < 0)
        return;
    if (charge_take_who(&charge, &m->accounts, &who, CHARGE_CONNECTIONS, 1, &f) < 0) {
        refuse(fd, &f);
        return;
    }
    struct peer *p = calloc(1, sizeof(*p));
    if (!p) {
        charge_release(&charge);
        return;
    }
    p->m = m;
    p->account = charge.account;
    p->charge = charge;
    p->fd = TAKE_FD(fd);
    p->who = who;
    who = (struct who){0};
    p->sent_before = UINT64_MAX;
    list_append(&m->peers, &p->link);
    if (set_up(p) < 0)
        peer_free(p);
}
