/* SPDX-License-Identifier: MIT */
/* Every number that an admin may set, in one table: name, section, unit, range, default. dsv4d.conf(5) lists them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

struct limits {
    /* per uid */
    uint64_t connections, sessions, queued_requests, waiting_bytes, resumes;
    uint64_t tokens_per_minute, tokens_per_day, weight;
    /* in all */
    uint64_t max_connections, max_waiting_bytes;
    uint64_t frame_timeout_usec, slow_reader_timeout_usec, queue_timeout_usec, idle_timeout_usec, shutdown_grace_usec;
    uint64_t memfd_max_bytes, resume_bytes, output_high_bytes;
};

enum limit_unit { LIMIT_COUNT, LIMIT_BYTES, LIMIT_USEC };
struct limit_def {
    const char *section, *name;
    enum limit_unit unit;
    size_t offset;           /* of a uint64_t in struct limits */
    uint64_t min, max, standard;
};
extern const struct limit_def limit_defs[];
extern const size_t n_limit_defs;

void limits_init(struct limits *l);
/* section may be NULL: any. NULL: there is none. */
const struct limit_def *limits_find(const char *section, const char *name);
static inline uint64_t *limit_at(struct limits *l, const struct limit_def *d)
{
    return (uint64_t *)(void *)((char *)l + d->offset);
}
static inline uint64_t limit_get(const struct limits *l, const struct limit_def *d)
{
    return *(const uint64_t *)(const void *)((const char *)l + d->offset);
}
/* section may be NULL: any. -ENOENT: no such name; CONFIG with name, value and what was expected. */
int limits_set(struct limits *l, const char *section, const char *name, const char *value, struct fail *f);
/* "NAME=VALUE" */
int limits_set_option(struct limits *l, const char *option, struct fail *f);
