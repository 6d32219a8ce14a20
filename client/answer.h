/* SPDX-License-Identifier: MIT */
/* Getting one answer and showing it as it comes: what "dsv4 run" and "dsv4 chat" have in common. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "client/dsv4.h"
#include "client/tool.h"

/* ---- progress.c: one line on stderr that is rewritten; nothing at all unless stderr is a terminal */

struct progress {
    bool terminal, shown;
    uint64_t since_usec;  /* quick work shows no bar; 0: nothing has begun */
};
uint64_t clock_usec(void);
void progress_init(struct progress *p);
/* What is being done and how much of it; bytes: total and done are bytes. */
void progress_show(struct progress *p, const char *what, uint64_t done, uint64_t total, bool bytes);
void progress_clear(struct progress *p);

/* ---- model.c */

/* The model's name: wanted, or the only one, or the one with alias "default"; malloc'ed. Exit code. */
int model_choose(struct dsv4 *c, const char *wanted, char **ret);
/* Wait while it is loading, with a bar. Exit code; a model that failed says why. */
int model_wait(struct dsv4 *c, const char *name, struct progress *p);

/* ---- answer.c */

struct answer {
    struct dsv4 *c;
    struct dsv4_generate *g;
    const char *system;                      /* NULL: none */
    int reasoning;                           /* enum dsv4_reasoning, -1: the model's default */
    bool json, stats, wait;
    bool reasoning_shown;
    bool out_terminal;
    struct progress progress;
    /* while it runs */
    bool dim;                                /* the terminal shows reasoning */
    bool line_open;                          /* the last character was no line feed */
    bool loading;                            /* refused because the model is still loading */
    int exit_code;
};
/* Options of both commands; answer_option() takes their values. */
#define ANSWER_OPTIONS                                                                             \
    {'m', "model", "NAME", "Which model; default: the only one, or the one with alias default"},   \
        {'s', "system", "TEXT", "System message"},                                                 \
        {'r', "reasoning", "EFFORT", "How much to think first: none, high, max"},                  \
        {OPTION_NO_REASONING, "no-reasoning", NULL, "Do not show the reasoning"},                  \
        {'n', "max-tokens", "N", "Stop after N tokens"},                                           \
        {'t', "temperature", "T", "0 (always the likeliest token) to 2"},                          \
        {OPTION_TOP_P, "top-p", "P", "Only the likeliest tokens that together reach P"},           \
        {OPTION_TOP_K, "top-k", "K", "Only the K likeliest tokens; 0: all"},                       \
        {OPTION_MIN_P, "min-p", "P", "Only tokens at least P times as likely as the likeliest"},   \
        {OPTION_SEED, "seed", "N", "Same seed, same input: same text"},                            \
        {OPTION_STOP, "stop", "TEXT", "Stop before this text; may be given up to 16 times"},       \
        {OPTION_RESUME, "resume", "SECONDS", "Go on this long when the connection breaks; default 0"},       \
        {OPTION_STATS, "stats", NULL, "Say how fast it was (default on a terminal)"},              \
        {OPTION_NO_STATS, "no-stats", NULL, "Do not"},                                             \
        {OPTION_NO_WAIT, "no-wait", NULL, "Do not wait for a model that is loading: exit 75"}
enum {
    OPTION_NO_REASONING = OPTION_FIRST,
    OPTION_TOP_P,
    OPTION_TOP_K,
    OPTION_MIN_P,
    OPTION_SEED,
    OPTION_STOP,
    OPTION_RESUME,
    OPTION_STATS,
    OPTION_NO_STATS,
    OPTION_NO_WAIT,
    OPTION_OWN /* first value free for a command's own options */
};
int answer_init(struct answer *a);           /* exit code */
void answer_deinit(struct answer *a);
/* 1 if it was one of ours. *model is set by --model. */
int answer_option(struct answer *a, int option, const char *value, const char **model);
/* Generate with a->g, show it; Ctrl-C cancels (EXIT_INTERRUPTED), twice: does not wait for the end. *ret_request (may be
 * NULL) is the request, also when it was cancelled. Exit code, after a message. */
int answer_run(struct answer *a, const char *model, struct dsv4_request **ret_request);
