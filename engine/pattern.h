/* SPDX-License-Identifier: MIT */
/*
 * The regular expressions of a pre-tokenizer: where does a text split? The subset of Oniguruma's syntax that such
 * patterns use, with its meaning (leftmost match, first alternative that succeeds, greedy), in time linear in the text
 * whatever the pattern and the text: one pass from the end finds out from where a match can still be completed, one
 * pass from the beginning then never has to go back. Not a general regular expression library: no captures, no back
 * references, no anchors, lookahead for one character only. What is outside the subset is refused, never guessed.
 *
 * Accepted: literals, `.`, escapes \r \n \t \f \v \a \e \uHHHH and of ASCII punctuation, classes with ranges and
 * negation, \p{..} \P{..} of a general category, \s \S \d \D, groups ( ) (?: ), alternation, greedy ? * + {m} {m,} {m,n},
 * (?=x) (?!x) where x is one character or class. A pattern that can match nothing at all is refused.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "base/macros.h"

struct pattern; /* immutable: any thread may use it */

/* BAD_TOKENIZER says what is not supported and at which byte of the pattern. */
int pattern_new(const char *regex, size_t n, struct pattern **ret, struct fail *f);
/* Matches exactly this text (n > 0). */
int pattern_new_literal(const char *text, size_t n, struct pattern **ret, struct fail *f);
struct pattern *pattern_free(struct pattern *p);
DEFINE_CLEANUP(struct pattern *, pattern_free)

/* Finds all matches in text[n] (valid UTF-8) from left to right and sets cut[i] = 1 where one begins or ends, for
 * 0 <= i < n; other entries stay. The text is looked at as if nothing came before or after it. */
void pattern_split(const struct pattern *p, const char *text, size_t n, uint16_t *scratch /* [n + 1] */,
                   uint8_t *cut /* [n] */);
