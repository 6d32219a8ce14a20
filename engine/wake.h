/* SPDX-License-Identifier: MIT */
/* An eventfd as a doorbell between threads. */
#pragma once

#include <stdint.h>
#include <unistd.h>

static inline void wake(int event_fd)
{
    const uint64_t one = 1;
    ssize_t n = write(event_fd, &one, sizeof(one)); /* fails only when the counter is full: then it rings already */

    (void)n;
}

static inline void wake_clear(int event_fd)
{
    uint64_t count;
    ssize_t n = read(event_fd, &count, sizeof(count));

    (void)n;
}
