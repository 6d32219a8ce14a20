/* SPDX-License-Identifier: MIT */
/* See error.h. */
#include "proto/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const struct error_code error_codes[] = {
#define ERROR(code, err, sentence) {#code, err, sentence},
#include "proto/errors.def"
#undef ERROR
};
const size_t n_error_codes = ELEMENTS(error_codes);

static const struct error_code *find(const char *code)
{
    for (size_t i = 0; i < n_error_codes; i++)
        if (strcmp(error_codes[i].code, code) == 0)
            return &error_codes[i];
    return NULL;
}

int error_errno(const char *code)
{
    const struct error_code *c = find(code);
    return c ? c->err : EIO;
}

void error_from_fail(Dsv4__V1__Error *e, struct fail *f)
{
    dsv4__v1__error__init(e);
    if (!f->code[0])
        snprintf(f->code, sizeof(f->code), "INTERNAL");
    const struct error_code *c = find(f->code);
    if (!f->message[0] && c)
        snprintf(f->message, sizeof(f->message), "%s", c->sentence);
    e->code = f->code;
    e->message = f->message;
    e->field = f->field[0] ? f->field : NULL;
    e->has_limit = f->has_limit;
    e->limit = f->limit;
    e->has_value = f->has_value;
    e->value = f->value;
    e->has_retry_after_ms = f->retry_after_ms != 0;
    e->retry_after_ms = f->retry_after_ms;
}

int error_to_fail(const Dsv4__V1__Error *e, struct fail *f)
{
    int err = error_errno(e->code);

    fail_set(f, err, e->code, "%s", e->message);
    if (!f)
        return -err;
    fail_field(f, e->field ? e->field : "");
    f->has_limit = e->has_limit;
    f->limit = e->limit;
    f->has_value = e->has_value;
    f->value = e->value;
    f->retry_after_ms = e->has_retry_after_ms ? e->retry_after_ms : 0;
    return -err;
}
