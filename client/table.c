/* SPDX-License-Identifier: MIT */
/*
 * Tables through libsmartcols, JSON through jansson, both from the same rows. libsmartcols could print JSON, too, but
 * knows neither the one-line form nor nested lists.
 */
#include "client/tool.h"

#include <inttypes.h>
#include <libsmartcols.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum json_mode option_json_mode(const char *s)
{
    static const char *const names[] = {"off", "pretty", "short"};

    for (size_t i = 0; i < ELEMENTS(names); i++)
        if (strcmp(s, names[i]) == 0)
            return (enum json_mode)i;
    exit(tool_fail(EXIT_USAGE, "--json=%s: it is pretty, short or off", s));
}

int json_print(const json_t *j, enum json_mode mode)
{
    size_t flags = mode == JSON_PRETTY ? JSON_INDENT(4) : JSON_COMPACT;

    if (!j || json_dumpf(j, stdout, flags) < 0 || putchar('\n') == EOF || fflush(stdout) != 0)
        return tool_fail(EXIT_FAILED, "the JSON cannot be written");
    return EXIT_OK;
}

void format_bytes(char *s, size_t n, uint64_t bytes)
{
    static const char units[] = "KMGT";
    double v = (double)bytes;
    int u = -1;

    while (v >= 1024 && u < 3) {
        v /= 1024;
        u++;
    }
    if (u < 0)
        snprintf(s, n, "%" PRIu64, bytes);
    else
        snprintf(s, n, "%.1f%c", v, units[u]);
}

void format_duration(char *s, size_t n, uint64_t usec)
{
    uint64_t sec = usec / 1000000;

    if (sec < 60)
        snprintf(s, n, "%" PRIu64 " s", sec);
    else if (sec < 3600)
        snprintf(s, n, "%" PRIu64 " min", sec / 60);
    else if (sec < 48 * 3600)
        snprintf(s, n, "%" PRIu64 " h", sec / 3600);
    else
        snprintf(s, n, "%" PRIu64 " days", sec / 86400);
}

static void format_age(char *s, size_t n, uint64_t then_usec)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t now = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    format_duration(s, n, now > then_usec ? now - then_usec : 0);
    strncat(s, " ago", n - strlen(s) - 1);
}

/* The cell's text; what is not known is "-". */
static void format_cell(const json_t *v, enum column_kind kind, struct buf *b)
{
    char s[64] = "-";

    if (json_is_array(v)) {
        for (size_t i = 0; i < json_array_size(v); i++)
            buf_printf(b, "%s%s", i ? " " : "", json_string_value(json_array_get(v, i)));
    } else if (json_is_string(v)) {
        buf_append_str(b, json_string_value(v));
    } else if (json_is_integer(v)) {
        uint64_t number = (uint64_t)json_integer_value(v);
        if (kind == COLUMN_BYTES)
            format_bytes(s, sizeof(s), number);
        else if (kind == COLUMN_AGE)
            format_age(s, sizeof(s), number);
        else
            snprintf(s, sizeof(s), "%" PRIu64, number);
        buf_append_str(b, s);
    }
    if (b->size == 0)
        buf_append_str(b, "-");
}

static int fill(struct libscols_table *t, const json_t *rows, const struct column *columns)
{
    for (const struct column *c = columns; c->key; c++)
        if (!scols_table_new_column(t, c->title, 0, c->kind == COLUMN_TEXT ? 0 : SCOLS_FL_RIGHT))
            return -1;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        struct libscols_line *line = scols_table_new_line(t, NULL);
        if (!line)
            return -1;
        for (size_t k = 0; columns[k].key; k++) {
            _cleanup_buf_ struct buf b = BUF_INIT;
            format_cell(json_object_get(json_array_get(rows, i), columns[k].key), columns[k].kind, &b);
            if (!b.data || scols_line_set_data(line, k, b.data) < 0)
                return -1;
        }
    }
    return 0;
}

int table_print(const json_t *rows, const struct column *columns, enum json_mode mode, bool legend)
{
    if (mode != JSON_OFF)
        return json_print(rows, mode);
    struct libscols_table *t = scols_new_table();
    if (!t || fill(t, rows, columns) < 0) {
        scols_unref_table(t);
        return tool_fail(EXIT_FAILED, "out of memory");
    }
    scols_table_enable_noheadings(t, !legend);
    int r = scols_print_table(t);
    scols_unref_table(t);
    return r < 0 || fflush(stdout) != 0 ? tool_fail(EXIT_FAILED, "the table cannot be written") : EXIT_OK;
}
