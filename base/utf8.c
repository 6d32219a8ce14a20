/* SPDX-License-Identifier: MIT */
/* See utf8.h. Table 3-7 of the Unicode standard gives the ranges of the second byte. */
#include "base/utf8.h"

#include <stdbool.h>

static int length_of(unsigned char c)
{
    if (c < 0x80)
        return 1;
    if (c >= 0xc2 && c <= 0xdf)
        return 2;
    if (c >= 0xe0 && c <= 0xef)
        return 3;
    if (c >= 0xf0 && c <= 0xf4)
        return 4;
    return 0;
}

static bool second_ok(unsigned char first, unsigned char second)
{
    unsigned char lo = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char hi = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return second >= lo && second <= hi;
}

int utf8_decode(const char *s, size_t n, uint32_t *ret)
{
    const unsigned char *u = (const unsigned char *)s;
    int length = length_of(u[0]);

    if (length == 0)
        return 0;
    if (length == 1) {
        *ret = u[0];
        return 1;
    }
    uint32_t c = u[0] & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n)
            return -1;
        if (i == 1 ? !second_ok(u[0], u[1]) : (u[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (u[i] & 0x3f);
    }
    *ret = c;
    return length;
}

ssize_t utf8_invalid_at(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int length = utf8_decode(s + i, n - i, &c);
        if (length <= 0)
            return (ssize_t)i;
        i += (size_t)length;
    }
    return -1;
}

size_t utf8_whole(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        uint32_t c;
        if (((unsigned char)s[n - back] & 0xc0) == 0x80)
            continue;
        return utf8_decode(s + n - back, back, &c) == -1 ? n - back : n;
    }
    return n;
}

size_t utf8_encode(uint32_t c, char ret[4])
{
    if (c < 0x80) {
        ret[0] = (char)c;
        return 1;
    }
    size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1; c >>= 6)
        ret[i] = (char)(0x80 | (c & 0x3f));
    ret[0] = (char)(lead[length] | c);
    return length;
}
