/* SPDX-License-Identifier: MIT */
/*
 * A set of strings that are found in a text, from left to right, at each place the longest (added tokens). A trie: at
 * most ADDED_BYTES_MAX steps for each byte of text whatever the strings.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

#define ADDED_BYTES_MAX 256

struct added;

int added_new(struct added **ret);
struct added *added_free(struct added *a);
DEFINE_CLEANUP(struct added *, added_free)
/* 0 < n <= ADDED_BYTES_MAX, else -EINVAL; -EEXIST: it is there already; -ENOMEM. */
int added_put(struct added *a, const char *text, size_t n, uint32_t id);
/* The first string in text[n] at or after `from`: 1 and where, how long and which; 0: none. */
int added_find(const struct added *a, const char *text, size_t n, size_t from, size_t *ret_at, size_t *ret_n,
               uint32_t *ret_id);
