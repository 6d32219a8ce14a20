/* SPDX-License-Identifier: MIT */
/* Overflow-safe arithmetic: every size that comes from outside goes through these before it is used. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *ret = a op b; false (and *ret unchanged) when it does not fit. */
static inline bool size_add(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

static inline bool size_mul(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

/* Rounds n up to a multiple of align (a power of two). */
static inline bool size_align(size_t n, size_t align, size_t *ret)
{
    size_t r;
    if (!size_add(n, align - 1, &r))
        return false;
    *ret = r & ~(align - 1);
    return true;
}

/* For sizes already known to be small. */
static inline size_t align_up(size_t n, size_t align)
{
    return (n + align - 1) & ~(align - 1);
}

static inline size_t div_up(size_t n, size_t by)
{
    return n / by + (n % by != 0);
}
