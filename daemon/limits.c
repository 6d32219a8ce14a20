/* SPDX-License-Identifier: MIT */
/* See limits.h. */
#include "daemon/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/macros.h"
#include "base/parse.h"

#define S 1000000ull
#define M (1ull << 20)
#define INFINITE UINT64_MAX
#define L(section, name, unit, member, min, max, standard) \
    {section, name, unit, offsetof(struct limits, member), min, max, standard}

const struct limit_def limit_defs[] = {
    L("Daemon", "MaxConnections", LIMIT_COUNT, max_connections, 1, 1000000, 4096),
    L("Daemon", "MaxWaitingBytes", LIMIT_BYTES, max_waiting_bytes, 8 * M, INFINITE, 256 * M),
    L("Daemon", "FrameTimeout", LIMIT_USEC, frame_timeout_usec, 1000, INFINITE, 10 * S),
    L("Daemon", "SlowReaderTimeout", LIMIT_USEC, slow_reader_timeout_usec, 1000, INFINITE, 30 * S),
    L("Daemon", "ShutdownGrace", LIMIT_USEC, shutdown_grace_usec, 0, 3600 * S, 5 * S),
    L("Daemon", "MemfdMax", LIMIT_BYTES, memfd_max_bytes, 4096, 4096 * M, 64 * M),
    L("Daemon", "ResumeBytes", LIMIT_BYTES, resume_bytes, 4096, 1024 * M, 1 * M),
    L("Daemon", "OutputHigh", LIMIT_BYTES, output_high_bytes, 4096, 64 * M, 1 * M),
    L("Scheduler", "QueueTimeout", LIMIT_USEC, queue_timeout_usec, 1000, INFINITE, 600 * S),
    L("Sessions", "IdleTimeout", LIMIT_USEC, idle_timeout_usec, 1000, INFINITE, 1800 * S),
    L("Quota", "Connections", LIMIT_COUNT, connections, 0, INFINITE, 256),
    L("Quota", "Sessions", LIMIT_COUNT, sessions, 0, INFINITE, 256),
    L("Quota", "QueuedRequests", LIMIT_COUNT, queued_requests, 0, INFINITE, 256),
    L("Quota", "WaitingBytes", LIMIT_BYTES, waiting_bytes, 0, INFINITE, 32 * M),
    L("Quota", "Resumes", LIMIT_COUNT, resumes, 0, INFINITE, 32),
    L("Quota", "TokensPerMinute", LIMIT_COUNT, tokens_per_minute, 0, INFINITE, INFINITE),
    L("Quota", "TokensPerDay", LIMIT_COUNT, tokens_per_day, 0, INFINITE, INFINITE),
    L("Quota", "Weight", LIMIT_COUNT, weight, 1, 10000, 100),
};
const size_t n_limit_defs = ELEMENTS(limit_defs);

void limits_init(struct limits *l)
{
    for (size_t i = 0; i < n_limit_defs; i++)
        *limit_at(l, &limit_defs[i]) = limit_defs[i].standard;
}

const struct limit_def *limits_find(const char *section, const char *name)
{
    for (const struct limit_def *d = limit_defs; d < limit_defs + n_limit_defs; d++)
        if (strcmp(d->name, name) == 0 && (!section || strcmp(d->section, section) == 0))
            return d;
    return NULL;
}

static int parse(enum limit_unit unit, const char *value, uint64_t *ret)
{
    switch (unit) {
    case LIMIT_BYTES:
        return parse_bytes(value, ret);
    case LIMIT_USEC:
        return parse_usec(value, ret);
    default:
        return parse_count(value, ret);
    }
}

int limits_set(struct limits *l, const char *section, const char *name, const char *value, struct fail *f)
{
    static const char *const like[] = {"a number such as 64, 10M or infinity", "bytes such as 4096, 64M, 8G or infinity",
                                       "a time such as 50ms, 30s, 10min or infinity"};
    const struct limit_def *d = limits_find(section, name);
    uint64_t v;

    if (!d)
        return -ENOENT;
    if (parse(d->unit, value, &v) < 0)
        fail_set(f, EINVAL, "CONFIG", "%s is \"%.64s\"; expected %s", name, value, like[d->unit]);
    else if (v < d->min || v > d->max)
        fail_set(f, EINVAL, "CONFIG", "%s is \"%.64s\"; expected %llu to %llu%s", name, value, (unsigned long long)d->min,
                 (unsigned long long)d->max, d->unit == LIMIT_USEC ? " µs" : d->unit == LIMIT_BYTES ? " bytes" : "");
    else {
        *limit_at(l, d) = v;
        return 0;
    }
    fail_field(f, name);
    return -EINVAL;
}

int limits_set_option(struct limits *l, const char *option, struct fail *f)
{
    char name[64];
    const char *eq = strchr(option, '=');

    if (!eq || (size_t)(eq - option) >= sizeof(name))
        return fail_set(f, EINVAL, "CONFIG", "\"%.64s\" is no limit; expected NAME=VALUE", option);
    snprintf(name, sizeof(name), "%.*s", (int)(eq - option), option);
    int r = limits_set(l, NULL, name, eq + 1, f);
    return r == -ENOENT ? fail_set(f, EINVAL, "CONFIG", "there is no limit called \"%s\"", name) : r;
}
