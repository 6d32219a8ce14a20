/* SPDX-License-Identifier: MIT */
/*
 * KV memory: one pool of fixed-size pages and one of per-session states, per model and device. Layout: backend.h.
 * Pages are reference-counted so that sessions can share prefixes (fork); the last, partly filled page of a session is
 * copied on write. Pages are zeroed before another owner gets them. Used by the step thread only, except kv_stats.
 */
#pragma once

#include "backends/backend.h"

void kv_layout_init(struct kv_layout *l, const struct model_shape *shape, enum numerics numerics);

struct kv_pool;

struct kv_stats {
    uint64_t total_bytes, used_bytes; /* pages and states together */
    uint32_t page_count, pages_used, state_count, states_used;
};

/* Room for `pages` pages and `states` sessions; backed lazily where the backend can. */
int kv_pool_new(const struct backend_ops *ops, struct backend *b, const struct kv_layout *l, uint32_t pages,
                uint32_t states, struct kv_pool **ret, struct fail *f);
struct kv_pool *kv_pool_free(struct kv_pool *p); /* asserts that no session is left */
DEFINE_CLEANUP(struct kv_pool *, kv_pool_free)
uint8_t *kv_pool_pages(const struct kv_pool *p); /* device address of page 0 */
void kv_pool_stats(const struct kv_pool *p, struct kv_stats *ret); /* any thread */

struct kv_session {
    struct kv_pool *pool;
    uint8_t *state;      /* device address */
    uint32_t *page;      /* [n_pages] */
    uint32_t n_pages, page_capacity;
    uint32_t tokens;     /* positions 0 .. tokens - 1 are in it */
    uint64_t owner;      /* opaque label */
};

/* -ENOSPC (code KV_FULL) when the pool has no state or page left. */
int kv_session_new(struct kv_pool *p, uint64_t owner, struct kv_session **ret, struct fail *f);
struct kv_session *kv_session_free(struct kv_session *s);
DEFINE_CLEANUP(struct kv_session *, kv_session_free)
/* Pages for positions up to tokens + n - 1, the last shared one made the session's own. All or nothing. */
int kv_session_reserve(struct kv_session *s, uint32_t n, struct fail *f);
/* Give back pages that were reserved and hold no token. */
void kv_session_trim(struct kv_session *s);
/* The same tokens for another session of the same owner; shares full pages, copies the state. */
int kv_session_fork(const struct kv_session *s, struct kv_session **ret, struct fail *f);
/* Forget everything: zero tokens, pages given back. */
int kv_session_reset(struct kv_session *s);
uint64_t kv_session_bytes(const struct kv_session *s);
