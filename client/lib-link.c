/* SPDX-License-Identifier: MIT */
/*
 * The socket below a connection: dialling, the greeting, what happens when it breaks. A connection with requests that
 * can be resumed is dialled again, first at once and then ever less often, until the last of them has run out of time.
 */
#include "client/lib.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "proto/error.h"

int link_dial(const char *path, int flags, int *ret_fd)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(a.sun_path))
        return -ENAMETOOLONG;
    memcpy(a.sun_path, path, strlen(path) + 1);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0)
        return -errno;
    while (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        if (errno != EINTR)
            return -errno;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

void link_close(struct dsv4 *c)
{
    closep(&c->fd);
    c->fd = -1;
    c->state = CLOSED;
    frame_reader_deinit(&c->in);
    c->in = FRAME_READER_INIT;
    frame_writer_deinit(&c->out);
    c->out = FRAME_WRITER_INIT;
}

int link_open(struct dsv4 *c, int given)
{
    Dsv4__V1__ClientMessage m = DSV4__V1__CLIENT_MESSAGE__INIT;
    Dsv4__V1__Hello hello = DSV4__V1__HELLO__INIT;
    _cleanup_close_ int fd = given;
    char own_name[] = "libdsv4 " PACKAGE_VERSION;

    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return conn_fail(c, errno, "IO_ERROR", "the socket cannot be made non-blocking: %s", strerror(errno));
    hello.version_min = hello.version_max = 1;
    hello.client = c->client_name ? c->client_name : own_name;
    m.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_HELLO;
    m.hello = &hello;
    c->fd = TAKE_FD(fd);
    c->state = GREETING;
    c->greeting_until = conn_now() + GREETING_TIMEOUT_USEC;
    c->max_frame = FRAME_MAX;
    c->reason = FAIL_INIT;
    int r = conn_send(c, &m, -1);
    c->hello_id = m.request_id;
    return r;
}

int link_greeted(struct dsv4 *c, const Dsv4__V1__ServerMessage *m)
{
    struct dsv4_request *r;
    size_t cursor = 0;

    if (m->event_case == DSV4__V1__SERVER_MESSAGE__EVENT_ERROR)
        return error_to_fail(m->error, &c->reason);
    if (m->event_case != DSV4__V1__SERVER_MESSAGE__EVENT_HELLO)
        return fail_set(&c->reason, EPROTO, "PROTOCOL", "the server did not answer the greeting");
    if (m->hello->version != 1)
        return fail_set(&c->reason, EPROTONOSUPPORT, "VERSION", "the server chose protocol version %u, this client knows 1",
                        m->hello->version);
    if (replace_string(&c->server, m->hello->server) < 0)
        return fail_oom(&c->reason);
    c->version = m->hello->version;
    c->max_frame = MIN(m->hello->max_frame_bytes, FRAME_MAX);
    c->uid = m->hello->has_uid ? m->hello->uid : (uint32_t)-1;
    c->state = READY;
    c->retry_delay = 0;
    while ((r = map_next(c->requests, &cursor, NULL, NULL))) {
        int e = request_resume(r);
        if (e < 0)
            return e;
    }
    return 0;
}

/* Requests that cannot be resumed, or no longer, end with an error. True if any is left. */
static bool end_hopeless(struct dsv4 *c, const struct fail *why)
{
    struct dsv4_request *r;
    uint64_t now = conn_now();
    size_t cursor = 0;

    while ((r = map_next(c->requests, &cursor, NULL, NULL))) {
        if (c->path && r->resume_token && r->deadline == NEVER)
            r->deadline = now + (uint64_t)r->resume_seconds * 1000000;
        if (c->path && r->resume_token && r->deadline > now)
            continue;
        /* its callback may change the map: look from the beginning again */
        request_fail(r, why);
        cursor = 0;
    }
    return map_size(c->requests) > 0;
}

static void plan_retry(struct dsv4 *c, uint64_t delay)
{
    struct dsv4_request *r;
    size_t cursor = 0;

    c->retry_at = conn_now() + delay;
    while ((r = map_next(c->requests, &cursor, NULL, NULL)))
        c->retry_at = MIN(c->retry_at, r->deadline);
}

int link_lost(struct dsv4 *c, int err)
{
    struct fail why = c->reason;
    /* one that was refused right after it was made is not worth an immediate second try */
    bool first = c->state == READY && c->retry_delay == 0;

    if (!why.err)
        fail_set(&why, err, "DISCONNECTED", err == ECONNRESET ? "the service closed the connection"
                                            : err == ETIMEDOUT ? "the service did not answer the greeting in time"
                                                               : "the connection to the service broke: %s",
                 strerror(err));
    link_close(c);
    c->error.f = why;
    if (c->call) {
        c->call->done = true;
        c->call = NULL;
    }
    c->state = WAITING; /* while callbacks run: nothing can be sent */
    bool left = end_hopeless(c, &why);
    c->error.f = why;
    if (!left) {
        c->state = CLOSED;
        return -why.err;
    }
    c->retry_delay = first ? RETRY_FIRST_USEC : MIN(MAX(c->retry_delay, RETRY_FIRST_USEC / 2) * 2, RETRY_MAX_USEC);
    plan_retry(c, first ? 0 : c->retry_delay);
    return 1;
}

int link_retry(struct dsv4 *c)
{
    struct fail gone = FAIL_INIT;
    int fd;

    fail_set(&gone, ECONNRESET, "DISCONNECTED", "the connection broke and could not be made again in time");
    if (!end_hopeless(c, &gone)) {
        c->error.f = gone;
        c->state = CLOSED;
        return -ECONNRESET;
    }
    int r = link_dial(c->path, SOCK_NONBLOCK, &fd);
    if (r >= 0)
        r = link_open(c, fd);
    if (r < 0) {
        link_close(c);
        c->state = WAITING;
        c->retry_delay = MIN(MAX(c->retry_delay, RETRY_FIRST_USEC / 2) * 2, RETRY_MAX_USEC);
        plan_retry(c, c->retry_delay);
    }
    return 1;
}

/* Wait for the answer to the greeting. */
static int greet(struct dsv4 *c, int fd)
{
    c->retry_delay = 0;
    int r = link_open(c, fd);
    if (r >= 0) {
        c->greeting_until = c->timeout_usec > NEVER - conn_now() ? NEVER : conn_now() + c->timeout_usec;
        r = conn_wait_ready(c);
    }
    if (r < 0)
        link_close(c);
    return r;
}

static int unavailable(struct dsv4 *c, const char *path, int err)
{
    switch (err) {
    case EACCES:
    case EPERM:
        return conn_fail(c, EACCES, "DENIED", "%s: this user may not connect", path);
    case ENAMETOOLONG:
        return conn_fail(c, err, "RANGE", "the path of the socket is too long");
    case ENOENT:
        return conn_fail(c, err, "UNAVAILABLE", "%s: there is no such socket", path);
    case ECONNREFUSED:
        return conn_fail(c, err, "UNAVAILABLE", "%s: nobody listens there", path);
    default:
        return conn_fail(c, err, "UNAVAILABLE", "%s: cannot connect: %s", path, strerror(err));
    }
}

static int may_connect(struct dsv4 *c)
{
    if (c->busy)
        return conn_fail(c, EBUSY, "NOT_CONNECTED", "a callback may not connect");
    if (c->state != CLOSED)
        return conn_fail(c, EISCONN, "ALREADY_GREETED", "the client is connected");
    return 0;
}

int dsv4_connect(struct dsv4 *c, const char *path)
{
    _cleanup_free_ char *copy = NULL;
    int fd;

    int r = may_connect(c);
    if (r < 0)
        return r;
    if (!path)
        path = secure_getenv("DSV4_SOCKET");
    if (!path || !path[0])
        path = DSV4_SOCKET_DEFAULT;
    copy = strdup(path);
    if (!copy)
        return conn_oom(c);
    r = link_dial(path, 0, &fd);
    if (r < 0)
        return unavailable(c, path, -r);
    free(c->path);
    c->path = TAKE_PTR(copy);
    return greet(c, fd);
}

int dsv4_connect_fd(struct dsv4 *c, int fd)
{
    int r = may_connect(c);
    if (r < 0) {
        close(fd);
        return r;
    }
    free(c->path);
    c->path = NULL;
    return greet(c, fd);
}
