/* SPDX-License-Identifier: MIT */
/* dsv4-eval greedy: continues token ids with the likeliest token, again and again; no sampler, no end of text. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "engine/eval-util.h"
#include "engine/eval.h"

struct greedy_options {
    struct eval_options common;
    const char *tokens_path;
    uint64_t count;
};

static void help(void)
{
    fputs("dsv4-eval greedy --model DIR --tokens FILE --count M [OPTION...]\n\n"
          "Prints the ids of M tokens that follow, each the likeliest one, on one line. The end-of-text token is a token\n"
          "like others here.\n\n"
          "      --tokens FILE        token ids, separated by white space\n"
          "      --count M            how many to add\n" EVAL_MODEL_HELP,
          stdout);
}

static int parse_options(int argc, char **argv, struct greedy_options *o, int *status)
{
    enum { OPT_TOKENS = EVAL_OPT_OWN, OPT_COUNT };
    static const struct option options[] = {
        {"tokens", required_argument, NULL, OPT_TOKENS},
        {"count", required_argument, NULL, OPT_COUNT},
        EVAL_MODEL_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    int c;

    *status = EVAL_EXIT_USAGE;
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c == 'h') {
            help();
            *status = 0;
            return 1;
        }
        if (c == OPT_TOKENS)
            o->tokens_path = optarg;
        else if (c == OPT_COUNT) {
            if (eval_number("greedy", "count", optarg, 1, UINT32_MAX, &o->count) < 0)
                return 1;
        } else if (eval_option(&o->common, c, optarg) <= 0)
            return 1;
    }
    if (optind < argc)
        *status = eval_usage("greedy", "'%s' is one argument too many", argv[optind]);
    else if (!o->common.model_dir || !o->tokens_path || o->count == 0)
        *status = eval_usage("greedy", "--model, --tokens and --count are needed");
    else
        return 0;
    return 1;
}

static int generate(struct eval_model *m, const struct tokens *tokens, uint64_t count, struct fail *f)
{
    uint32_t vocab = m->model->shape->vocab;
    _cleanup_free_ float *row = calloc(vocab, sizeof(*row));
    int r;

    if (!row)
        return fail_oom(f);
    r = tokens->n > UINT32_MAX ? fail_set(f, E2BIG, "PROMPT_TOO_LONG", "%zu tokens are too many", tokens->n)
                               : forward_prefill(m->model, m->session, tokens->id, (uint32_t)tokens->n, row, f);
    for (uint64_t i = 0; r == 0; i++) {
        uint32_t id = eval_argmax(row, vocab);
        struct step_part one = {.session = m->session, .token = &id, .count = 1, .logit_rows = 1};

        printf("%s%" PRIu32, i > 0 ? " " : "", id);
        if (i + 1 == count)
            break;
        r = forward_step(m->model, &one, 1, row, f);
    }
    if (r == 0)
        putchar('\n');
    return r;
}

static int run(const struct greedy_options *o, struct fail *f)
{
    _cleanup_eval_model_ struct eval_model m = {0};
    _cleanup_tokens_ struct tokens tokens = TOKENS_INIT;
    int r = eval_model_open(&o->common, &m, f);

    if (r < 0)
        return r;
    r = eval_read_tokens(o->tokens_path, m.model->shape->vocab, &tokens, f);
    if (r < 0)
        return r;
    r = generate(&m, &tokens, o->count, f);
    if (r < 0)
        return r;
    if (fflush(stdout) != 0)
        return fail_set(f, EIO, "IO_ERROR", "the output could not be written");
    return eval_model_finish(&m, f);
}

int eval_greedy(int argc, char **argv)
{
    struct greedy_options o = {.common.command = "greedy"};
    struct fail f = FAIL_INIT;
    int status;

    if (parse_options(argc, argv, &o, &status))
        return status;
    return run(&o, &f) < 0 ? eval_failed("greedy", &f) : 0;
}
