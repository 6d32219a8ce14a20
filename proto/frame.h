/* SPDX-License-Identifier: MIT */
/*
 * Frames on a stream socket: little-endian uint32 length (1 .. FRAME_MAX), then one protobuf message; file descriptors
 * come with the first byte of their frame. Buffers only: the caller owns the socket and the event loop.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/fail.h"

#define FRAME_HEADER 4
#define FRAME_MAX (4u << 20) /* bytes of one message */
#define FRAME_FDS_MAX 4      /* received with one recvmsg; more are closed by the kernel or by us */

struct frame_reader {
    struct buf in;           /* header and body of one frame, as far as they came */
    int fds[FRAME_FDS_MAX];  /* belong to the frame being received */
    uint32_t n_fds;
    bool fds_dropped;        /* more than FRAME_FDS_MAX came; they were closed */
};
#define FRAME_READER_INIT ((struct frame_reader){0})
void frame_reader_deinit(struct frame_reader *r); /* closes fds not taken */

/* Read from fd until one frame is complete or nothing more is there; never a byte of the next frame, which is how fds
 * stay with theirs. Memory follows the bytes that came, not the length that was announced. Bytes read (> 0), 0 at end
 * of file, -EAGAIN (also while a complete frame waits for frame_done), or another negative errno (-EBADMSG, -EMSGSIZE:
 * the length is bad, frame_next says how). */
int frame_receive(struct frame_reader *r, int fd);
/* 1 and the next message (valid until frame_done), 0 if none is complete yet; a negative errno with FRAME_EMPTY or
 * FRAME_TOO_LARGE as soon as the length says so. */
int frame_next(struct frame_reader *r, const uint8_t **ret, size_t *ret_n, struct fail *f);
void frame_done(struct frame_reader *r); /* drop that message and close its fds still there */
int frame_take_fd(struct frame_reader *r); /* one fd of the current message, the caller's now; -ENOENT */
/* True when part of a frame waits for its rest (for a timeout). */
bool frame_partial(const struct frame_reader *r);

struct frame_writer {
    struct buf out;          /* frames not yet sent, after head bytes that are */
    size_t head;
    size_t begun;            /* of out: end of the last frame of which a byte is sent */
    struct frame_fd *fds;    /* fds and where in the stream they belong */
    uint32_t n_fds, fd_capacity;
    uint64_t sent;           /* bytes, ever */
};
#define FRAME_WRITER_INIT ((struct frame_writer){0})
void frame_writer_deinit(struct frame_writer *w);
/* Queue a frame; fd (or -1) is duplicated and goes with it. -EMSGSIZE: larger than FRAME_MAX. */
struct ProtobufCMessage;
int frame_queue(struct frame_writer *w, const struct ProtobufCMessage *m, int fd);
/* The same with a message packed before. */
int frame_queue_packed(struct frame_writer *w, const uint8_t *data, size_t n, int fd);
/* Forget the queued frames of which no byte was sent; the stream stays whole. */
void frame_drop_unsent(struct frame_writer *w);
/* Send what the socket takes: 1 if all was sent, 0 if the socket is full, negative errno (-EPIPE, ...). */
int frame_send(struct frame_writer *w, int fd);
size_t frame_pending(const struct frame_writer *w); /* bytes */
