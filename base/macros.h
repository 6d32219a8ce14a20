/* SPDX-License-Identifier: MIT */
/* Small compile-time helpers and scope cleanup. Nothing here calls anything but libc. */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define ELEMENTS(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define MUST_USE __attribute__((warn_unused_result))
#define PUBLIC __attribute__((visibility("default")))

/* Destructors accept NULL. A constructor fills a _cleanup_ local and publishes it last with TAKE_PTR / TAKE_FD. */
#define _cleanup_(fn) __attribute__((cleanup(fn)))
#define TAKE_PTR(p)                  \
    ({                               \
        __typeof__(p) *p_ = &(p);    \
        __typeof__(p) taken_ = *p_;  \
        *p_ = NULL;                  \
        taken_;                      \
    })
#define TAKE_FD(fd)                  \
    ({                               \
        int *fd_ = &(fd);            \
        int taken_ = *fd_;           \
        *fd_ = -1;                   \
        taken_;                      \
    })

/* DEFINE_CLEANUP(struct buf *, buf_free) makes buf_freep for _cleanup_(buf_freep). */
#define DEFINE_CLEANUP(type, fn)                                     \
    __attribute__((unused)) static inline void fn##p(type *p)        \
    {                                                                \
        if (*p)                                                      \
            (void)fn(*p);                                            \
    }

static inline void freep(void *p)
{
    free(*(void **)p);
}
#define _cleanup_free_ _cleanup_(freep)

static inline void closep(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
#define _cleanup_close_ _cleanup_(closep)

/* Distance between a member and its object. */
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))
