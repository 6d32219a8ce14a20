/* SPDX-License-Identifier: MIT */
/*
 * The inside of libdsv4. Replies need no types of their own: struct dsv4_models is a Dsv4__V1__ModelList, struct
 * dsv4_session a Dsv4__V1__SessionInfo and so on, taken out of the message that brought them. The builders keep their
 * messages in the form that protobuf-c would have unpacked, so that its free_unpacked ends them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/macros.h"
#include "base/map.h"
#include "client/dsv4.h"
#include "proto/dsv4.pb-c.h"
#include "proto/frame.h"

#define MEMFD_FROM_BYTES (1u << 20)         /* longer input travels as a memfd */
#define ANSWER_TIMEOUT_USEC (60ull * 1000000)
#define GREETING_TIMEOUT_USEC (5ull * 1000000) /* while a connection is being resumed */
#define RETRY_FIRST_USEC 100000ull          /* between attempts to connect again; doubles */
#define RETRY_MAX_USEC 1000000ull
#define TOOL_CALLS_MAX 4096                 /* of one answer: what a server may make us hold */
#define NEVER UINT64_MAX

struct dsv4_error {
    struct fail f;
};

enum state {
    CLOSED,
    GREETING, /* connected, Hello sent */
    READY,
    WAITING   /* lost, to be connected again at retry_at because requests can be resumed */
};

/* A synchronous call that waits for its one answer; on its caller's stack. */
struct call {
    uint64_t id;
    Dsv4__V1__ServerMessage *answer; /* NULL when done: the connection was lost */
    bool done;
};

struct dsv4 {
    unsigned n_ref;
    enum state state;
    int fd;
    char *path;                      /* NULL: given as an fd, cannot be connected again */
    char *client_name;
    bool busy;                       /* inside dsv4_process() */
    struct frame_reader in;
    struct frame_writer out;
    uint64_t last_id, hello_id;
    struct map *requests;            /* id -> struct dsv4_request, unfinished ones; not counted */
    struct call *call;
    struct dsv4_error error;
    struct fail reason;              /* what the server said about the connection, for when it closes */
    uint64_t timeout_usec;
    uint64_t retry_at, retry_delay, greeting_until; /* CLOCK_MONOTONIC */
    char *server;
    uint32_t version, max_frame, uid;
};

struct dsv4_event {
    struct dsv4_event *next;
    enum dsv4_event_type type;
    Dsv4__V1__ServerMessage *m;      /* NULL for errors made here */
    struct dsv4_error error;
};

struct tool_call {
    struct buf id, name, arguments;
};

struct dsv4_request {
    unsigned n_ref;
    struct dsv4 *c;
    uint64_t id;
    dsv4_event_handler handler;
    void *userdata;
    int handler_result;              /* negative: what the handler wanted to stop with */
    bool done, cancelled;            /* by the server; by us */
    struct dsv4_event *first, **last, *current;
    struct buf content, reasoning;
    struct tool_call *calls;
    size_t n_calls;
    char *resume_token;
    uint32_t resume_seconds, next_index, n_resumed;
    uint64_t deadline;               /* of being resumed; NEVER while connected */
    struct dsv4_error failed;        /* of the error event, if that ended it */
};

struct dsv4_chat {
    unsigned n_ref;
    Dsv4__V1__Chat *m;
};

struct dsv4_generate {
    unsigned n_ref;
    Dsv4__V1__Generate *m;           /* never with a chat in it: that is */
    struct dsv4_chat *chat;
};

/* lib-conn.c */
uint64_t conn_now(void);
int conn_fail(struct dsv4 *c, int err, const char *code, const char *fmt, ...) PRINTF(4, 5);
int conn_oom(struct dsv4 *c);
/* Queue a message, under a new id unless m->request_id has one, and try to send it; fd or -1 goes with it. */
int conn_send(struct dsv4 *c, Dsv4__V1__ClientMessage *m, int fd);
/* Wait until messages can be sent. Not in a callback. */
int conn_wait_ready(struct dsv4 *c);
/* Send and wait for the answer of that kind; the answer is the caller's. */
int conn_call(struct dsv4 *c, Dsv4__V1__ClientMessage *m, Dsv4__V1__ServerMessage__EventCase kind,
              Dsv4__V1__ServerMessage **ret);

static inline void answer_freep(Dsv4__V1__ServerMessage **m)
{
    if (*m)
        dsv4__v1__server_message__free_unpacked(*m, NULL);
}
#define _cleanup_answer_ _cleanup_(answer_freep)

/* lib-link.c: the socket, greetings, loss and resumption */
int link_open(struct dsv4 *c, int fd); /* takes fd; sends Hello */
int link_dial(const char *path, int flags, int *ret_fd); /* SOCK_NONBLOCK: -EAGAIN rather than wait */
int link_lost(struct dsv4 *c, int err);  /* 1 if it will be resumed, else -err */
int link_greeted(struct dsv4 *c, const Dsv4__V1__ServerMessage *m); /* the answer to Hello */
int link_retry(struct dsv4 *c);          /* in WAITING, when retry_at has come */
void link_close(struct dsv4 *c);

/* lib-request.c */
void request_handle(struct dsv4_request *r, Dsv4__V1__ServerMessage *m); /* takes m */
void request_fail(struct dsv4_request *r, const struct fail *f);
int request_resume(struct dsv4_request *r);

/* lib-event.c */
struct dsv4_event *event_free(struct dsv4_event *e);
DEFINE_CLEANUP(struct dsv4_event *, event_free)

/* lib-chat.c: a sealed memfd with the serialised chat */
int memfd_of_message(const ProtobufCMessage *m, size_t size, int *ret_fd);
int memfd_of_text(const char *text, size_t size, int *ret_fd);

/* Make *where a copy of s (NULL: nothing). -ENOMEM leaves it as it was. */
int replace_string(char **where, const char *s);
/* Append to an array of pointers as protobuf-c keeps them. */
int append_pointer(void *array_ptr, size_t *n, void *item);
