/* SPDX-License-Identifier: MIT */
/*
 * Configuration text: [Section], Key=Value, comments from # or ; at the start of a line or after white space. Values are
 * trimmed; there is no quoting and no continuation. The meaning of keys is the caller's.
 */
#pragma once

#include <stddef.h>

#include "base/fail.h"

/* Called for each Key=Value, in order. Its negative result (with a fail) ends the reading. section is "" before any. */
typedef int (*ini_fn)(const char *section, const char *key, const char *value, unsigned line, void *userdata,
                      struct fail *f);

/* CONFIG, with "name:line: " before the message, also for what fn reported. n bytes of text, which may not hold NUL. */
int ini_read(const char *name, const char *text, size_t n, ini_fn fn, void *userdata, struct fail *f);
