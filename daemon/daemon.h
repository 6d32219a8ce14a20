/* SPDX-License-Identifier: MIT */
/*
 * The objects of the front and how they hang together:
 *
 *   manager ── model ── engine (its process's connection)       account (of a uid; daemon/account.h)
 *      │         └── waiting requests                               │ charged for
 *      ├── peer (a client's connection) ── unfinished requests ─────┤
 *      └── session ─────────────────────────────────────────────────┘
 *
 * A request outlives its peer (its engine still owes it an ending event) and a session outlives its connection.
 * Sending only queues; an object is freed only in its own event handler or when nothing refers to it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/fail.h"
#include "base/list.h"
#include "base/map.h"
#include "daemon/access.h"
#include "daemon/account.h"
#include "daemon/limits.h"
#include "daemon/quota.h"
#include "proto/dsv4.pb-c.h"
#include "proto/engine.pb-c.h"
#include "proto/frame.h"

#define SESSION_ID_SIZE 33 /* 32 hexadecimal digits of 128 random bits, NUL */
#define EVENT_ACCURACY_USEC 10000

struct manager {
    sd_event *event;
    struct limits limits;
    struct quotas quotas;
    struct accounts accounts;
    struct list models, peers, engines;
    struct map *sessions;  /* id -> session */
    struct map *resumes;   /* token -> request */
    uint64_t next_id;      /* of requests to engines */
    uint64_t started_usec; /* CLOCK_REALTIME */
    uint32_t running;      /* Generate requests that engines have */
    uint32_t waiting;      /* requests that no engine has yet */
    int listen_fd, engine_fd;
    sd_event_source *listen, *engine_listen, *accept_again, *engine_accept_again, *sigterm, *sigint, *grace;
    char *socket_path, *engine_path; /* to remove at the end; NULL: not ours */
    const char *engine_program;      /* NULL: engines come by themselves */
    uid_t engine_uid;                /* besides our own; (uid_t)-1: none */
    bool stopping, cancelled_all;
};

struct model {
    struct manager *m;
    struct list link;
    char *name, *checkpoint, *device, *numerics;
    char **aliases; /* NULL at the end, or NULL */
    struct access access;
    uint32_t context;
    uint64_t kv_bytes;
    uint32_t threads;
    Dsv4__V1__ModelState state;
    struct fail why;            /* while FAILED, or why it failed last */
    uint64_t done_bytes, total_bytes;
    Dsv4__V1__Model *info;      /* from Ready; NULL before */
    struct engine *engine;      /* registered */
    struct list waiting;        /* struct request */
    uint32_t n_waiting;
    /* its process, where we spawn it: daemon/supervise.c */
    pid_t pid;                  /* 0: none */
    sd_event_source *child, *retry, *watchdog;
    uint32_t failures;          /* fast ones in a row */
    uint64_t ready_usec;        /* CLOCK_MONOTONIC; 0: not since the last start */
    uint64_t retry_usec;        /* when the next start is due */
};

struct engine { /* a connection on the engine socket */
    struct manager *m;
    struct list link;
    struct model *model; /* NULL before Register */
    struct map *requests; /* id -> request it owes an ending event */
    int fd;
    pid_t pid;
    sd_event_source *io, *timer;
    struct frame_reader reader;
    struct frame_writer writer;
    uint64_t sent_before; /* writer.sent when timer was armed to see it change; UINT64_MAX: it is not */
    bool broken;         /* could not queue: ends at the next turn */
};

struct peer {
    struct manager *m;
    struct list link;
    struct account *account;
    struct charge charge;
    struct map *requests; /* client's id -> request */
    struct who who;       /* when it connected */
    int fd;
    uint32_t version;     /* 0: not greeted */
    sd_event_source *io, *frame_timer, *send_timer, *close_timer;
    struct frame_reader reader;
    struct frame_writer writer;
    uint64_t sent_before; /* writer.sent when send_timer was armed; UINT64_MAX: it is not */
    bool congested;       /* over the high mark: nothing is read, its streams are paused */
    bool closing;         /* what is queued goes out, then it closes */
    bool shut;            /* all went out: the rest of the input is thrown away */
    bool eof;             /* it sends no more */
    bool broken;
};

