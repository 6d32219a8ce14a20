/* SPDX-License-Identifier: MIT */
/* dsv4-eval: looks at checkpoints and computes with them, without a daemon. Dispatch only. */
#include <stdio.h>
#include <string.h>

#include "base/macros.h"
#include "engine/eval.h"

static const struct eval_command commands[] = {
    {"encode", eval_encode, "conversations to prompts, completions to messages"},
    {"inspect", eval_inspect, "what a checkpoint is and the memory it needs here"},
    {"tokenize", eval_tokenize, "text to token ids, or back"},
    {"greedy", eval_greedy, "continue token ids with the likeliest tokens"},
    {"logits", eval_logits, "write logits of token ids to a file"},
    {"perplexity", eval_perplexity, "how well the model foresees a text"},
    {NULL, NULL, NULL},
};

static void usage(FILE *out)
{
    fputs("dsv4-eval COMMAND [OPTION...]\n\nLook at DeepSeek-V4 checkpoints and compute with them, without a daemon.\n\nCommands:\n",
          out);
    for (const struct eval_command *c = commands; c->name; c++)
        fprintf(out, "  %-12s %s\n", c->name, c->help);
    fputs("\nOptions:\n  -h, --help     show this\n      --version  show the version\n\nCOMMAND --help tells more. See dsv4-eval(1).\n", out);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return EVAL_EXIT_USAGE;
    }
    if (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("dsv4-eval " PACKAGE_VERSION);
        return 0;
    }
    for (const struct eval_command *c = commands; c->name; c++)
        if (strcmp(c->name, argv[1]) == 0)
            return c->run(argc - 1, argv + 1);
    fprintf(stderr, "dsv4-eval: there is no command '%s'; dsv4-eval --help lists them\n", argv[1]);
    return EVAL_EXIT_USAGE;
}
