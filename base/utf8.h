/* SPDX-License-Identifier: MIT */
/* UTF-8 as RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Decode one character at s (n > 0 bytes left). Returns its length 1..4 and sets *ret; 0 if it is invalid; -1 if it is
 * a valid beginning that needs more bytes than n. */
int utf8_decode(const char *s, size_t n, uint32_t *ret);

/* Offset of the first byte that is not valid UTF-8, or -1 when all n bytes are. A cut-off character is invalid. */
ssize_t utf8_invalid_at(const char *s, size_t n);

/* How many of the n bytes form whole characters: n minus an unfinished last character (at most 3 bytes). Bytes that can
 * never become valid count as whole. */
size_t utf8_whole(const char *s, size_t n);

/* Writes c as UTF-8 (at most 4 bytes) and returns the length; c must be a valid scalar value. */
size_t utf8_encode(uint32_t c, char ret[4]);
