/* SPDX-License-Identifier: MIT */
/* dsv4 run: one prompt, one answer. */
#include "client/cmd.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "client/answer.h"

enum { OPTION_RAW = OPTION_OWN, OPTION_EVENTS };

static const struct option_spec options[] = {
    {'f', "file", "FILE", "Read the prompt from a file; -: standard input"},
    {OPTION_RAW, "raw", NULL, "Continue the text as it is, without the chat format"},
    {OPTION_EVENTS, "json", NULL, "Print events as JSON, one a line"},
    ANSWER_OPTIONS,
    OPTIONS_COMMON,
    {0}};

/* From --file, the arguments, or stdin, in that order. */
static int read_prompt(const char *file, char **args, struct buf *prompt)
{
    int r = EXIT_OK;

    if (file && args[0])
        return tool_fail(EXIT_USAGE, "a prompt and --file exclude each other");
    if (!file && args[0] && strcmp(args[0], "-") != 0) {
        r = tool_join(args, prompt) < 0 ? tool_fail(EXIT_FAILED, "out of memory") : EXIT_OK;
    } else {
        if (!file && isatty(STDIN_FILENO))
            fputs("Type the prompt; Ctrl-D on an empty line ends it.\n", stderr);
        r = tool_read(file, prompt);
    }
    if (r != EXIT_OK)
        return r;
    ssize_t bad = utf8_invalid_at(prompt->data ? prompt->data : "", prompt->size);
    if (bad >= 0)
        return tool_fail(EXIT_FAILED, "the prompt is not UTF-8: byte %zd", bad);
    if (prompt->size == 0)
        return tool_fail(EXIT_USAGE, "the prompt is empty");
    return EXIT_OK;
}

static int set_input(struct answer *a, bool raw, const struct buf *prompt)
{
    _cleanup_(dsv4_chat_unrefp) struct dsv4_chat *chat = NULL;
    int r;

    if (memchr(prompt->data, '\0', prompt->size))
        return -EINVAL;
    if (raw)
        return dsv4_generate_set_text(a->g, prompt->data, prompt->size);
    if ((r = dsv4_chat_new(&chat)) < 0)
        return r;
    if (a->system && (r = dsv4_chat_add(chat, DSV4_ROLE_SYSTEM, a->system)) < 0)
        return r;
    if ((r = dsv4_chat_add(chat, DSV4_ROLE_USER, prompt->data)) < 0)
        return r;
    if (a->reasoning >= 0)
        dsv4_chat_set_reasoning(chat, (enum dsv4_reasoning)a->reasoning);
    return dsv4_generate_set_chat(a->g, chat);
}

static int run(const struct verb *v, int argc, char **argv)
{
    _cleanup_(answer_deinit) struct answer a;
    _cleanup_buf_ struct buf prompt = BUF_INIT;
    _cleanup_free_ char *model = NULL;
    const char *wanted = NULL, *file = NULL;
    bool raw = false;
    int o, r;

    if ((r = answer_init(&a)) != EXIT_OK)
        return r;
    while ((o = options_next(v, argc, argv)) >= 0) {
        if (o == 'f')
            file = optarg;
        else if (o == OPTION_RAW)
            raw = true;
        else if (o == OPTION_EVENTS)
            a.json = true;
        else
            answer_option(&a, o, optarg, &wanted);
    }
    if (raw && (a.system || a.reasoning >= 0))
        return tool_fail(EXIT_USAGE, "--raw has no chat format: --system and --reasoning do not go with it");
    if ((r = read_prompt(file, argv + optind, &prompt)) != EXIT_OK)
        return r;
    if ((r = set_input(&a, raw, &prompt)) < 0)
        return tool_fail(EXIT_FAILED, r == -EINVAL ? "the prompt contains a NUL byte" : "out of memory");
    if ((r = tool_connect(&a.c)) != EXIT_OK || (r = model_choose(a.c, wanted, &model)) != EXIT_OK)
        return r;
    if (dsv4_generate_set_model(a.g, model) < 0)
        return tool_fail(EXIT_FAILED, "out of memory");
    return answer_run(&a, model, NULL);
}

const struct verb cmd_run = {"run", "[PROMPT...]", "Answer one prompt", options, run};
