/* SPDX-License-Identifier: MIT */
/* A byte stream in pieces: the frames that come out are what a plain reading of the stream says. First byte: the pieces. */
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include "proto/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct plain {
    const uint8_t *p, *end;
};

/* The next frame as the specification says: 1 and the message, 0 if it is cut off, -1 if its length is bad. */
static int plain_next(struct plain *s, const uint8_t **ret, size_t *ret_n)
{
    if (s->end - s->p < FRAME_HEADER)
        return 0;
    size_t n = (size_t)s->p[0] | (size_t)s->p[1] << 8 | (size_t)s->p[2] << 16 | (size_t)s->p[3] << 24;
    if (n == 0 || n > FRAME_MAX)
        return -1;
    if ((size_t)(s->end - s->p) - FRAME_HEADER < n)
        return 0;
    *ret = s->p + FRAME_HEADER;
    *ret_n = n;
    s->p += FRAME_HEADER + n;
    return 1;
}

/* All frames that can be had now. False when the stream has become unreadable. */
static bool drain(struct frame_reader *r, int fd, struct plain *expected)
{
    for (;;) {
        const uint8_t *m, *want;
        size_t n, want_n;
        int k = frame_receive(r, fd);
        if (k < 0)
            return true;
        k = frame_next(r, &m, &n, NULL);
        if (k == 0)
            continue;
        if (plain_next(expected, &want, &want_n) != (k < 0 ? -1 : 1))
            __builtin_trap();
        if (k < 0)
            return false;
        if (n != want_n || memcmp(m, want, n) != 0)
            __builtin_trap();
        frame_done(r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame_reader r = FRAME_READER_INIT;
    int fds[2];

    if (size < 2 || size > 100000 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return 0;
    size_t piece = data[0] % 64 + 1;
    struct plain expected = {.p = data + 1, .end = data + size};
    bool readable = true;
    for (size_t at = 1; at < size && readable; at += piece) {
        size_t n = MIN(piece, size - at);
        if (send(fds[0], data + at, n, MSG_NOSIGNAL) != (ssize_t)n)
            break;
        readable = drain(&r, fds[1], &expected);
    }
    const uint8_t *rest;
    size_t n;
    if (readable && plain_next(&expected, &rest, &n) != 0)
        __builtin_trap(); /* one was missed */
    frame_reader_deinit(&r);
    close(fds[0]);
    close(fds[1]);
    return 0;
}
