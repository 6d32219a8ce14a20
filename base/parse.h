/* SPDX-License-Identifier: MIT */
/* Numbers in text, strictly: the whole string, no white space, no silent wrap. -EINVAL: not a number; -ERANGE. */
#pragma once

#include <stdint.h>

int parse_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret);
int parse_double(const char *s, double min, double max, double *ret); /* finite only */
/* "8G", "512M", "1024", "infinity" (UINT64_MAX); units K M G T are powers of 1024. */
int parse_bytes(const char *s, uint64_t *ret);
/* "50ms", "10min", "30s", "2h", "1d", plain seconds, "infinity" (UINT64_MAX); in microseconds. */
int parse_usec(const char *s, uint64_t *ret);
/* "10M" = 10,000,000: counts use powers of 1000. */
int parse_count(const char *s, uint64_t *ret);
int parse_bool(const char *s); /* 1, 0 or -EINVAL: yes no true false on off 1 0 */
