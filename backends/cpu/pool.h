/* SPDX-License-Identifier: MIT */
/*
 * A fixed set of threads that work on one job at a time. The caller of pool_run works too, as thread 0; the others are
 * pinned, one per core, and sleep on a futex when there has been nothing to do for POOL_SPIN_USEC.
 *
 * Which thread takes which item is decided at run time and differs from run to run: no result may depend on it.
 */
#pragma once

#include <stdint.h>

#include "base/macros.h"

/* Between two operations of one step there are a few microseconds; a sleeping thread costs about 50 to wake. */
#define POOL_SPIN_USEC 50
#define POOL_THREADS_MAX 512

struct pool;

/* Work on one item; thread is 0 .. pool_threads() - 1, to find scratch of one's own. */
typedef void (*pool_fn)(void *arg, uint32_t item, uint32_t thread);

/* threads: 0 = pool_cores(). More threads than cores are possible (for tests): they are not pinned and do not spin. */
int pool_new(uint32_t threads, struct pool **ret);
struct pool *pool_free(struct pool *p);
DEFINE_CLEANUP(struct pool *, pool_free)

uint32_t pool_threads(const struct pool *p);

/* fn for every item 0 .. n_items - 1; returns when all are done. Called by one thread at a time, not from fn. */
void pool_run(struct pool *p, uint32_t n_items, pool_fn fn, void *arg);

/* How many cores this process may keep busy: its affinity mask, and the CPU quota of its control groups. */
uint32_t pool_cores(void);
