/* SPDX-License-Identifier: MIT */
/* See parse.h. */
#include "base/parse.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/macros.h"

/* Digits at the start of s; *end is what follows. */
static int digits(const char *s, uint64_t *ret, const char **end)
{
    uint64_t v = 0;

    if (!isdigit((unsigned char)*s))
        return -EINVAL;
    for (; isdigit((unsigned char)*s); s++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return -ERANGE;
    *ret = v;
    *end = s;
    return 0;
}

int parse_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret)
{
    const char *end;
    uint64_t v;

    int r = digits(s, &v, &end);
    if (r < 0)
        return r;
    if (*end)
        return -EINVAL;
    if (v < min || v > max)
        return -ERANGE;
    *ret = v;
    return 0;
}

int parse_double(const char *s, double min, double max, double *ret)
{
    char *end;

    if (!isdigit((unsigned char)*s) && !strchr("+-.", *s))
        return -EINVAL;
    errno = 0;
    double v = strtod(s, &end);
    if (end == s || *end)
        return -EINVAL;
    if (!isfinite(v) || v < min || v > max)
        return -ERANGE;
    *ret = v;
    return 0;
}

struct unit {
    const char *name;
    uint64_t factor;
};

static int with_unit(const char *s, const struct unit *units, size_t n, uint64_t *ret)
{
    const char *end;
    uint64_t v;

    if (strcmp(s, "infinity") == 0) {
        *ret = UINT64_MAX;
        return 0;
    }
    int r = digits(s, &v, &end);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(end, units[i].name) != 0)
            continue;
        if (__builtin_mul_overflow(v, units[i].factor, &v))
            return -ERANGE;
        *ret = v;
        return 0;
    }
    return -EINVAL;
}

int parse_bytes(const char *s, uint64_t *ret)
{
    static const struct unit units[] = {{"", 1}, {"K", 1ull << 10}, {"M", 1ull << 20}, {"G", 1ull << 30}, {"T", 1ull << 40}};
    return with_unit(s, units, ELEMENTS(units), ret);
}

int parse_count(const char *s, uint64_t *ret)
{
    static const struct unit units[] = {{"", 1}, {"K", 1000}, {"M", 1000000}, {"G", 1000000000}};
    return with_unit(s, units, ELEMENTS(units), ret);
}

int parse_usec(const char *s, uint64_t *ret)
{
    static const struct unit units[] = {{"", 1000000},      {"us", 1},           {"ms", 1000},
                                        {"s", 1000000},     {"sec", 1000000},    {"min", 60000000},
                                        {"m", 60000000},    {"h", 3600000000ull}, {"d", 86400000000ull}};
    return with_unit(s, units, ELEMENTS(units), ret);
}

int parse_bool(const char *s)
{
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false", "off", "0"};

    for (size_t i = 0; i < ELEMENTS(yes); i++) {
        if (strcasecmp(s, yes[i]) == 0)
            return 1;
        if (strcasecmp(s, no[i]) == 0)
            return 0;
    }
    return -EINVAL;
}
