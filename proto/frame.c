/* SPDX-License-Identifier: MIT */
/* See frame.h. */
#include "proto/frame.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include <protobuf-c/protobuf-c.h>

#define RECEIVE_STEP_BYTES (64u << 10) /* memory grows with what came, this much ahead of it */
#define KEEP_BYTES (64u << 10)         /* a buffer that once held a big frame is given back */

struct frame_fd {
    int fd;
    uint64_t at; /* stream offset of its frame's first byte */
};

static uint32_t load_le32(const char *p)
{
    const unsigned char *u = (const unsigned char *)p;
    return (uint32_t)u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
}

static void store_le32(char *p, uint32_t v)
{
    for (int i = 0; i < FRAME_HEADER; i++)
        p[i] = (char)(v >> (8 * i) & 0xff);
}

/* ---- reader */

static void close_fds(struct frame_reader *r)
{
    while (r->n_fds > 0)
        close(r->fds[--r->n_fds]);
    r->fds_dropped = false;
}

void frame_reader_deinit(struct frame_reader *r)
{
    if (!r)
        return;
    close_fds(r);
    buf_deinit(&r->in);
}

static void keep_fds(struct frame_reader *r, struct msghdr *mh)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (r->n_fds < FRAME_FDS_MAX) {
                r->fds[r->n_fds++] = fd;
            } else {
                close(fd);
                r->fds_dropped = true;
            }
        }
    }
    if (mh->msg_flags & MSG_CTRUNC)
        r->fds_dropped = true;
}

/* One recvmsg of at most n bytes. */
static int receive_some(struct frame_reader *r, int fd, size_t n)
{
    union {
        char space[CMSG_SPACE(sizeof(int) * FRAME_FDS_MAX)];
        struct cmsghdr align;
    } control;
    n = MIN(n, (size_t)RECEIVE_STEP_BYTES);
    int e = buf_reserve(&r->in, n);
    if (e < 0)
        return e;
    struct iovec iov = {.iov_base = r->in.data + r->in.size, .iov_len = n};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t k;
    do
        k = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (k < 0 && errno == EINTR);
    if (k < 0)
        return -errno;
    keep_fds(r, &mh);
    r->in.size += (size_t)k;
    r->in.data[r->in.size] = '\0';
    return (int)k;
}

/* How many bytes the frame still lacks, 0 if it is complete; a negative errno if its length is bad. */
static int64_t lacking(const struct frame_reader *r)
{
    if (r->in.size < FRAME_HEADER)
        return (int64_t)(FRAME_HEADER - r->in.size);
    uint32_t length = load_le32(r->in.data);
    if (length == 0)
        return -EBADMSG;
    if (length > FRAME_MAX)
        return -EMSGSIZE;
    return (int64_t)FRAME_HEADER + length - (int64_t)r->in.size;
}

int frame_receive(struct frame_reader *r, int fd)
{
    int total = 0;

    for (;;) {
        int64_t more = lacking(r);
        if (more <= 0)
            return total > 0 ? total : more < 0 ? (int)more : -EAGAIN;
        int k = receive_some(r, fd, (size_t)more);
        if (k <= 0)
            return total > 0 ? total : k; /* what it was comes again with the next call */
        total += k;
    }
}

int frame_next(struct frame_reader *r, const uint8_t **ret, size_t *ret_n, struct fail *f)
{
    int64_t more = lacking(r);

    if (more == -EBADMSG)
        return fail_set(f, EBADMSG, "FRAME_EMPTY", "a frame of length 0 was sent; the smallest is 1 byte");
    if (more < 0) {
        uint32_t length = load_le32(r->in.data);
        fail_set(f, EMSGSIZE, "FRAME_TOO_LARGE", "a frame of %u bytes was announced; the largest is %u: send long "
                 "text as a sealed memfd", length, FRAME_MAX);
        fail_limit(f, FRAME_MAX, length);
        return -EMSGSIZE;
    }
    if (more > 0)
        return 0;
    *ret = (const uint8_t *)r->in.data + FRAME_HEADER;
    *ret_n = r->in.size - FRAME_HEADER;
    return 1;
}

void frame_done(struct frame_reader *r)
{
    close_fds(r);
    if (r->in.capacity > KEEP_BYTES)
        buf_deinit(&r->in);
    else
        buf_clear(&r->in);
}

int frame_take_fd(struct frame_reader *r)
{
    if (r->n_fds == 0)
        return -ENOENT;
    int fd = r->fds[0];
    r->n_fds--;
    memmove(r->fds, r->fds + 1, r->n_fds * sizeof(int));
    return fd;
}

