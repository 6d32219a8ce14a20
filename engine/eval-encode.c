/* SPDX-License-Identifier: MIT */
/* dsv4-eval encode: conversations to prompts and completions to messages, one JSON object per line in and out. Compares
 * our chat format with others'; no checkpoint is needed. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "engine/chat-json.h"
#include "engine/eval.h"

#define LINE_BYTES_MAX ((size_t)16 << 20)

static int encode(const json_t *input, json_t **ret, struct fail *f)
{
    _cleanup_chat_ struct chat c = {0};
    _cleanup_chat_prompt_ struct chat_prompt p = {0};

    int r = chat_from_json(input, &c, f);
    r = r < 0 ? r : chat_encode(&c, &p, f);
    if (r < 0)
        return r;
    json_t *text = json_stringn(p.text.data, p.text.size);
    if (!text)
        return fail_set(f, EILSEQ, "BAD_UTF8", "the prompt is not valid UTF-8");
    *ret = json_pack("{s:o}", "prompt", text);
    return *ret ? 0 : fail_oom(f);
}

static int parse(const json_t *input, json_t **ret, struct fail *f)
{
    struct chat_message m = {0};
    size_t n = 0, n_mode = 0;
    const json_t *v = json_object_get(input, "text"), *mode = json_object_get(input, "thinking_mode");
    const char *text = v ? pyjson_string(v, &n) : NULL, *thinking = mode ? pyjson_string(mode, &n_mode) : NULL;

    if (!text || memchr(text, '\0', n))
        return fail_set(f, EINVAL, "BAD_COMPLETION", "input.text: expected a string without NUL characters");
    if (!thinking || (strcmp(thinking, "thinking") != 0 && strcmp(thinking, "chat") != 0))
        return fail_set(f, EINVAL, "BAD_COMPLETION", "input.thinking_mode: expected \"chat\" or \"thinking\"");
    int r = completion_parse(text, n, strcmp(thinking, "thinking") == 0, &m, f);
    if (r < 0)
        return r;
    json_t *message = NULL;
    r = chat_message_to_json(&m, &message, f);
    chat_message_deinit(&m);
    if (r < 0)
        return r;
    *ret = json_pack("{s:o}", "message", message);
    return *ret ? 0 : fail_oom(f);
}

static int answer(const char *line, size_t n, json_t **ret, struct fail *f)
{
    _cleanup_json_ json_t *v = NULL;
    size_t n_kind = 0;

    int r = pyjson_load(line, n, PYJSON_LOOSE, &v);
    if (r == -ENOMEM)
        return fail_oom(f);
    if (r < 0 || !json_is_object(v))
        return fail_set(f, EINVAL, "MALFORMED", "the line is not a JSON object");
    const json_t *kind = json_object_get(v, "kind"), *input = json_object_get(v, "input");
    const char *name = kind ? pyjson_string(kind, &n_kind) : NULL;
    if (!json_is_object(input))
        return fail_set(f, EINVAL, "MISSING_FIELD", "input: expected an object");
    if (name && strcmp(name, "encode") == 0)
        return encode(input, ret, f);
    if (name && strcmp(name, "parse") == 0)
        return parse(input, ret, f);
    return fail_set(f, EINVAL, "MISSING_FIELD", "kind: expected \"encode\" or \"parse\"");
}

static void answer_line(const char *line, size_t n, FILE *out)
{
    _cleanup_json_ json_t *v = NULL;
    struct fail f = FAIL_INIT;

    if (n > LINE_BYTES_MAX)
        fail_set(&f, EMSGSIZE, "FRAME_TOO_LARGE", "the line is longer than %zu bytes", LINE_BYTES_MAX);
    else
        (void)answer(line, n, &v, &f);
    if (!v)
        v = json_pack("{s:s++}", "error", f.code, ": ", f.message);
    if (!v || json_dumpf(v, out, JSON_COMPACT) < 0)
        fputs("{\"error\":\"NO_MEMORY: out of memory\"}", out);
    fputc('\n', out);
    fflush(out);
}

/* Reads one line without its newline; of a longer one than allowed only the beginning and one byte more is kept.
 * 1: there was a line; 0: end. */
static int read_line(FILE *in, struct buf *line)
{
    int c, r = 0;

    buf_clear(line);
    while ((c = getc_unlocked(in)) != EOF && c != '\n') {
        char byte = (char)c;
        if (line->size <= LINE_BYTES_MAX)
            r = buf_append(line, &byte, 1);
        if (r < 0)
            return r;
    }
    return c == '\n' || line->size > 0;
}

int eval_encode(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
    _cleanup_buf_ struct buf line = BUF_INIT;

    switch (getopt_long(argc, argv, "h", options, NULL)) {
    case -1:
        break;
    case 'h':
        puts("dsv4-eval encode\n\nReads one JSON object per line from standard input:\n"
             "  {\"kind\": \"encode\", \"input\": {\"messages\": [...], \"thinking_mode\": \"chat\"|\"thinking\",\n"
             "    \"drop_thinking\": true|false, \"reasoning_effort\": \"high\"|\"max\"|null}}\n"
             "  {\"kind\": \"parse\", \"input\": {\"text\": ..., \"thinking_mode\": ...}}\n"
             "and prints one line for each: {\"prompt\": ...}, {\"message\": ...} or {\"error\": ...}.");
        return 0;
    default:
        return EVAL_EXIT_USAGE;
    }
    if (optind < argc) {
        fprintf(stderr, "dsv4-eval encode: takes no arguments, but got '%s'\n", argv[optind]);
        return EVAL_EXIT_USAGE;
    }
    int r;
    while ((r = read_line(stdin, &line)) > 0)
        answer_line(line.data ? line.data : "", line.size, stdout);
    if (r < 0 || ferror(stdin) || ferror(stdout)) {
        fprintf(stderr, "dsv4-eval encode: %s\n", r < 0 ? "out of memory" : "reading or writing failed");
        return 1;
    }
    return 0;
}
