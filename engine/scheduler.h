/* SPDX-License-Identifier: MIT */
/*
 * Which requests run, and with how many tokens in the next step. Policy only: no I/O, no memory of a model, no clock of
 * its own (the stepper says how long a step took), so that tests can simulate hours.
 *
 * Slots: at most max_running requests are admitted; among those waiting, the owner with the fewest admitted comes next,
 * and within one owner the oldest. Weights do not count here, or a light owner would never get in.
 *
 * Steps: start-time fair queueing in two levels. Every owner has a tag, the tokens served so far over its weight; the one
 * with the smallest tag is served next, and within it the item with the smallest tag. An owner that had nothing to do
 * comes back at the tag of the least served one, not at its own old one: idleness is not saved up.
 *
 * Prompts and decodes are two queues with tags of their own. Every item that needs one token (a decode) is in every step,
 * as far as the step holds; prompts get what is left of the time target, measured, but never less than
 * SCHED_PREFILL_MIN tokens together, so that neither starves the other. With one tag for both, an owner with many streams,
 * which are served in any case, could never get another prompt read while others have some.
 *
 * One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCHED_PREFILL_MIN 16   /* prompt tokens of a step, whatever the decodes cost */
#define SCHED_QUANTUM 16       /* prompt tokens given at a time when prompts share a step */
#define SCHED_FIRST_BUDGET 64  /* prompt tokens of a step before anything was measured */
#define SCHED_IDLE_TARGETS 4   /* without decodes a step may take so many targets: nobody waits between two tokens */
#define SCHED_WEIGHT 100       /* the weight of an owner that has none */

struct sched_params {
    uint32_t max_running;      /* requests with a slot, paused ones not counted */
    uint32_t max_step_tokens;
    uint32_t target_usec;      /* how long a step with decodes may take */
};

struct sched;
struct sched_owner;

/* Embedded in a request; zero it before sched_add. Only `userdata` is for others. */
struct sched_item {
    void *userdata;
    struct sched_owner *owner;
    struct sched_item *prev, *next; /* in the order of arrival */
    uint64_t seq;
    uint32_t turn;     /* while queued: how many of its owner's go before it */
    double tag;
    uint32_t pending;  /* tokens to compute next: 1 for a decode */
    uint32_t planned;  /* of these, in the step being planned */
    bool running, paused;
    bool decoding;     /* in which queue its tag counts */
};

struct sched_part {
    struct sched_item *item;
    uint32_t tokens; /* >= 1 */
};

int sched_new(const struct sched_params *p, struct sched **ret);
struct sched *sched_free(struct sched *s); /* asserts that no item is left */

/* A request that waits for a slot. -ENOMEM. */
int sched_add(struct sched *s, struct sched_item *i, uint64_t owner, uint32_t weight);
/* At any time; also for items that were never added. */
void sched_remove(struct sched *s, struct sched_item *i);

/* The item to be admitted next, if a slot is free; else NULL. Then either sched_start or sched_remove it. */
struct sched_item *sched_next(const struct sched *s);
void sched_start(struct sched *s, struct sched_item *i, uint32_t pending);
/* 1 for the next one to be admitted; 0 if it is running. */
uint32_t sched_position(const struct sched *s, const struct sched_item *i);

void sched_set_paused(struct sched *s, struct sched_item *i, bool paused);
/* Tokens that wait now: 1 after an output token. */
void sched_set_pending(struct sched *s, struct sched_item *i, uint32_t pending);

/* The next step: at most `max` parts, one per item; 0: nothing to do. Charges the owners and lowers `pending`. */
uint32_t sched_plan(struct sched *s, struct sched_part *part, uint32_t max);
/* How long the step took that was planned with so many tokens: prompt parts (more than one token) and decodes. */
void sched_measured(struct sched *s, uint32_t prefill_tokens, uint32_t decodes, uint64_t usec);

uint32_t sched_running(const struct sched *s);
uint32_t sched_queued(const struct sched *s);
