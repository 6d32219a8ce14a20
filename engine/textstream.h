/* SPDX-License-Identifier: MIT */
/*
 * From output tokens to text that may be shown: whole UTF-8 characters only (bytes that can never become a character turn
 * into U+FFFD, as Python's errors="replace" does), and nothing that may be the beginning of a stop string.
 */
#pragma once

#include "engine/tokenizer.h"

#define STOP_STRINGS_MAX 16
#define STOP_STRING_BYTES_MAX 256

struct textstream;

/* Stop strings must be valid UTF-8 of 1 to STOP_STRING_BYTES_MAX bytes, at most STOP_STRINGS_MAX of them: -EINVAL. They
 * are copied. t must live longer. */
int textstream_new(const struct tokenizer *t, const char *const *stop, const size_t *stop_n, uint32_t n_stops,
                   struct textstream **ret);
struct textstream *textstream_free(struct textstream *s);
DEFINE_CLEANUP(struct textstream *, textstream_free)

/* Text that token `id` makes safe to show: *ret is valid until the next call. 1: a stop string was found, the text
 * before it is in *ret and nothing more will come. Of several stop strings the one that is complete first ends the text,
 * of those complete at the same byte the longest; where tokens begin and end makes no difference. Special tokens are
 * text too: whoever does not want them to be seen does not feed them. -ENOENT: no such id, nothing has changed. */
int textstream_feed(struct textstream *s, uint32_t id, const char **ret, size_t *ret_n);
/* What was held back; an unfinished character is U+FFFD. 1 as above. Nothing may be fed afterwards. */
int textstream_finish(struct textstream *s, const char **ret, size_t *ret_n);
