/* SPDX-License-Identifier: MIT */
/*
 * What each uid holds and has used. Everything a client can make us hold is taken as a charge, which names what to give
 * back; an account goes when nothing is charged and nothing was used.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"
#include "base/map.h"
#include "daemon/access.h"
#include "daemon/limits.h"
#include "daemon/quota.h"

enum charge_kind { CHARGE_CONNECTIONS, CHARGE_SESSIONS, CHARGE_REQUESTS, CHARGE_WAITING_BYTES, CHARGE_RESUMES, N_CHARGES };

struct usage { /* of one model by one uid, since the start */
    struct usage *next;
    char *model;
    uint64_t input_computed, input_cached, output, reasoning, requests;
};

struct window { /* tokens in the current minute or day */
    uint64_t ends_usec; /* CLOCK_MONOTONIC */
    uint64_t used;
};

struct accounts {
    const struct limits *limits; /* everybody's */
    const struct quotas *quotas; /* where some users' differ */
    struct map *by_uid;
    uint64_t total[N_CHARGES];
};

struct account {
    struct accounts *all;
    uid_t uid;
    struct limits limits; /* this user's, in the groups of the connection that came last */
    uint64_t used[N_CHARGES];
    struct usage *usage;
    struct window minute, day;
};

struct charge {
    struct account *account; /* NULL: nothing taken */
    enum charge_kind kind;
    uint64_t n;
};
#define CHARGE_NONE ((struct charge){0})

int accounts_init(struct accounts *a, const struct limits *l, const struct quotas *q);
void accounts_deinit(struct accounts *a); /* asserts that nothing is charged */

/* Charge n of a kind to whoever just came; QUOTA with the limit's name, limit and used. */
int charge_take_who(struct charge *c, struct accounts *a, const struct who *w, enum charge_kind kind, uint64_t n, struct fail *f);
int charge_take(struct charge *c, struct account *a, enum charge_kind kind, uint64_t n, struct fail *f);
void charge_release(struct charge *c); /* twice is fine */
uint64_t account_limit(const struct account *a, enum charge_kind kind);
const char *charge_name(enum charge_kind kind);

/* QUOTA with retry_after if the uid has used up its tokens of this minute or day. */
int account_check_tokens(struct account *a, uint64_t now_usec, struct fail *f);
/* The entry of a model, made at need; NULL: out of memory. */
struct usage *account_usage(struct account *a, const char *model);
void account_add_tokens(struct account *a, uint64_t now_usec, uint64_t tokens);
