/* SPDX-License-Identifier: MIT */
/*
 * dsv4 chat: a conversation. The whole of it goes with each question; the service's prefix cache makes that cheap. With a
 * terminal lines are edited by libedit; otherwise each line of stdin is one message.
 */
#include "client/cmd.h"

#include <errno.h>
#include <getopt.h>
#include <histedit.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>

#include "base/utf8.h"
#include "client/answer.h"

#define HISTORY_LINES 500

static const struct option_spec options[] = {ANSWER_OPTIONS, OPTIONS_COMMON, {0}};

struct talk {
    struct answer a;
    struct dsv4_chat *chat;
    char *model;
    bool interactive;
    EditLine *el;
    History *history;
};

static volatile sig_atomic_t interrupted; /* Ctrl-C while a line is edited */

static void on_interrupt(int signo)
{
    (void)signo;
    interrupted = 1;
}

/* ---------------------------------------------------------------- lines */

static char *prompt(EditLine *el)
{
    static char text[] = "> ";

    (void)el;
    return text;
}

/* libedit's own reader goes on after a signal; ours gives up the line. One character, decoded. */
static int read_character(EditLine *el, wchar_t *ret)
{
    char s[4];
    size_t n = 0;
    uint32_t c;

    (void)el;
    for (;;) {
        ssize_t k = interrupted ? -1 : read(STDIN_FILENO, s + n, 1);
        if (k < 0 && errno == EINTR && !interrupted)
            continue; /* a window changed its size */
        if (k <= 0)
            return (int)k;
        int length = utf8_decode(s, ++n, &c);
        if (length > 0) {
            *ret = (wchar_t)c;
            return 1;
        }
        if (length == 0)
            n = 0; /* not UTF-8: ignored */
    }
}

