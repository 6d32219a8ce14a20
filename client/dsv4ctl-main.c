/* SPDX-License-Identifier: MIT */
/* dsv4ctl: look at the service. Over the client's socket: what it shows is what this user may see. */
#include "client/tool.h"

#include <getopt.h>
#include <locale.h>
#include <stdio.h>
#include <time.h>

static const struct option_spec options[] = {
    OPTIONS_TABLE, {OPTION_NO_PAGER, "no-pager", NULL, "Accepted for scripts; no pager is used"}, OPTIONS_COMMON, {0}};

struct view {
    struct dsv4 *c;
    enum json_mode mode;
    bool legend;
};

static void view_deinit(struct view *w)
{
    dsv4_unref(w->c);
}

/* Options, then the connection. Exit code. */
static int view_begin(struct view *w, const struct verb *v, int argc, char **argv)
{
    int o;

    *w = (struct view){.legend = true};
    while ((o = options_next(v, argc, argv)) >= 0) {
        if (o == OPTION_JSON)
            w->mode = option_json_mode(optarg);
        else if (o == OPTION_NO_LEGEND)
            w->legend = false;
    }
    if (argv[optind])
        return tool_fail(EXIT_USAGE, "no arguments are expected");
    return tool_connect(&w->c);
}

static json_t *json_of_status(const struct dsv4_status *s)
{
    json_t *models = json_array();

    for (size_t i = 0; i < dsv4_status_get_n_models(s); i++)
        json_array_append_new(models, json_of_model(dsv4_status_get_model(s, i)));
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:o}", "version", dsv4_status_get_version(s), "started_usec",
                     (json_int_t)dsv4_status_get_started_usec(s), "running", (json_int_t)dsv4_status_get_running(s),
                     "queued", (json_int_t)dsv4_status_get_queued(s), "sessions",
                     (json_int_t)dsv4_status_get_sessions(s), "models", models);
}

static void print_summary(const struct dsv4_status *s)
{
    time_t started = (time_t)(dsv4_status_get_started_usec(s) / 1000000);
    uint64_t up = (uint64_t)MAX(time(NULL) - started, 0);
    char since[64] = "", duration[32];
    struct tm tm;

    if (localtime_r(&started, &tm))
        strftime(since, sizeof(since), "%Y-%m-%d %H:%M:%S", &tm);
    format_duration(duration, sizeof(duration), up * 1000000);
    fputs("dsv4d ", stdout);
    visible_print(stdout, dsv4_status_get_version(s), true);
    printf(", running since %s (%s)\n", since, duration);
    printf("Requests: %u running, %u waiting\nSessions: %u of yours\n\n", dsv4_status_get_running(s),
           dsv4_status_get_queued(s), dsv4_status_get_sessions(s));
}

static int status(const struct verb *v, int argc, char **argv)
{
    _cleanup_(dsv4_status_freep) struct dsv4_status *s = NULL;
    _cleanup_(view_deinit) struct view w;

    int r = view_begin(&w, v, argc, argv);
    if (r != EXIT_OK)
        return r;
    if (dsv4_get_status(w.c, &s) < 0)
        return tool_error(dsv4_get_error(w.c));
    _cleanup_json_ json_t *j = json_of_status(s);
    if (w.mode != JSON_OFF)
        return json_print(j, w.mode);
    print_summary(s);
    return table_print(json_object_get(j, "models"), model_columns, JSON_OFF, w.legend);
}

static int list_models(const struct verb *v, int argc, char **argv)
{
    _cleanup_(view_deinit) struct view w;

    int r = view_begin(&w, v, argc, argv);
    return r != EXIT_OK ? r : show_models(w.c, w.mode, w.legend);
}

static int sessions(const struct verb *v, int argc, char **argv)
{
    _cleanup_(dsv4_sessions_freep) struct dsv4_sessions *list = NULL;
    _cleanup_(view_deinit) struct view w;
    _cleanup_json_ json_t *rows = json_array();

    int r = view_begin(&w, v, argc, argv);
    if (r != EXIT_OK)
        return r;
    if (dsv4_list_sessions(w.c, &list) < 0)
        return tool_error(dsv4_get_error(w.c));
    for (size_t i = 0; i < dsv4_sessions_get_size(list); i++)
        json_array_append_new(rows, json_of_session(dsv4_sessions_get(list, i)));
    return table_print(rows, session_columns, w.mode, w.legend);
}

int main(int argc, char **argv)
{
    static const struct verb verb_status = {"status", "", "Show what the service does (the default)", options, status};
    static const struct verb verb_models = {"list-models", "", "List the models", options, list_models};
    static const struct verb verb_sessions = {"sessions", "", "List your sessions", options, sessions};
    static const struct verb *const verbs[] = {&verb_status, &verb_models, &verb_sessions, NULL};

    setlocale(LC_CTYPE, "");
    return options_main("dsv4ctl", "Look at the dsv4d service of this host.", verbs, "status", options, argc, argv);
}
