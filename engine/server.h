/* SPDX-License-Identifier: MIT */
/*
 * The engine's side of its connection to the front: registers, turns the front's messages into orders and jobs, sends what
 * the outbox holds. Main thread; never logs. How it ends is the exit code of the event loop (sd_event_exit) and
 * server_why().
 */
#pragma once

#include <systemd/sd-event.h>

#include "engine/request.h"

#define SERVER_EXIT_OK 0      /* drained, or the front is gone */
#define SERVER_EXIT_BROKEN 1  /* see server_why */

struct server;

struct server_params {
    const char *name;  /* of the model */
    const char *front; /* path of the front's socket for engines */
    int fd;            /* >= 0: connected already (tests); taken */
    /* The front accepted us: time to load. */
    void (*welcome)(void *userdata);
    void *userdata;
};

/* Connects and registers. */
int server_new(const struct server_params *p, sd_event *event, struct server **ret, struct fail *f);
struct server *server_free(struct server *s);
DEFINE_CLEANUP(struct server *, server_free)

void server_send_loading(struct server *s, uint64_t done_bytes, uint64_t total_bytes);
/* The model is there: starts the step and text threads and says Ready. model and t must outlive s. */
int server_serve(struct server *s, struct model *model, const struct tokenizer *t, struct fail *f);
/* Sends Failed, waiting a little for the front to take it. */
void server_send_failed(struct server *s, struct fail *f);

const char *server_why(const struct server *s); /* one line for the log: why the loop was left */
