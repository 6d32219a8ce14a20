/* SPDX-License-Identifier: MIT */
/* What the subcommands of dsv4-eval that compute have in common: options of a model, files of token ids, messages. */
#pragma once

#include <getopt.h>

#include "engine/forward.h"
#include "engine/tokenizer.h"

struct eval_options {
    const char *command;
    const char *model_dir, *dump_dir;
    struct model_options model;
};

/* Long options that eval_option() takes, for the getopt_long table of a subcommand. */
enum {
    EVAL_OPT_MODEL = 1000,
    EVAL_OPT_BACKEND,
    EVAL_OPT_NUMERICS,
    EVAL_OPT_THREADS,
    EVAL_OPT_ISA,
    EVAL_OPT_STEP,
    EVAL_OPT_DUMP,
    EVAL_OPT_OWN, /* the subcommand's own start here */
};
#define EVAL_MODEL_OPTIONS                                        \
    {"model", required_argument, NULL, EVAL_OPT_MODEL},           \
    {"backend", required_argument, NULL, EVAL_OPT_BACKEND},       \
    {"numerics", required_argument, NULL, EVAL_OPT_NUMERICS},     \
    {"threads", required_argument, NULL, EVAL_OPT_THREADS},       \
    {"isa", required_argument, NULL, EVAL_OPT_ISA},               \
    {"step-tokens", required_argument, NULL, EVAL_OPT_STEP},      \
    {"dump", required_argument, NULL, EVAL_OPT_DUMP},             \
    {"help", no_argument, NULL, 'h'}
#define EVAL_MODEL_HELP                                                               \
    "      --model DIR          the checkpoint\n"                                     \
    "      --backend NAME       where to compute (cpu)\n"                             \
    "      --numerics WHICH     exact or fast (exact)\n"                              \
    "      --threads N          of the CPU backend (one per core)\n"                  \
    "      --isa NAME           plain, avx2 or avx512 (the best here)\n"              \
    "      --step-tokens N      most tokens computed at once (512); no result depends on it\n" \
    "      --dump DIR           write what each layer computed to DIR/NAME.f32\n"     \
    "  -h, --help               show this\n"

/* 1: taken; 0: not one of these; -EINVAL: a bad value, said on stderr. */
int eval_option(struct eval_options *o, int opt, const char *value);
/* A whole number from min to max, said on stderr otherwise. */
int eval_number(const char *command, const char *option, const char *value, uint64_t min, uint64_t max, uint64_t *ret);

/* "dsv4-eval COMMAND: message (CODE)" on stderr; returns the exit status 1. */
int eval_failed(const char *command, const struct fail *f);
/* The same for a wrong command line; returns EVAL_EXIT_USAGE. */
int eval_usage(const char *command, const char *fmt, ...) PRINTF(2, 3);

/* Ids separated by white space; each below vocab, at least one. BAD_TOKEN, EMPTY_INPUT. */
int eval_parse_tokens(const char *text, size_t size, uint32_t vocab, struct tokens *out, struct fail *f);
int eval_read_tokens(const char *path, uint32_t vocab, struct tokens *out, struct fail *f);

/* The largest of n logits; the lower id of equals. */
uint32_t eval_argmax(const float *logits, uint32_t n);

/*
 * Opens the model and, with --dump, watches its forward pass: every named intermediate goes to DIR/NAME.f32,
 * little-endian float32, appended step by step, and a line "NAME WIDTH" for each to DIR/names.txt.
 */
struct eval_dump;
struct eval_model {
    struct model *model;
    struct kv_session *session;
    struct eval_dump *dump;
};
int eval_model_open(const struct eval_options *o, struct eval_model *ret, struct fail *f);
/* IO_ERROR if something could not be dumped. */
int eval_model_finish(struct eval_model *m, struct fail *f);
void eval_model_deinit(struct eval_model *m);
#define _cleanup_eval_model_ _cleanup_(eval_model_deinit)
