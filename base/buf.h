/* SPDX-License-Identifier: MIT */
/*
 * A growable run of bytes with an optional cap. Embedded, not allocated: BUF_INIT, buf_deinit. Always NUL-terminated
 * one past `size` once anything was reserved, so text can be printed. Not thread safe.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct buf {
    char *data;       /* [size], then a NUL */
    size_t size;      /* bytes in use */
    size_t capacity;
    size_t max;       /* 0: no cap */
};

#define BUF_INIT ((struct buf){0})
#define BUF_INIT_MAX(n) ((struct buf){.max = (n)})

void buf_deinit(struct buf *b);
#define _cleanup_buf_ _cleanup_(buf_deinit)

/* Room for n more bytes. -ENOMEM, or -EMSGSIZE when it would pass max. */
int buf_reserve(struct buf *b, size_t n);
int buf_append(struct buf *b, const void *data, size_t n);
int buf_append_str(struct buf *b, const char *s);
int buf_printf(struct buf *b, const char *fmt, ...) PRINTF(2, 3);

/* Drop the first n bytes (n <= size). */
void buf_consume(struct buf *b, size_t n);
static inline void buf_clear(struct buf *b)
{
    b->size = 0;
    if (b->data)
        b->data[0] = '\0';
}

/* The bytes, now the caller's to free(); b is empty again. Never NULL after a successful append. */
char *buf_take(struct buf *b);
