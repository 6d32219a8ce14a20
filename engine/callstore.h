/* SPDX-License-Identifier: MIT */
/*
 * What the model wrote for each tool call, kept under the call's id so that the call can be replayed exactly when a
 * client sends the conversation back: rendering it again from its JSON could give other tokens, and then nothing cached
 * would fit. Ids are unguessable and good for their owner only. Bounded per owner and in all; the oldest go first.
 * Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

#define CALLSTORE_OWNER_BYTES (1u << 20)
#define CALLSTORE_BYTES (64u << 20)
#define CALL_ID_SIZE 30 /* "call_", 24 characters, NUL */

struct callstore;

int callstore_new(struct callstore **ret);
struct callstore *callstore_free(struct callstore *s);
DEFINE_CLEANUP(struct callstore *, callstore_free)

/* A new id: 120 random bits. */
int callstore_make_id(char ret[CALL_ID_SIZE]);
/* A call that is too large to be kept, or of which nothing is known, is dropped silently: it will be rendered from its JSON. -ENOMEM. */
int callstore_put(struct callstore *s, uint64_t owner, const char *id, const char *raw, size_t n);
/* A copy, or NULL. */
char *callstore_get(struct callstore *s, uint64_t owner, const char *id);
size_t callstore_bytes(struct callstore *s);
