/* SPDX-License-Identifier: MIT */
/*
 * JSON read by jansson and printed as Python's json.dumps(ensure_ascii=False) prints it, which is what the model was
 * trained on: ", " and ": ", key order kept, integers of any size, floats as Python's repr. Because jansson's integers
 * have 64 bits, numbers are kept as their text inside marked strings of the tree: read strings only by pyjson_string().
 * Not a general JSON layer.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum pyjson_rules {
    PYJSON_STRICT, /* RFC 8259; a key twice in one object is refused */
    PYJSON_LOOSE,  /* what json.loads takes: also NaN, Infinity; of a key given twice the last value counts */
};

static inline void pyjson_decref(json_t **v)
{
    json_decref(*v);
}
#define _cleanup_json_ _cleanup_(pyjson_decref)

/* One JSON value, any type. -EINVAL: not JSON, nested deeper than 2048, or an integer of more than 4300 digits. */
int pyjson_load(const char *text, size_t n, enum pyjson_rules rules, json_t **ret);

/* The text of a string (may hold NUL bytes), or NULL if v is something else (a number too). */
const char *pyjson_string(const json_t *v, size_t *ret_n);
/* A key of an object as iteration gives it. */
const char *pyjson_key(const char *key);

int pyjson_dump(const json_t *v, struct buf *out);

/* The inside of a JSON string, without quotes. Bytes are independent of each other, so text may come in pieces. */
int pyjson_escape(const char *s, size_t n, struct buf *out);
/* With quotes. */
int pyjson_quote(const char *s, size_t n, struct buf *out);