static int lines_begin(struct talk *t)
{
    HistEvent event;

    if (!t->interactive)
        return 0;
    t->el = el_init("dsv4", stdin, stdout, stderr);
    t->history = history_init();
    if (!t->el || !t->history)
        return tool_fail(EXIT_FAILED, "the terminal cannot be used for editing lines");
    history(t->history, &event, H_SETSIZE, HISTORY_LINES);
    history(t->history, &event, H_SETUNIQUE, 1);
    el_set(t->el, EL_PROMPT, prompt);
    el_set(t->el, EL_EDITOR, "emacs");
    el_set(t->el, EL_HIST, history, t->history);
    el_set(t->el, EL_GETCFN, read_character);
    el_set(t->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(t->el, NULL);
    return 0;
}

static void lines_end(struct talk *t)
{
    if (t->el)
        el_end(t->el);
    if (t->history)
        history_end(t->history);
}

/* 1 and a line without its end, malloc'ed; 0 at the end of input; -EINTR after Ctrl-C; -ENOMEM. */
static int edit_line(struct talk *t, char **ret)
{
    struct sigaction ours = {.sa_handler = on_interrupt}, before;
    HistEvent event;
    int n = 0;

    interrupted = 0;
    sigaction(SIGINT, &ours, &before);
    el_set(t->el, EL_PREP_TERM, 1); /* before the prompt: a Ctrl-D that answers it quickly must not meet the other mode */
    const char *line = el_gets(t->el, &n);
    sigaction(SIGINT, &before, NULL);
    if (interrupted) {
        el_reset(t->el);
        putchar('\n');
        return -EINTR;
    }
    if (!line || n <= 0)
        return 0;
    *ret = strndup(line, strcspn(line, "\n"));
    if (!*ret)
        return -ENOMEM;
    if ((*ret)[0])
        history(t->history, &event, H_ENTER, *ret);
    return 1;
}

static int read_line(struct talk *t, char **ret)
{
    _cleanup_free_ char *line = NULL;
    size_t capacity = 0;

    if (t->interactive)
        return edit_line(t, ret);
    ssize_t n = getline(&line, &capacity, stdin);
    if (n < 0)
        return 0;
    if (n > 0 && line[n - 1] == '\n')
        line[n - 1] = '\0';
    *ret = TAKE_PTR(line);
    return 1;
}

/* ---------------------------------------------------------------- the conversation */

static int begin_again(struct talk *t)
{
    t->chat = dsv4_chat_unref(t->chat);
    int r = dsv4_chat_new(&t->chat);
    if (r >= 0 && t->a.system)
        r = dsv4_chat_add(t->chat, DSV4_ROLE_SYSTEM, t->a.system);
    if (r >= 0 && t->a.reasoning >= 0)
        r = dsv4_chat_set_reasoning(t->chat, (enum dsv4_reasoning)t->a.reasoning);
    if (r >= 0)
        r = dsv4_generate_set_chat(t->a.g, t->chat);
    return r < 0 ? tool_fail(EXIT_FAILED, "out of memory") : EXIT_OK;
}

/* After a broken connection: a new one. The conversation is ours and goes on. */
static int connected(struct talk *t)
{
    if (dsv4_get_fd(t->a.c) != -ENOTCONN)
        return EXIT_OK;
    return dsv4_connect(t->a.c, NULL) < 0 ? tool_error(dsv4_get_error(t->a.c)) : EXIT_OK;
}

/* One question and its answer. What was cancelled stays as far as it came; what failed is as if never asked. */
static int ask(struct talk *t, const char *line)
{
    _cleanup_(dsv4_request_unrefp) struct dsv4_request *request = NULL;

    if (utf8_invalid_at(line, strlen(line)) >= 0)
        return tool_fail(EXIT_FAILED, "the message is not UTF-8");
    int r = connected(t);
    if (r != EXIT_OK)
        return r;
    if (dsv4_chat_add(t->chat, DSV4_ROLE_USER, line) < 0 || dsv4_generate_set_model(t->a.g, t->model) < 0)
        return tool_fail(EXIT_FAILED, "out of memory");
    r = answer_run(&t->a, t->model, &request);
    bool kept = request && dsv4_request_is_done(request) && (r == EXIT_OK || dsv4_request_get_content(request)[0]) &&
                dsv4_chat_add_answer(t->chat, request) >= 0;
    if (!kept)
        dsv4_chat_remove_last(t->chat);
    if (!t->a.out_terminal && r == EXIT_OK)
        putchar('\n'); /* answers in a pipe are separated by line ends */
    fflush(stdout);
    return r;
}

/* ---------------------------------------------------------------- commands */

static void help(void)
{
    puts("/new                     begin a new conversation\n"
         "/model [NAME]            show or change the model\n"
         "/reasoning [EFFORT]      show or change how much it thinks: none, high, max, default\n"
         "/help                    this list\n"
         "/quit                    end; Ctrl-D does, too\n"
         "Ctrl-C ends an answer that is running and keeps the conversation.");
}

static void change_model(struct talk *t, const char *name)
{
    char *copy;

    if (!name[0]) {
        puts(t->model);
        return;
    }
    copy = strdup(name);
    if (!copy) {
        tool_fail(0, "out of memory");
        return;
    }
    free(t->model);
    t->model = copy;
}

static void change_reasoning(struct talk *t, const char *name)
{
    static const char *const names[] = {"none", "high", "max", "default"};

    if (!name[0]) {
        puts(t->a.reasoning < 0 ? "default" : names[t->a.reasoning]);
        return;
    }
    for (int i = 0; i < (int)ELEMENTS(names); i++) {
        if (strcmp(name, names[i]) != 0)
            continue;
        if (i < 3)
            dsv4_chat_set_reasoning(t->chat, (enum dsv4_reasoning)i);
        else if (t->a.reasoning >= 0)
            puts("From the next /new on.");
        t->a.reasoning = i < 3 ? i : -1;
        return;
    }
    tool_fail(0, "/reasoning is none, high, max or default");
}

/* 0: go on, 1: end. */
static int command(struct talk *t, const char *line)
{
    size_t n = strcspn(line, " ");
    const char *argument = line + n + strspn(line + n, " ");

    if (strncmp(line, "/quit", n) == 0 && n == 5)
        return 1;
    if (strncmp(line, "/new", n) == 0 && n == 4)
        return begin_again(t) != EXIT_OK;
    if (strncmp(line, "/model", n) == 0 && n == 6)
        change_model(t, argument);
    else if (strncmp(line, "/reasoning", n) == 0 && n == 10)
        change_reasoning(t, argument);
    else if (strncmp(line, "/help", n) == 0 && n == 5)
        help();
    else
        tool_fail(0, "there is no such command; /help lists them");
    return 0;
}

/* Exit code: with a terminal only the last error that ended the program counts, otherwise the first failed answer. */
static int converse(struct talk *t)
{
    for (;;) {
        _cleanup_free_ char *line = NULL;
        int r = read_line(t, &line);
        if (r == -EINTR)
            continue;
        if (r <= 0)
            return r < 0 ? tool_fail(EXIT_FAILED, "out of memory") : EXIT_OK;
        if (!line[strspn(line, " \t")])
            continue;
        if (line[0] == '/' && t->interactive) {
            if (command(t, line))
                return EXIT_OK;
            continue;
        }
        r = ask(t, line);
        if (r != EXIT_OK && !t->interactive)
            return r;
    }
}

static void talk_deinit(struct talk *t)
{
    lines_end(t);
    dsv4_chat_unref(t->chat);
    free(t->model);
    answer_deinit(&t->a);
}

static int chat(const struct verb *v, int argc, char **argv)
{
    _cleanup_(talk_deinit) struct talk t = {0};
    const char *wanted = NULL;
    int o, r;

    setlocale(LC_CTYPE, "C.UTF-8"); /* libedit counts columns by it; all text here is UTF-8 */
    if ((r = answer_init(&t.a)) != EXIT_OK)
        return r;
    while ((o = options_next(v, argc, argv)) >= 0)
        answer_option(&t.a, o, optarg, &wanted);
    if (argv[optind])
        return tool_fail(EXIT_USAGE, "no arguments are expected; \"dsv4 run\" takes a prompt");
    t.interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if ((r = tool_connect(&t.a.c)) != EXIT_OK || (r = model_choose(t.a.c, wanted, &t.model)) != EXIT_OK)
        return r;
    if ((r = begin_again(&t)) != EXIT_OK || (r = lines_begin(&t)) != EXIT_OK)
        return r;
    if (t.interactive)
        printf("Talking to %s. /help lists the commands.\n", t.model);
    r = converse(&t);
    if (t.interactive)
        putchar('\n');
    return r;
}

const struct verb cmd_chat = {"chat", "", "Hold a conversation", options, chat};