bool frame_partial(const struct frame_reader *r)
{
    return r->in.size > 0 && lacking(r) > 0;
}

/* ---- writer */

void frame_writer_deinit(struct frame_writer *w)
{
    if (!w)
        return;
    for (uint32_t i = 0; i < w->n_fds; i++)
        close(w->fds[i].fd);
    free(w->fds);
    buf_deinit(&w->out);
    *w = FRAME_WRITER_INIT;
}

/* Remember a duplicate of fd for the frame that will start at the end of what is queued. */
static int add_fd(struct frame_writer *w, int fd)
{
    if (w->n_fds == w->fd_capacity) {
        uint32_t capacity = w->fd_capacity ? w->fd_capacity * 2 : 4;
        struct frame_fd *fds = reallocarray(w->fds, capacity, sizeof(*fds));
        if (!fds)
            return -ENOMEM;
        w->fds = fds;
        w->fd_capacity = capacity;
    }
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    w->fds[w->n_fds++] = (struct frame_fd){.fd = copy, .at = w->sent + frame_pending(w)};
    return 0;
}

/* Room for a frame of n bytes and its header; *ret is where its message goes. */
static int begin_frame(struct frame_writer *w, size_t n, int fd, uint8_t **ret)
{
    if (n == 0 || n > FRAME_MAX)
        return n == 0 ? -EINVAL : -EMSGSIZE;
    if (w->head > w->out.size / 2) {
        buf_consume(&w->out, w->head);
        w->begun -= w->head;
        w->head = 0;
    }
    int r = buf_reserve(&w->out, FRAME_HEADER + n);
    if (r < 0)
        return r;
    if (fd >= 0 && (r = add_fd(w, fd)) < 0)
        return r;
    store_le32(w->out.data + w->out.size, (uint32_t)n);
    *ret = (uint8_t *)w->out.data + w->out.size + FRAME_HEADER;
    w->out.size += FRAME_HEADER + n;
    w->out.data[w->out.size] = '\0';
    return 0;
}

int frame_queue(struct frame_writer *w, const struct ProtobufCMessage *m, int fd)
{
    uint8_t *to;

    int r = begin_frame(w, protobuf_c_message_get_packed_size(m), fd, &to);
    if (r < 0)
        return r;
    protobuf_c_message_pack(m, to);
    return 0;
}

int frame_queue_packed(struct frame_writer *w, const uint8_t *data, size_t n, int fd)
{
    uint8_t *to;

    int r = begin_frame(w, n, fd, &to);
    if (r < 0)
        return r;
    memcpy(to, data, n);
    return 0;
}

void frame_drop_unsent(struct frame_writer *w)
{
    size_t keep = MAX(w->begun, w->head);
    uint64_t end = w->sent + (keep - w->head);

    while (w->n_fds > 0 && w->fds[w->n_fds - 1].at >= end)
        close(w->fds[--w->n_fds].fd);
    w->out.size = keep;
    if (w->out.data)
        w->out.data[keep] = '\0';
}

/* One sendmsg: up to the next frame that has an fd, with the fd of the frame that starts here, if any. */
static ssize_t send_some(struct frame_writer *w, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = w->out.data + w->head, .iov_len = frame_pending(w)};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
    bool with_fd = w->n_fds > 0 && w->fds[0].at == w->sent;

    if (with_fd) {
        memset(&control, 0, sizeof(control));
        mh.msg_control = &control;
        mh.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &w->fds[0].fd, sizeof(int));
    }
    if (w->n_fds > with_fd)
        iov.iov_len = MIN(iov.iov_len, (size_t)(w->fds[with_fd].at - w->sent));
    ssize_t k;
    do
        k = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (k < 0 && errno == EINTR);
    if (k < 0)
        return -errno;
    if (with_fd && k > 0) {
        close(w->fds[0].fd);
        w->n_fds--;
        memmove(w->fds, w->fds + 1, w->n_fds * sizeof(*w->fds));
    }
    return k;
}

int frame_send(struct frame_writer *w, int fd)
{
    while (frame_pending(w) > 0) {
        ssize_t k = send_some(w, fd);
        if (k == -EAGAIN)
            return 0;
        if (k < 0)
            return (int)k;
        w->head += (size_t)k;
        w->sent += (uint64_t)k;
        while (w->begun < w->head)
            w->begun += FRAME_HEADER + load_le32(w->out.data + w->begun);
    }
    w->head = w->begun = 0;
    if (w->out.capacity > KEEP_BYTES)
        buf_deinit(&w->out);
    else
        buf_clear(&w->out);
    return 1;
}

size_t frame_pending(const struct frame_writer *w)
{
    return w->out.size - w->head;
}