struct session {
    struct manager *m;
    char id[SESSION_ID_SIZE];
    struct account *account;
    struct charge charge;
    struct model *model;
    char *label;
    bool open;             /* the engine has it */
    bool closing;
    uint32_t tokens, busy; /* busy: unfinished requests that name it */
    uint64_t kv_bytes, created_usec, used_usec, idle_usec;
    sd_event_source *timer;
};

enum request_kind { REQUEST_OPEN, REQUEST_CLOSE, REQUEST_FORK, REQUEST_TRIM, REQUEST_GENERATE, REQUEST_TOKENIZE, REQUEST_DETOKENIZE };

struct replay { /* what Resume may ask for again */
    char token[SESSION_ID_SIZE];
    struct buf *deltas;       /* [capacity], of which [start, start + n) are packed Delta messages */
    uint32_t start, n, capacity;
    uint32_t first;           /* index of the first of them */
    size_t bytes;
    struct buf end;           /* packed ServerMessage that ended it; empty: it has not */
    uint64_t seconds;
    sd_event_source *timer;   /* runs while nobody is connected or after the end */
    struct charge charge;
};

struct request {
    struct manager *m;
    enum request_kind kind;
    uint64_t id, client_id;
    struct model *model;
    struct engine *engine;    /* that has it; NULL: waiting, or ended */
    struct list link;         /* in model->waiting */
    struct peer *peer;        /* NULL: nobody listens */
    struct account *account;  /* NULL: our own */
    struct charge charge, waiting_charge;
    char session[SESSION_ID_SIZE]; /* named or being made; "" none */
    uint8_t *payload;         /* packed FrontMessage until an engine has it */
    size_t payload_size;
    int fd;                   /* goes with it, or -1 */
    uint64_t started_usec;    /* CLOCK_MONOTONIC */
    sd_event_source *timer;   /* while waiting */
    uint32_t n_deltas;
    bool paused, cancelled, ended;
    struct replay *replay;
};

/* ---- timers (daemon/timer.c): one-shot, relative, re-armed in place; UINT64_MAX arms nothing */
int timer_arm(sd_event *e, sd_event_source **s, uint64_t usec, sd_event_time_handler_t fn, void *userdata);
void timer_off(sd_event_source **s);
uint64_t now_monotonic_usec(void);
uint64_t now_realtime_usec(void);
/* 128 bits from the kernel in hexadecimal; these ids are all that protects some objects. */
int random_id(char ret[SESSION_ID_SIZE]);

/* ---- manager.c */
int manager_new(struct manager **ret);
struct manager *manager_free(struct manager *m);
DEFINE_CLEANUP(struct manager *, manager_free)
int manager_start(struct manager *m); /* listen_fd and engine_fd are open: serve, start engines */
void manager_stop(struct manager *m);  /* begin to stop; the event loop ends when all is done */
void manager_check_stopped(struct manager *m);

/* ---- model.c */
int model_new(struct manager *m, const char *name, const char *checkpoint, struct model **ret);
struct model *model_free(struct model *model);
struct model *model_find(struct manager *m, const char *name); /* by name or alias */
/* The model or NULL; to who may not use it, it is not there. */
struct model *model_find_for(struct manager *m, const char *name, const struct who *who);
bool model_name_ok(const char *name);
/* May work for it begin? MODEL_FAILED, SHUTTING_DOWN. A model that failed some time ago is started again. */
int model_admit(struct model *model, struct fail *f);
void model_submit(struct model *model, struct request *r); /* takes r over: to the engine, or into the queue */
void model_pump(struct model *model);                     /* waiting requests to the engine while it takes them */
void model_fail_waiting(struct model *model, const struct fail *f);
void model_describe(const struct model *model, Dsv4__V1__Model *ret); /* points into model */

