/* SPDX-License-Identifier: MIT */
/* See fail.h. */
#include "base/fail.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int fail_setv(struct fail *f, int err, const char *code, const char *fmt, va_list ap)
{
    if (!f)
        return -err;
    *f = FAIL_INIT;
    f->err = err;
    snprintf(f->code, sizeof(f->code), "%s", code);
    vsnprintf(f->message, sizeof(f->message), fmt, ap);
    return -err;
}

int fail_set(struct fail *f, int err, const char *code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int r = fail_setv(f, err, code, fmt, ap);
    va_end(ap);
    return r;
}

int fail_oom(struct fail *f)
{
    return fail_set(f, ENOMEM, "NO_MEMORY", "out of memory");
}

void fail_field(struct fail *f, const char *field)
{
    if (f)
        snprintf(f->field, sizeof(f->field), "%s", field);
}

void fail_limit(struct fail *f, int64_t limit, int64_t value)
{
    if (!f)
        return;
    f->has_limit = f->has_value = true;
    f->limit = limit;
    f->value = value;
}

void fail_prefix(struct fail *f, const char *fmt, ...)
{
    char old[sizeof(f->message)];
    va_list ap;

    if (!f)
        return;
    memcpy(old, f->message, sizeof(old));
    va_start(ap, fmt);
    vsnprintf(f->message, sizeof(f->message), fmt, ap);
    va_end(ap);
    strncat(f->message, ": ", sizeof(f->message) - strlen(f->message) - 1);
    strncat(f->message, old, sizeof(f->message) - strlen(f->message) - 1);
}
