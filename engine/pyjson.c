/* SPDX-License-Identifier: MIT */
/* See pyjson.h. A number N becomes the string "\1N" + its text before jansson reads it; a string that begins with \1
 * becomes "\1S" + itself, so the two cannot be confused. */
#include "engine/pyjson.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INTEGER_DIGITS_MAX 4300 /* Python's own limit; also keeps printing linear */

static size_t span_digits(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && isdigit((unsigned char)s[i]))
        i++;
    return i;
}

/* Length of the JSON number at s, 0 if there is none. */
static size_t number_length(const char *s, size_t n, bool loose)
{
    size_t i = n > 0 && s[0] == '-';

    if (loose && n - i >= 8 && memcmp(s + i, "Infinity", 8) == 0)
        return i + 8;
    if (loose && i == 0 && n >= 3 && memcmp(s, "NaN", 3) == 0)
        return 3;
    size_t digits = span_digits(s + i, n - i);
    if (digits == 0 || (digits > 1 && s[i] == '0'))
        return 0;
    i += digits;
    bool whole = true;
    if (i < n && s[i] == '.') {
        size_t fraction = span_digits(s + i + 1, n - i - 1);
        if (fraction == 0)
            return 0;
        i += 1 + fraction;
        whole = false;
    }
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        size_t sign = i + 1 < n && (s[i + 1] == '+' || s[i + 1] == '-');
        size_t exponent = span_digits(s + i + 1 + sign, n - i - 1 - sign);
        if (exponent == 0)
            return 0;
        i += 1 + sign + exponent;
        whole = false;
    }
    return whole && digits > INTEGER_DIGITS_MAX ? 0 : i;
}