/* ---- supervise.c */
void model_start(struct model *model);     /* spawn, if there is no process and engines are spawned by us */
void model_registered(struct model *model, struct engine *e);
void model_ready(struct model *model);     /* its engine said so */
void model_disconnected(struct model *model); /* the engine's connection ended */
void model_kill(struct model *model, int sig);
uint32_t model_retry_after_ms(const struct model *model);

/* ---- engine.c */
int engine_accept(struct manager *m, int fd); /* takes fd */
int engine_send(struct engine *e, const Dsv4__Engine__V1__FrontMessage *fm);
int engine_send_request(struct engine *e, struct request *r);
void engine_cancel(struct engine *e, uint64_t id, bool quiet);
void engine_pace(struct engine *e, uint64_t id, bool paused);
bool engine_congested(const struct engine *e);
struct engine *engine_free(struct engine *e);

/* ---- peer.c */
void peer_accept(struct manager *m, int fd); /* takes fd */
void peer_send(struct peer *p, Dsv4__V1__ServerMessage *sm);
void peer_send_packed(struct peer *p, const uint8_t *data, size_t n);
void peer_error(struct peer *p, uint64_t id, struct fail *f);
void peer_close(struct peer *p); /* after what is queued */
struct peer *peer_free(struct peer *p);

/* ---- dispatch.c: one message of p, answered in any case */
void peer_dispatch(struct peer *p, const uint8_t *data, size_t n);

/* ---- session.c */
int session_new(struct peer *p, struct model *model, const char *label, uint64_t idle_usec, struct session **ret,
                struct fail *f);
struct session *session_free(struct session *s);
/* Its owner's, in groups that may use the model: a user's processes need not all be in the same ones. */
bool session_is_of(const struct session *s, const struct peer *p);
/* Of this owner, as if others' were not there. NO_SUCH_SESSION. */
int session_find(struct peer *p, const char *id, struct session **ret, struct fail *f);
struct session *session_get(struct manager *m, const char *id);
void session_touch(struct session *s);
void session_describe(const struct session *s, Dsv4__V1__SessionInfo *ret);
void sessions_drop_model(struct manager *m, const struct model *model);
void session_close_quietly(struct session *s);

/* ---- request.c */
int request_new(struct peer *p, uint64_t client_id, enum request_kind kind, struct model *model, struct request **ret,
                struct fail *f);
int request_new_own(struct manager *m, enum request_kind kind, struct model *model, struct request **ret);
/* Pack fm (id and owner are set here) as what the engine will get. */
int request_set_payload(struct request *r, Dsv4__Engine__V1__FrontMessage *fm, struct fail *f);
struct request *request_free(struct request *r);
void request_fail(struct request *r, struct fail *f);          /* ends it: Error to whoever listens, then free */
void request_finish(struct request *r, Dsv4__V1__ServerMessage *sm); /* the same with a good end */
void request_event(struct request *r, Dsv4__V1__ServerMessage *sm);  /* on the way */
void request_cancel(struct request *r);                        /* asked for by its client */
void request_detach(struct request *r);                        /* its client is gone */
void request_pause(struct request *r);                         /* tell the engine if that changed */

/* ---- replay.c: deltas kept for Resume */
int replay_new(struct request *r, uint32_t seconds, struct fail *f);
struct replay *replay_free(struct replay *y, struct manager *m);
int replay_add(struct request *r, const Dsv4__V1__Delta *delta);
int replay_end(struct request *r, const Dsv4__V1__ServerMessage *sm);
bool replay_full(const struct request *r);
void replay_wait(struct request *r); /* nobody is connected, or it has ended: keep it for its seconds */
int replay_resume(struct peer *p, uint64_t client_id, const Dsv4__V1__Resume *q, struct fail *f);

/* ---- serve.c: what an engine's event means for its request. -EPROTO: it may not say that. */
int serve_event(struct engine *e, Dsv4__Engine__V1__EngineMessage *em);
