/* SPDX-License-Identifier: MIT */
/* Reading JSON that comes with a checkpoint: thin helpers over jansson that turn its complaints into struct fail, and put
 * nothing unprintable from a file into a message. */
#pragma once

#include <jansson.h>

#include "base/fail.h"
#include "base/macros.h"

#define _cleanup_json_ _cleanup_(json_decrefp) /* jansson's own helper */

/* One object, no duplicate keys, nothing after it. CONFIG, naming `file` and the line. */
int json_parse_object(const char *text, size_t size, const char *file, json_t **ret, struct fail *f);

/* A value for a message: `12`, `"yarn"`, `an array of 3`; long or unprintable text is cut and masked. */
#define JSON_SHOWN 64
const char *json_show(const json_t *j, char ret[JSON_SHOWN]);

/* Text from a file made fit for a message: at most size - 1 bytes, printable ASCII only. */
const char *text_show(const char *s, size_t n, char *ret, size_t size);
