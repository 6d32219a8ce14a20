/* SPDX-License-Identifier: MIT */
/*
 * Sessions: named token sequences with an owner, and the KV memory that holds a beginning of each.
 *
 * The token list is the session; its KV is a cache of the first kv->tokens of it. What is not in the KV is computed by the
 * next request. So
 *   - after an answer the list holds everything that was read and sampled, and the KV all of it but the last token, which
 *     was sampled and not fed yet;
 *   - a session may lose its KV when memory is short and nobody uses it: the next request computes it again;
 *   - trimming drops the KV: its window rows are those of the end, and the ones before are gone. (Snapshots at page
 *     borders will make this cheaper.)
 *
 * Step thread only.
 */
#pragma once

#include <stdbool.h>

#include "base/map.h"
#include "engine/kv.h"
#include "engine/tokenizer.h"

#define SESSIONS_MAX 1024        /* named ones of one model */
#define SESSION_ID_MAX 128       /* bytes */

struct session {
    struct session_table *table; /* NULL: temporary */
    char *id, *label;            /* NULL: temporary; none */
    uint64_t owner;
    struct tokens tokens;
    size_t base;                 /* while busy: so many tokens stay whatever becomes of the request */
    struct kv_session *kv;       /* or NULL; kv->tokens <= tokens.n */
    bool busy;                   /* a request works on it: nothing else may change it */
    uint64_t created_usec, used_usec; /* CLOCK_REALTIME */
};

struct session_table {
    struct kv_pool *pool;
    struct map *by_id;
};

int session_table_init(struct session_table *t, struct kv_pool *pool);
void session_table_deinit(struct session_table *t); /* frees all sessions; none may be busy */

int session_new(struct session_table *t, const char *id, uint64_t owner, const char *label, struct session **ret,
                struct fail *f);
int session_new_temporary(struct session_table *t, uint64_t owner, struct session **ret, struct fail *f);
/* NO_SUCH_SESSION, also when it is another owner's. */
int session_find(struct session_table *t, const char *id, uint64_t owner, struct session **ret, struct fail *f);
struct session *session_free(struct session *s); /* must not be busy */
DEFINE_CLEANUP(struct session *, session_free)
/* SESSION_BUSY, RANGE (trim: more than it has). */
int session_fork(struct session_table *t, struct session *s, const char *id, const char *label, struct session **ret,
                 struct fail *f);
int session_trim(struct session *s, uint32_t tokens, struct fail *f);

/* ---------------------------------------------------------------- for requests */

/* Marks it busy until session_end. */
int session_begin(struct session *s, struct fail *f);
/* More input after what is there. */
int session_append(struct session *s, const uint32_t *id, size_t n, struct fail *f);
/* A whole conversation in place of what is there. The KV stays when all of it is a beginning of the new list. */
int session_replace(struct session *s, const uint32_t *id, size_t n, struct fail *f);
/* Makes sure that there is something to compute: if the KV holds every token (a request was cancelled while it read), the
 * last one's logits are gone and all is computed again. */
void session_prepare(struct session *s);
/* KV for `n` tokens more than it holds. Takes the KV of idle sessions if it must, this owner's first. KV_FULL. */
int session_reserve(struct session_table *t, struct session *s, uint32_t n, struct fail *f);
/* One sampled token. */
int session_push(struct session *s, uint32_t id, struct fail *f);
/* Input that was not computed is forgotten, unused KV given back. */
void session_end(struct session *s);

uint64_t session_kv_bytes(const struct session *s);
