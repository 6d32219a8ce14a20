/* SPDX-License-Identifier: MIT */
/*
 * A look at a serialised message before protobuf-c may unpack it, since protobuf-c limits neither depth nor counts
 * (9,000 nested messages overflow its stack; 2 MB of empty ones become 65 MB), cuts numbers that do not fit their field
 * and strings at a NUL byte. Follows the message's descriptor: known fields must have a fitting wire type, required
 * ones must be there, singular messages come at most once; unknown fields are skipped, groups refused.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "base/fail.h"

#define SCAN_DEPTH_MAX 16
#define SCAN_ITEMS_MAX 4096    /* entries of one repeated field of messages or strings; unknown fields of one message */
#define SCAN_NUMBERS_MAX (1u << 20) /* entries of one packed field of numbers */
#define SCAN_TOTAL_MAX (64u << 10)  /* fields of one message and all in it, which bounds memory at some 20 MB */
#define SCAN_FIELDS_MAX 32     /* fields that one message type may declare */

/* 0 if unpacking is safe. NESTING, TOO_MANY_ITEMS (limit), MALFORMED (value: byte offset), RANGE (a number that does not
 * fit its field), MISSING_FIELD, BAD_UTF8 (a string that is not UTF-8 or contains a NUL; value: byte of the string).
 * The fail's field is the path, as in "generate.sampling.top_k". Never recurses. */
int scan_message(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t n, struct fail *f);

/* The first varint field `number` of a message that may be broken elsewhere, to answer its sender; -ENOENT. */
int scan_find_u64(const uint8_t *data, size_t n, uint32_t number, uint64_t *ret);
