/* SPDX-License-Identifier: MIT */
/*
 * What went wrong, for a person and for a program.
 *
 * Error contract of this project: a function returns 0 or a negative errno; a positive value is a documented outcome
 * of that one function. Functions whose callers need more than a number take a `struct fail *` (last argument, may be
 * NULL) and fill it. Library layers (base, proto, engine, backends) never log and never exit: they fill a fail, and
 * whoever handles it logs one good line or sends it to the client.
 *
 * `code` is one of the stable names of proto/errors.def. `message` is a sentence that names the thing, what was found
 * and what was expected; it never contains a user's text.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

struct fail {
    int err;                 /* positive errno, 0: nothing failed */
    char code[32];           /* stable, capitals */
    char field[96];          /* which input: a key, tensor or field name; "" if none */
    char message[512];
    bool has_limit, has_value;
    int64_t limit, value;    /* what was allowed and what was found */
    uint32_t retry_after_ms; /* 0: no advice */
};

#define FAIL_INIT ((struct fail){0})

/* Fill f (which may be NULL) and return -err. Clears field, limit, value and retry_after_ms. */
int fail_set(struct fail *f, int err, const char *code, const char *fmt, ...) PRINTF(4, 5);
int fail_setv(struct fail *f, int err, const char *code, const char *fmt, va_list ap) PRINTF(4, 0);

/* Out of memory: code NO_MEMORY, -ENOMEM. */
int fail_oom(struct fail *f);

/* Add to a fail just set; NULL f is ignored. */
void fail_field(struct fail *f, const char *field);
void fail_limit(struct fail *f, int64_t limit, int64_t value);

/* Put "prefix: " before the message, e.g. a file's name on the way up. Truncates at the end. */
void fail_prefix(struct fail *f, const char *fmt, ...) PRINTF(2, 3);
