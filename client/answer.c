/* SPDX-License-Identifier: MIT */
/* See answer.h. */
#include "client/answer.h"

#include <errno.h>
#include <float.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>

#define DIM "\033[2m"
#define PLAIN "\033[0m"

int answer_init(struct answer *a)
{
    *a = (struct answer){.reasoning = -1, .wait = true, .reasoning_shown = true};
    a->out_terminal = isatty(STDOUT_FILENO);
    a->stats = isatty(STDOUT_FILENO) && isatty(STDERR_FILENO);
    progress_init(&a->progress);
    return dsv4_generate_new(&a->g) < 0 ? tool_fail(EXIT_FAILED, "out of memory") : EXIT_OK;
}

void answer_deinit(struct answer *a)
{
    progress_clear(&a->progress);
    dsv4_generate_unref(a->g);
    dsv4_unref(a->c);
}

static int reasoning_of(const char *s)
{
    static const char *const names[] = {"none", "high", "max"};

    for (size_t i = 0; i < ELEMENTS(names); i++)
        if (strcmp(s, names[i]) == 0)
            return (int)i;
    exit(tool_fail(EXIT_USAGE, "--reasoning=%s: it is none, high or max", s));
}

static int sampling_option(struct answer *a, int option, const char *value)
{
    switch (option) {
    case 'n':
        return dsv4_generate_set_max_tokens(a->g, (uint32_t)option_u64("max-tokens", value, 1, UINT32_MAX));
    case 't':
        return dsv4_generate_set_temperature(a->g, (float)option_double("temperature", value, 0, 2));
    case OPTION_TOP_P:
        return dsv4_generate_set_top_p(a->g, (float)option_double("top-p", value, FLT_MIN, 1));
    case OPTION_TOP_K:
        return dsv4_generate_set_top_k(a->g, (uint32_t)option_u64("top-k", value, 0, UINT32_MAX));
    case OPTION_MIN_P:
        return dsv4_generate_set_min_p(a->g, (float)option_double("min-p", value, 0, 0.999999));
    case OPTION_SEED:
        return dsv4_generate_set_seed(a->g, option_u64("seed", value, 0, UINT64_MAX));
    case OPTION_STOP:
        return dsv4_generate_add_stop(a->g, value);
    case OPTION_RESUME:
        return dsv4_generate_set_resume_seconds(a->g, (uint32_t)option_u64("resume", value, 0, 3600));
    default:
        return 1;
    }
}

int answer_option(struct answer *a, int option, const char *value, const char **model)
{
    switch (option) {
    case 'm':
        *model = value;
        return 1;
    case 's':
        a->system = value;
        return 1;
    case 'r':
        a->reasoning = reasoning_of(value);
        return 1;
    case OPTION_NO_REASONING:
        a->reasoning_shown = false;
        return 1;
    case OPTION_STATS:
    case OPTION_NO_STATS:
        a->stats = option == OPTION_STATS;
        return 1;
    case OPTION_NO_WAIT:
        a->wait = false;
        return 1;
    default:
        break;
    }
    int r = sampling_option(a, option, value);
    if (r < 0)
        exit(tool_fail(EXIT_FAILED, "out of memory"));
    return r == 0;
}

/* ---------------------------------------------------------------- showing */

static void show_piece(struct answer *a, const char *text, bool reasoning)
{
    if (!text || !text[0])
        return;
    if (reasoning && (!a->reasoning_shown || !a->out_terminal))
        return; /* into a pipe goes the answer only */
    if (a->dim != reasoning && a->out_terminal) {
        /* the answer begins on a line of its own */
        fputs(reasoning ? DIM : a->line_open ? PLAIN "\n\n" : PLAIN, stdout);
        a->dim = reasoning;
    }
    visible_print(stdout, text, a->out_terminal);
    a->line_open = text[strlen(text) - 1] != '\n';
}

static void show_tool_call(struct answer *a, const struct dsv4_event *e)
{
    const char *id, *name, *arguments;
    uint32_t call;

    if (!dsv4_event_get_tool_call(e, &call, &id, &name, &arguments))
        return;
    if (name) {
        show_piece(a, a->line_open ? "\n" : "", false);
        show_piece(a, name, false);
        show_piece(a, " ", false);
    }
    show_piece(a, arguments, false);
}

static void show_stats(const struct answer *a, const struct dsv4_event *e)
{
    uint64_t output = dsv4_event_get_count(e, DSV4_COUNT_OUTPUT);
    uint64_t computed = dsv4_event_get_count(e, DSV4_COUNT_INPUT_COMPUTED);
    uint64_t cached = dsv4_event_get_count(e, DSV4_COUNT_INPUT_CACHED);
    double decode = (double)dsv4_event_get_usec(e, DSV4_PHASE_DECODE) / 1e6;
    double prefill = (double)dsv4_event_get_usec(e, DSV4_PHASE_PREFILL) / 1e6;

    if (!a->stats)
        return;
    fprintf(stderr, "%llu tokens in %.2f s", (unsigned long long)output, decode);
    if (decode > 0)
        fprintf(stderr, " (%.1f tokens/s)", (double)output / decode);
    fprintf(stderr, "; prompt %llu tokens", (unsigned long long)(computed + cached));
    if (cached > 0)
        fprintf(stderr, ", %llu of them cached", (unsigned long long)cached);
    fprintf(stderr, ", read in %.2f s\n", prefill);
}

/* Leave the terminal as it was: no dimming, the cursor on a new line. */
static void end_output(struct answer *a)
{
    if (a->out_terminal && a->dim)
        fputs(PLAIN, stdout);
    if (a->out_terminal && a->line_open)
        fputc('\n', stdout);
    a->dim = a->line_open = false;
    fflush(stdout);
}

