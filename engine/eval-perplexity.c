/* SPDX-License-Identifier: MIT */
/*
 * dsv4-eval perplexity: how well the model foresees a text. The text's tokens are cut into windows without overlap; each
 * begins with the beginning-of-text token, and every token of the text is foreseen exactly once. Sums are in double, in
 * the order of the text.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/fd.h"
#include "engine/eval-util.h"
#include "engine/eval.h"

#define TEXT_MAX ((size_t)256 << 20)     /* bytes */
#define LOGITS_MAX ((size_t)64 << 20)    /* bytes of logits held at once */
#define CONTEXT_DEFAULT 2048             /* tokens */

struct perplexity_options {
    struct eval_options common;
    const char *text_path;
    uint64_t context;
};

static void help(void)
{
    fputs("dsv4-eval perplexity --model DIR --text FILE [OPTION...]\n\n"
          "Prints the perplexity per token, the number of tokens and the bits per byte of a UTF-8 text.\n\n"
          "      --text FILE          the text\n"
          "      --context N          tokens of a window, the beginning-of-text token included (2048)\n" EVAL_MODEL_HELP,
          stdout);
}

static int parse_options(int argc, char **argv, struct perplexity_options *o, int *status)
{
    enum { OPT_TEXT = EVAL_OPT_OWN, OPT_CONTEXT };
    static const struct option options[] = {
        {"text", required_argument, NULL, OPT_TEXT},
        {"context", required_argument, NULL, OPT_CONTEXT},
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
        if (c == OPT_TEXT)
            o->text_path = optarg;
        else if (c == OPT_CONTEXT) {
            if (eval_number("perplexity", "context", optarg, 2, UINT32_MAX, &o->context) < 0)
                return 1;
        } else if (eval_option(&o->common, c, optarg) <= 0)
            return 1;
    }
    if (optind < argc)
        *status = eval_usage("perplexity", "'%s' is one argument too many", argv[optind]);
    else if (!o->common.model_dir || !o->text_path)
        *status = eval_usage("perplexity", "--model and --text are needed");
    else
        return 0;
    return 1;
}

/* -log of the probability that softmax gives to `id`. */
static double surprise(const float *logits, uint32_t vocab, uint32_t id)
{
    double max = logits[eval_argmax(logits, vocab)], sum = 0;

    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum) - (double)logits[id];
}

/* One window: input[0 .. n - 1], the token after input[i] is wanted[i]. rows: [chunk][vocab] */
static int score_window(struct eval_model *m, const uint32_t *input, const uint32_t *wanted, uint32_t n, float *rows,
                        uint32_t chunk, double *nats, struct fail *f)
{
    uint32_t vocab = m->model->shape->vocab;

    if (kv_session_reset(m->session) < 0)
        return fail_set(f, EIO, "INTERNAL", "the device failed");
    for (uint32_t at = 0, k; at < n; at += k) {
        struct step_part part;
        int r;

        k = MIN(n - at, chunk);
        part = (struct step_part){.session = m->session, .token = input + at, .count = k, .logit_rows = k};
        r = forward_step(m->model, &part, 1, rows, f);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i < k; i++)
            *nats += surprise(rows + (size_t)i * vocab, vocab, wanted[at + i]);
    }
    return 0;
}

static int score(struct eval_model *m, const struct tokens *text, uint32_t context, double *ret_nats, struct fail *f)
{
    uint32_t vocab = m->model->shape->vocab;
    uint32_t chunk = (uint32_t)MIN(MAX(LOGITS_MAX / sizeof(float) / vocab, (size_t)1), m->model->max_step_tokens);
    _cleanup_free_ float *rows = calloc((size_t)chunk * vocab, sizeof(*rows));
    _cleanup_free_ uint32_t *input = calloc(context, sizeof(*input));

    if (!rows || !input)
        return fail_oom(f);
    *ret_nats = 0;
    for (size_t at = 0; at < text->n; at += context) {
        uint32_t n = (uint32_t)MIN(text->n - at, (size_t)context);
        int r;

        input[0] = m->model->checkpoint->config->bos;
        for (uint32_t i = 1; i < n; i++)
            input[i] = text->id[at + i - 1];
        r = score_window(m, input, text->id + at, n, rows, chunk, ret_nats, f);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_text(const struct perplexity_options *o, const struct eval_model *m, struct tokens *out,
                     size_t *ret_bytes, struct fail *f)
{
    _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
    _cleanup_free_ char *text = NULL;
    struct text_span span = {0};
    int r = fd_read_file(AT_FDCWD, o->text_path, TEXT_MAX, &text, ret_bytes, f);

    if (r < 0)
        return r;
    r = tokenizer_read(m->model->checkpoint->dir_fd, &t, f);
    if (r < 0)
        return r;
    span = (struct text_span){.text = text, .n = *ret_bytes};
    r = tokenizer_encode(t, &span, 1, out, f);
    if (r < 0) {
        fail_prefix(f, "%s", o->text_path);
        return r;
    }
    if (out->n == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "%s: the text is empty", o->text_path);
    for (size_t i = 0; i < out->n; i++)
        if (out->id[i] >= m->model->shape->vocab)
            return fail_set(f, EINVAL, "BAD_TOKENIZER", "tokenizer.json has id %" PRIu32 " and the model only ids below %"
                            PRIu32, out->id[i], m->model->shape->vocab);
    return 0;
}

static int run(const struct perplexity_options *o, struct fail *f)
{
    _cleanup_eval_model_ struct eval_model m = {0};
    _cleanup_tokens_ struct tokens text = TOKENS_INIT;
    uint32_t context;
    size_t bytes;
    double nats = 0;
    int r = eval_model_open(&o->common, &m, f);

    if (r < 0)
        return r;
    if (o->context > m.model->context_tokens) {
        r = fail_set(f, ERANGE, "RANGE", "context is %" PRIu64 "; the model has at most %" PRIu32, o->context,
                     m.model->context_tokens);
        fail_field(f, "context");
        return r;
    }
    context = o->context > 0 ? (uint32_t)o->context : MIN((uint32_t)CONTEXT_DEFAULT, m.model->context_tokens);
    r = read_text(o, &m, &text, &bytes, f);
    if (r < 0)
        return r;
    r = score(&m, &text, context, &nats, f);
    if (r < 0)
        return r;
    printf("perplexity     %.6f\ntokens         %zu\nbits per byte  %.6f\n", exp(nats / (double)text.n), text.n,
           nats / M_LN2 / (double)bytes);
    if (fflush(stdout) != 0)
        return fail_set(f, EIO, "IO_ERROR", "the output could not be written");
    return eval_model_finish(&m, f);
}

int eval_perplexity(int argc, char **argv)
{
    struct perplexity_options o = {.common.command = "perplexity"};
    struct fail f = FAIL_INIT;
    int status;

    if (parse_options(argc, argv, &o, &status))
        return status;
    return run(&o, &f) < 0 ? eval_failed("perplexity", &f) : 0;
}
