/* SPDX-License-Identifier: MIT */
/*
 * Reads the shards and fills the arena by plan, on several threads. One way through io_uring (loader-uring.c) and one
 * with pread (loader-pread.c); both read the same runs and unpack them with loader_unpack, so the arena is the same.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "engine/weights-plan.h"

#define LOADER_READ_BYTES (4u << 20)   /* of one read: large enough for full speed of an SSD or an array of them */
#define LOADER_IN_FLIGHT 16u           /* reads at once, at most */
#define LOADER_ALIGN 4096u             /* of offset, length and memory under O_DIRECT */
#define LOADER_PROGRESS_USEC 50000u

/* A run of a shard's bytes: whole groups of rows of consecutive tensors. */
struct load_read {
    uint64_t offset;    /* in the shard's file */
    size_t bytes;
    size_t tensor;      /* the first one, index into checkpoint->tensors */
    uint32_t row;       /* its first row in this read */
    uint32_t shard;
};

struct loader {
    const struct checkpoint *c;
    const struct weights_plan *plan;
    const struct backend_ops *ops;
    struct backend *b;
    uint8_t *arena;
    struct load_options *options;  /* never NULL */

    struct load_read *reads;       /* [n_reads], in file order */
    size_t n_reads;
    size_t buffer_bytes;           /* holds any read with LOADER_ALIGN to spare on both sides; aligned */
    uint32_t threads;

    _Atomic uint64_t done_bytes;
    atomic_bool stop;              /* failed or cancelled */
    pthread_mutex_t lock;          /* of fail */
    struct fail fail;              /* the first failure */
    uint64_t start_usec, reported_usec;
};

/* Fill the arena. options as in weights_load; says there which way it went. */
int loader_run(const struct checkpoint *c, const struct weights_plan *plan, const struct backend_ops *ops,
               struct backend *b, uint8_t *arena, struct load_options *options, struct fail *f);

/* ---- for the two ways */

/* 0: everything is in the arena. 1: this way is not possible here, nothing failed. Otherwise l->fail is set. */
int loader_uring(struct loader *l, bool direct);
int loader_pread(struct loader *l);

/* Bytes of one read, in memory, to the arena. Any thread. Sets l->fail and l->stop on bad contents. */
void loader_unpack(struct loader *l, const struct load_read *r, const uint8_t *data);

/* Remember the first failure and stop. Any thread. Returns -EIO or so. */
int loader_fail(struct loader *l, int err, const char *code, const char *fmt, ...) PRINTF(4, 5);
int loader_read_failed(struct loader *l, const struct load_read *r, int err); /* err: positive errno */

/* Tell the caller, if it is time (or `last`). Calling thread only. */
void loader_progress(struct loader *l, bool last);
