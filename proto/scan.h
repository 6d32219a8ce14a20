/* SPDX-License-Identifier: MIT */
/*
 * A look at a serialised message before protobuf-c may unpack it, since protobuf-c limits neither depth nor counts
 * (9,000 nested messages overflow its stack; 2 MB of empty ones become 65 MB). Follows the message's descriptor: known
 * fields must have a fitting wire type; unknown ones are skipped, groups refused.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "base/fail.h"

#define SCAN_DEPTH_MAX 16
#define SCAN_ITEMS_MAX 4096    /* entries of one repeated field of messages or strings */
#define SCAN_NUMBERS_MAX (1u << 20) /* entries of one packed field of numbers */

/* NESTING, TOO_MANY_ITEMS, MALFORMED (value: byte offset); 0 if unpacking is safe. Never recurses. */
int scan_message(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t n, struct fail *f);
