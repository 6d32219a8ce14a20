/* SPDX-License-Identifier: MIT */
/* dsv4-eval logits: what the model says about the next token, at every position after a prefill. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/size.h"
#include "engine/eval-util.h"
#include "engine/eval.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error rows are written as they are in memory, and promised little-endian
#endif

struct logits_options {
    struct eval_options common;
    const char *tokens_path, *output_path;
    uint64_t prefill;
};

static void help(void)
{
    fputs("dsv4-eval logits --model DIR --tokens FILE --prefill N --output FILE [OPTION...]\n\n"
          "Computes the first N tokens at once and the rest one at a time. Writes the logits after the Nth token and after\n"
          "each later one: little-endian float32, a row of the vocabulary's size for each.\n\n"
          "      --tokens FILE        token ids, separated by white space\n"
          "      --prefill N          1 to the number of tokens\n"
          "      --output FILE        where the rows go\n" EVAL_MODEL_HELP,
          stdout);
}

/* 0, or 1 with *status set when there is nothing more to do. */
static int parse_options(int argc, char **argv, struct logits_options *o, int *status)
{
    enum { OPT_TOKENS = EVAL_OPT_OWN, OPT_PREFILL, OPT_OUTPUT };
    static const struct option options[] = {
        {"tokens", required_argument, NULL, OPT_TOKENS},
        {"prefill", required_argument, NULL, OPT_PREFILL},
        {"output", required_argument, NULL, OPT_OUTPUT},
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
        else if (c == OPT_OUTPUT)
            o->output_path = optarg;
        else if (c == OPT_PREFILL) {
            if (eval_number("logits", "prefill", optarg, 0, UINT32_MAX, &o->prefill) < 0)
                return 1;
        } else if (eval_option(&o->common, c, optarg) <= 0)
            return 1;
    }
    if (optind < argc)
        *status = eval_usage("logits", "'%s' is one argument too many", argv[optind]);
    else if (!o->common.model_dir || !o->tokens_path || !o->output_path || o->prefill == UINT64_MAX)
        *status = eval_usage("logits", "--model, --tokens, --prefill and --output are needed");
    else
        return 0;
    return 1;
}

static int write_row(int fd, const char *path, const float *row, uint32_t vocab, struct fail *f)
{
    int r = fd_write_full(fd, row, (size_t)vocab * sizeof(float));

    return r < 0 ? fail_set(f, -r, "IO_ERROR", "%s: cannot be written: %s", path, strerror(-r)) : 0;
}

static int compute(const struct logits_options *o, struct eval_model *m, const struct tokens *tokens, int fd,
                   struct fail *f)
{
    uint32_t vocab = m->model->shape->vocab, at = (uint32_t)o->prefill;
    _cleanup_free_ float *row = calloc(vocab, sizeof(*row));
    int r;

    if (!row)
        return fail_oom(f);
    r = forward_prefill(m->model, m->session, tokens->id, at, row, f);
    if (r == 0)
        r = write_row(fd, o->output_path, row, vocab, f);
    for (; r == 0 && at < tokens->n; at++) {
        struct step_part one = {.session = m->session, .token = tokens->id + at, .count = 1, .logit_rows = 1};

        r = forward_step(m->model, &one, 1, row, f);
        if (r == 0)
            r = write_row(fd, o->output_path, row, vocab, f);
    }
    return r;
}

static int run(const struct logits_options *o, struct fail *f)
{
    _cleanup_eval_model_ struct eval_model m = {0};
    _cleanup_tokens_ struct tokens tokens = TOKENS_INIT;
    _cleanup_close_ int fd = -1;
    int r = eval_model_open(&o->common, &m, f);

    if (r < 0)
        return r;
    r = eval_read_tokens(o->tokens_path, m.model->shape->vocab, &tokens, f);
    if (r < 0)
        return r;
    if (o->prefill < 1 || o->prefill > tokens.n) {
        r = fail_set(f, ERANGE, "RANGE", "prefill is %" PRIu64 "; with %zu tokens it can be 1 to %zu", o->prefill, tokens.n,
                     tokens.n);
        fail_field(f, "prefill");
        return r;
    }
    fd = open(o->output_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: cannot be opened: %s", o->output_path, strerror(errno));
    r = compute(o, &m, &tokens, fd, f);
    return r < 0 ? r : eval_model_finish(&m, f);
}

int eval_logits(int argc, char **argv)
{
    struct logits_options o = {.common.command = "logits", .prefill = UINT64_MAX};
    struct fail f = FAIL_INIT;
    int status;

    if (parse_options(argc, argv, &o, &status))
        return status;
    return run(&o, &f) < 0 ? eval_failed("logits", &f) : 0;
}
