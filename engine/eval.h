/* SPDX-License-Identifier: MIT */
/* dsv4-eval: one file per subcommand, one row each in eval-main.c. */
#pragma once

struct eval_command {
    const char *name;
    /* argv[0] is the subcommand's name; returns the exit status. --help of each is its own (getopt_long). */
    int (*run)(int argc, char **argv);
    const char *help; /* one line */
};

#define EVAL_EXIT_USAGE 64

int eval_encode(int argc, char **argv);
int eval_inspect(int argc, char **argv);
int eval_tokenize(int argc, char **argv);
int eval_greedy(int argc, char **argv);
int eval_logits(int argc, char **argv);
int eval_perplexity(int argc, char **argv);