static void show_json(const struct dsv4_event *e)
{
    _cleanup_json_ json_t *j = json_of_event(e);
    json_print(j, JSON_SHORT);
}

static int end_with_error(struct answer *a, const struct dsv4_error *e)
{
    a->loading = strcmp(dsv4_error_get_code(e), "MODEL_LOADING") == 0 && a->wait;
    if (a->loading)
        return EXIT_TRY_LATER;
    if (a->json) {
        _cleanup_json_ json_t *j = json_of_error(e);
        json_print(j, JSON_SHORT);
    }
    return tool_error(e);
}

static void show_waiting(struct answer *a, const struct dsv4_event *e)
{
    uint32_t position, done, total;
    char text[64];

    if (dsv4_event_get_queue(e, &position, NULL) >= 0) {
        snprintf(text, sizeof(text), "Waiting, place %u in the queue", position);
        progress_show(&a->progress, text, 0, 0, false);
    } else if (dsv4_event_get_prefill(e, &done, &total, NULL) >= 0) {
        progress_show(&a->progress, "Reading the prompt", done, total, false);
    }
}

static void show_event(struct answer *a, const struct dsv4_event *e)
{
    enum dsv4_event_type type = dsv4_event_get_type(e);
    enum dsv4_finish_reason reason;

    if (type == DSV4_EVENT_DELTA || type == DSV4_EVENT_FINISHED || type == DSV4_EVENT_ERROR)
        progress_clear(&a->progress);
    if (type == DSV4_EVENT_ERROR) {
        end_output(a);
        a->exit_code = end_with_error(a, dsv4_event_get_error(e));
        return;
    }
    if (a->json) {
        show_json(e);
    } else if (type == DSV4_EVENT_DELTA) {
        show_piece(a, dsv4_event_get_reasoning(e), true);
        show_piece(a, dsv4_event_get_content(e), false);
        show_tool_call(a, e);
    } else {
        show_waiting(a, e);
    }
    if (type == DSV4_EVENT_FINISHED) {
        end_output(a);
        show_stats(a, e);
        if (dsv4_event_get_finish_reason(e, &reason) >= 0 && reason == DSV4_FINISH_CANCELLED)
            a->exit_code = EXIT_INTERRUPTED;
    }
    fflush(stdout);
}

/* ---------------------------------------------------------------- running */

/* Until the connection or the signal has something; -1 when there is nothing to wait for any more. */
static int wait_for_either(struct dsv4 *c, int signal_fd)
{
    struct pollfd p[2] = {{.fd = dsv4_get_fd(c), .events = (short)dsv4_get_events(c)},
                          {.fd = signal_fd, .events = POLLIN}};
    uint64_t until, now = clock_usec();

    if (p[0].fd == -ENOTCONN)
        return -1;
    dsv4_get_timeout(c, &until);
    uint64_t left = until > now ? until - now : 0;
    struct timespec t = {.tv_sec = (time_t)(left / 1000000), .tv_nsec = (long)(left % 1000000) * 1000};
    if (ppoll(p, 2, until == UINT64_MAX ? NULL : &t, NULL) < 0 && errno != EINTR)
        return -1;
    return (p[1].revents & POLLIN) != 0;
}

/* All events of the request. A second Ctrl-C ends it without waiting for the answer to the first. */
static void pump(struct answer *a, struct dsv4_request *r, int signal_fd)
{
    struct signalfd_siginfo info;
    const struct dsv4_event *e;
    bool asked = false;

    for (;;) {
        int k = dsv4_request_try_next(r, &e);
        if (k == 0)
            return;
        if (k == 1) {
            show_event(a, e);
            continue;
        }
        k = dsv4_process(a->c);
        if (k > 0 || dsv4_request_is_done(r))
            continue;
        k = k == 0 ? wait_for_either(a->c, signal_fd) : k;
        if (k < 0) {
            a->exit_code = tool_error(dsv4_get_error(a->c));
            return;
        }
        if (k == 1 && read(signal_fd, &info, sizeof(info)) == sizeof(info)) {
            a->exit_code = EXIT_INTERRUPTED;
            if (asked)
                break;
            asked = true;
            dsv4_request_cancel(r);
        }
    }
    progress_clear(&a->progress);
    end_output(a);
}

static int once(struct answer *a, struct dsv4_request **ret_request)
{
    _cleanup_(dsv4_request_unrefp) struct dsv4_request *r = NULL;
    sigset_t interrupt, before;

    a->exit_code = EXIT_OK;
    a->loading = false;
    if (dsv4_generate_start(a->c, a->g, NULL, NULL, &r) < 0)
        return tool_error(dsv4_get_error(a->c));
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    _cleanup_close_ int signal_fd = signalfd(-1, &interrupt, SFD_CLOEXEC | SFD_NONBLOCK);
    pump(a, r, signal_fd);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (ferror(stdout) && a->exit_code == EXIT_OK)
        a->exit_code = tool_fail(EXIT_FAILED, "the answer cannot be written");
    if (ret_request)
        *ret_request = TAKE_PTR(r);
    return a->exit_code;
}

int answer_run(struct answer *a, const char *model, struct dsv4_request **ret_request)
{
    for (;;) {
        int r = a->wait ? model_wait(a->c, model, &a->progress) : EXIT_OK;
        if (r != EXIT_OK)
            return r;
        _cleanup_(dsv4_request_unrefp) struct dsv4_request *request = NULL;
        r = once(a, &request);
        if (!a->loading) {
            if (ret_request)
                *ret_request = TAKE_PTR(request);
            return r;
        }
        /* the first request for a model starts it: ask again when it says that it is there */
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
}