static bool colon_follows(const char *s, size_t n)
{
    while (n > 0 && (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r'))
        s++, n--;
    return n > 0 && *s == ':';
}

/* Copies the string literal at s (its length, up to n when it does not end). */
static int protect_string(const char *s, size_t n, struct buf *out, size_t *ret_n)
{
    size_t i = 1;

    while (i < n && s[i] != '"')
        i += s[i] == '\\' && i + 1 < n ? 2 : 1;
    i = MIN(i + 1, n);
    *ret_n = i;
    int r = buf_append(out, "\"", 1);
    if (r == 0 && i > 7 && memcmp(s + 1, "\\u0001", 6) == 0)
        r = buf_append_str(out, "\\u0001S");
    return r < 0 ? r : buf_append(out, s + 1, i - 1);
}

/* Rewrites text so that each number is a marked string. What is not JSON stays so. */
static int protect(const char *text, size_t n, bool loose, struct buf *out)
{
    for (size_t i = 0, took; i < n; i += took) {
        int r;
        char c = text[i];
        if (c == '"') {
            r = protect_string(text + i, n - i, out, &took);
        } else if (c == '-' || isdigit((unsigned char)c) || c == 'N' || c == 'I') {
            took = number_length(text + i, n - i, loose);
            if (took == 0 || colon_follows(text + i + took, n - i - took))
                return -EINVAL;
            r = buf_append_str(out, "\"\\u0001N");
            r = r < 0 ? r : buf_append(out, text + i, took);
            r = r < 0 ? r : buf_append(out, "\"", 1);
        } else {
            for (took = 1; i + took < n && !strchr("\"-0123456789NI", text[i + took]);)
                took++;
            r = buf_append(out, text + i, took);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

int pyjson_load(const char *text, size_t n, enum pyjson_rules rules, json_t **ret)
{
    _cleanup_buf_ struct buf safe = BUF_INIT;
    json_error_t e;

    int r = protect(text, n, rules == PYJSON_LOOSE, &safe);
    if (r < 0)
        return r;
    size_t flags = JSON_DECODE_ANY | JSON_ALLOW_NUL | (rules == PYJSON_STRICT ? JSON_REJECT_DUPLICATES : 0);
    json_t *v = json_loadb(safe.data ? safe.data : "", safe.size, flags, &e);
    if (!v)
        return json_error_code(&e) == json_error_out_of_memory ? -ENOMEM : -EINVAL;
    *ret = v;
    return 0;
}

static bool is_number(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && s[0] == '\1' && s[1] == 'N';
}

const char *pyjson_key(const char *key)
{
    return key[0] == '\1' && key[1] == 'S' ? key + 2 : key;
}

const char *pyjson_string(const json_t *v, size_t *ret_n)
{
    const char *s = json_string_value(v);

    if (!s || is_number(v))
        return NULL;
    const char *text = pyjson_key(s);
    *ret_n = json_string_length(v) - (size_t)(text - s);
    return text;
}

/* ---------------------------------------------------------------- printing */

/* Whether the digits of e, or these with the last one up by one, read back as d. Up is needed only at powers of two, where
 * the nearest number of so few digits lies too far below and the next one does not. */
static bool reads_back(char *e, double d)
{
    if (strtod(e, NULL) == d)
        return true;
    char *last = strchr(e, 'e') - 1;
    if (*last == '9')
        return false;
    (*last)++;
    return strtod(e, NULL) == d;
}

/* Python's repr of a finite double: fewest digits that read back the same; an exponent below 1e-4 and from 1e16 on. */
static int put_double(double d, struct buf *out)
{
    char e[40], digit[20];
    int n = 0;

    if (isnan(d) || isinf(d))
        return buf_append_str(out, isnan(d) ? "NaN" : d < 0 ? "-Infinity" : "Infinity");
    for (int precision = 0; precision < 17; precision++) {
        snprintf(e, sizeof(e), "%.*e", precision, d < 0 ? -d : d);
        if (reads_back(e, d < 0 ? -d : d))
            break;
    }
    const char *p = e;
    for (; *p != 'e'; p++)
        if (isdigit((unsigned char)*p))
            digit[n++] = *p;
    int exponent = atoi(p + 1);
    while (n > 1 && digit[n - 1] == '0')
        n--;
    const char *sign = signbit(d) ? "-" : "";
    if (exponent < -4 || exponent >= 16)
        return buf_printf(out, "%s%c%s%.*se%+03d", sign, digit[0], n > 1 ? "." : "", n - 1, digit + 1, exponent);
    if (exponent < 0)
        return buf_printf(out, "%s0.%.*s%.*s", sign, -exponent - 1, "000", n, digit);
    if (exponent >= n - 1)
        return buf_printf(out, "%s%.*s%.*s.0", sign, n, digit, exponent - n + 1, "0000000000000000");
    return buf_printf(out, "%s%.*s.%.*s", sign, exponent + 1, digit, n - exponent - 1, digit + exponent + 1);
}

static int put_number(const char *s, struct buf *out)
{
    if (strcmp(s, "-0") == 0)
        return buf_append_str(out, "0");
    if (strpbrk(s, ".eENI"))
        return put_double(strtod(s, NULL), out);
    return buf_append_str(out, s);
}

int pyjson_escape(const char *s, size_t n, struct buf *out)
{
    static const char names[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";

    for (size_t i = 0, run; i < n; i += run) {
        const char *name = s[i] ? strchr(names, s[i]) : NULL;
        int r;
        for (run = 0; i + run < n; run++) {
            unsigned char c = (unsigned char)s[i + run];
            if (c < 0x20 || c == '"' || c == '\\')
                break;
        }
        if (run)
            r = buf_append(out, s + i, run);
        else if (run = 1, name)
            r = buf_printf(out, "\\%c", letters[name - names]);
        else
            r = buf_printf(out, "\\u%04x", (unsigned)(unsigned char)s[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

int pyjson_quote(const char *s, size_t n, struct buf *out)
{
    int r = buf_append(out, "\"", 1);
    r = r < 0 ? r : pyjson_escape(s, n, out);
    return r < 0 ? r : buf_append(out, "\"", 1);
}

static int dump_object(const json_t *v, struct buf *out)
{
    const char *key;
    json_t *value;
    const char *between = "{";

    json_object_foreach((json_t *)(uintptr_t)v, key, value) {
        const char *k = pyjson_key(key);
        int r = buf_append_str(out, between);
        r = r < 0 ? r : pyjson_quote(k, strlen(k), out);
        r = r < 0 ? r : buf_append(out, ": ", 2);
        r = r < 0 ? r : pyjson_dump(value, out);
        if (r < 0)
            return r;
        between = ", ";
    }
    return buf_append_str(out, between[0] == '{' ? "{}" : "}");
}

static int dump_array(const json_t *v, struct buf *out)
{
    size_t i;
    json_t *value;
    int r = buf_append(out, "[", 1);

    json_array_foreach(v, i, value) {
        r = r < 0 || i == 0 ? r : buf_append(out, ", ", 2);
        r = r < 0 ? r : pyjson_dump(value, out);
        if (r < 0)
            return r;
    }
    return r < 0 ? r : buf_append(out, "]", 1);
}

int pyjson_dump(const json_t *v, struct buf *out)
{
    size_t n;

    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return dump_object(v, out);
    case JSON_ARRAY:
        return dump_array(v, out);
    case JSON_STRING:
        if (is_number(v))
            return put_number(json_string_value(v) + 2, out);
        const char *s = pyjson_string(v, &n);
        return pyjson_quote(s, n, out);
    case JSON_TRUE:
        return buf_append_str(out, "true");
    case JSON_FALSE:
        return buf_append_str(out, "false");
    case JSON_NULL:
        return buf_append_str(out, "null");
    default: /* pyjson_load makes no numbers */
        return -EINVAL;
    }
}
