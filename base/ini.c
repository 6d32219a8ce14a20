/* SPDX-License-Identifier: MIT */
/* See ini.h. */
#include "base/ini.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/utf8.h"

#define LINE_MAX_BYTES 4096

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    size_t n = strlen(s);
    while (n > 0 && isspace((unsigned char)s[n - 1]))
        s[--n] = '\0';
    return s;
}

/* Cut a comment off: # or ; that begins the line or follows white space. */
static void strip_comment(char *s)
{
    for (char *p = s; *p; p++)
        if ((*p == '#' || *p == ';') && (p == s || isspace((unsigned char)p[-1]))) {
            *p = '\0';
            return;
        }
}

static int read_line(char *line, char section[LINE_MAX_BYTES], unsigned number, ini_fn fn, void *userdata, struct fail *f)
{
    strip_comment(line);
    char *s = trim(line);
    size_t n = strlen(s);

    if (n == 0)
        return 0;
    if (s[0] == '[') {
        if (n < 3 || s[n - 1] != ']')
            return fail_set(f, EINVAL, "CONFIG", "found \"%.64s\"; expected [Section]", s);
        s[n - 1] = '\0';
        strcpy(section, trim(s + 1));
        return 0;
    }
    char *eq = strchr(s, '=');
    if (!eq || eq == s)
        return fail_set(f, EINVAL, "CONFIG", "found \"%.64s\"; expected Key=Value", s);
    *eq = '\0';
    return fn(section, trim(s), trim(eq + 1), number, userdata, f);
}

int ini_read(const char *name, const char *text, size_t n, ini_fn fn, void *userdata, struct fail *f)
{
    char section[LINE_MAX_BYTES] = "", line[LINE_MAX_BYTES];
    const char *end = text + n;
    unsigned number = 0;

    while (text < end) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        size_t length = (size_t)((stop ? stop : end) - text);
        int r;
        number++;
        if (length >= sizeof(line)) {
            r = fail_set(f, EINVAL, "CONFIG", "the line has %zu bytes; the most is %zu", length, sizeof(line) - 1);
        } else if (memchr(text, '\0', length) || utf8_invalid_at(text, length) >= 0) {
            r = fail_set(f, EINVAL, "CONFIG", "the line is not text in UTF-8");
        } else {
            memcpy(line, text, length);
            line[length] = '\0';
            r = read_line(line, section, number, fn, userdata, f);
        }
        if (r < 0) {
            fail_prefix(f, "%s:%u", name, number);
            return r;
        }
        text += length + 1;
    }
    return 0;
}
