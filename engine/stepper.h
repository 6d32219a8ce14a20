/* SPDX-License-Identifier: MIT */
/*
 * The step thread: owns the model's forward pass, the KV pool, the sessions, the scheduler and every request. It takes
 * orders between two steps, so whatever they ask for is done within one step, and never in the middle of one.
 *
 * Orders come from the main thread and, with prompts, from the text thread. What they point to is the step thread's from
 * then on. Answers go into the outbox.
 */
#pragma once

#include "engine/request.h"

#define RUNNING_MAX 32         /* requests that compute at the same time */
#define STEP_TARGET_USEC 50000 /* what a prompt may add to the time between two tokens of others */

struct stepper;

enum step_order_kind {
    ORDER_BEGIN,  /* request */
    ORDER_PROMPT, /* id, prompt or failed */
    ORDER_CANCEL, /* id, flag: quiet */
    ORDER_PACE,   /* id, flag: paused */
    ORDER_SESSION_NEW,
    ORDER_SESSION_CLOSE,
    ORDER_SESSION_FORK,
    ORDER_SESSION_TRIM,
    ORDER_DRAIN,
};

struct step_order {
    struct step_order *next;
    enum step_order_kind kind;
    uint64_t id, owner;
    struct request *request;
    struct request_prompt prompt;
    struct fail failed;
    char *session, *new_session, *label;
    uint32_t tokens;
    bool flag;
};

enum stepper_state {
    STEPPER_WORKING,
    STEPPER_DRAINED, /* was told to drain, and nothing is left */
    STEPPER_BROKEN,  /* the device failed or memory for an order was lacking; all requests were told */
};

/* wake_fd: rung when the state changes; stays the caller's. name: the model's, in session infos; must outlive it. */
int stepper_new(const struct request_env *e, const char *name, int wake_fd, struct stepper **ret, struct fail *f);
struct stepper *stepper_free(struct stepper *s); /* ends the thread after its current step */
DEFINE_CLEANUP(struct stepper *, stepper_free)

struct step_order *step_order_new(enum step_order_kind kind, uint64_t id, uint64_t owner); /* NULL: no memory */
struct step_order *step_order_free(struct step_order *o);
DEFINE_CLEANUP(struct step_order *, step_order_free)

/* Any thread. o is taken; NULL (no memory for an order) breaks the stepper, since somebody would wait for ever. */
void stepper_put(struct stepper *s, struct step_order *o);
/* The outbox has room again. */
void stepper_kick(struct stepper *s);
enum stepper_state stepper_state(const struct stepper *s);
