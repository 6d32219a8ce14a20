/* SPDX-License-Identifier: MIT */
/*
 * What dsv4 and dsv4ctl share: options, exit codes, error messages, text made safe for terminals, tables. Both use
 * libdsv4 only through dsv4.h.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/macros.h"
#include "client/dsv4.h"

/* Exit codes, in part those of sysexits.h. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 64,
    EXIT_UNAVAILABLE = 69, /* no service there */
    EXIT_TRY_LATER = 75,
    EXIT_DENIED = 77,
    EXIT_INTERRUPTED = 130
};

extern const char *tool_name; /* "dsv4 run", for messages; set by main */

/* "dsv4 run: message" on stderr; returns code. */
int tool_fail(int code, const char *fmt, ...) PRINTF(2, 3);
/* The error, what to do about it where that is known; returns its exit code. */
int tool_error(const struct dsv4_error *e);
int tool_exit_code(const struct dsv4_error *e);
/* Connect to the service, as program "name version". EXIT_OK, or the exit code after a message. */
int tool_connect(struct dsv4 **ret);
/* All of a file, or of stdin when name is NULL or "-"; at most INPUT_MAX_BYTES. EXIT_OK or after a message. */
#define INPUT_MAX_BYTES ((size_t)256 << 20)
int tool_read(const char *name, struct buf *b);
/* Arguments joined by spaces. -ENOMEM. */
int tool_join(char **args, struct buf *b);

#define _cleanup_json_ _cleanup_(json_decrefp)

/* ---- options.c: one table per command, for getopt_long and for --help */

struct option_spec {
    int value;               /* a letter, or > 255: has no short form */
    const char *name;        /* NULL ends the table */
    const char *argument;    /* NULL: takes none */
    const char *help;
};
enum { OPTION_FIRST = 256, OPTION_JSON = 1000, OPTION_NO_LEGEND, OPTION_NO_PAGER, OPTION_VERSION };
#define OPTIONS_COMMON \
    {'h', "help", NULL, "Show this help"}, {OPTION_VERSION, "version", NULL, "Show the version"}
#define OPTIONS_TABLE                                                                \
    {OPTION_JSON, "json", "MODE", "Print JSON: pretty, short (one line) or off"},    \
        {OPTION_NO_LEGEND, "no-legend", NULL, "Leave out the table's headings"}

struct verb {
    const char *name;
    const char *arguments;   /* "[PROMPT...]" */
    const char *summary;     /* one sentence */
    const struct option_spec *options;
    int (*run)(const struct verb *v, int argc, char **argv); /* argv[0] is the verb */
};
/* getopt_long: the next option's value, -1 at the end. An option that is not there ends the process with EXIT_USAGE;
 * --help and --version are answered here and end it with 0: both are the business of a main program. */
int options_next(const struct verb *v, int argc, char **argv);
/* Help for the program: its verbs. */
void options_help_verbs(const char *program, const char *summary, const struct verb *const *verbs,
                        const struct option_spec *global);
/* Finds the verb in argv and runs it; no verb: the one named default_verb, or the help. Exit code. */
int options_main(const char *program, const char *summary, const struct verb *const *verbs,
                 const char *default_verb, const struct option_spec *global, int argc, char **argv);
/* The option's argument as a number; ends the process with EXIT_USAGE and the range if it is none. */
uint64_t option_u64(const char *name, const char *s, uint64_t min, uint64_t max);
double option_double(const char *name, const char *s, double min, double max);

/* ---- visible.c: text from elsewhere, for a terminal */

/* Append text with everything that a terminal would act on made visible: control characters as ^X, others and what is
 * not UTF-8 as <U+009B> or <9B>, text direction overrides too. Line feed and tab stay. */
int visible_append(struct buf *b, const char *s, size_t n);
int visible_print(FILE *f, const char *s, bool terminal); /* raw if not a terminal; 0 or a negative errno */

/* ---- table.c: rows of JSON as a table or as JSON */

enum json_mode { JSON_OFF, JSON_PRETTY, JSON_SHORT };
enum column_kind { COLUMN_TEXT, COLUMN_NUMBER, COLUMN_BYTES, COLUMN_AGE };
struct column {
    const char *key, *title;
    enum column_kind kind;
};
enum json_mode option_json_mode(const char *s); /* ends the process with EXIT_USAGE if it is none */
int json_print(const json_t *j, enum json_mode mode);
/* rows: an array of objects; columns end with a NULL key. Exit code. */
int table_print(const json_t *rows, const struct column *columns, enum json_mode mode, bool legend);
void format_bytes(char *s, size_t n, uint64_t bytes);
void format_duration(char *s, size_t n, uint64_t usec);

/* ---- show.c: replies as JSON and as tables */

json_t *json_of_model(const struct dsv4_model *m);
json_t *json_of_session(const struct dsv4_session *s);
json_t *json_of_event(const struct dsv4_event *e);
json_t *json_of_error(const struct dsv4_error *e);
int show_models(struct dsv4 *c, enum json_mode mode, bool legend);
const char *model_state_name(enum dsv4_model_state s);
extern const struct column model_columns[], session_columns[];
