/* SPDX-License-Identifier: MIT */
/* dsv4 tokenize: text to token ids and back; dsv4 models: what there is. */
#include "client/cmd.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"
#include "client/answer.h"

enum { OPTION_SPECIAL = OPTION_FIRST, OPTION_IDS_JSON };

static const struct option_spec options[] = {
    {'d', "decode", NULL, "Token ids to text"},
    {OPTION_SPECIAL, "special", NULL, "Control tokens written in the text count as such"},
    {'f', "file", "FILE", "Read from a file; -: standard input"},
    {'m', "model", "NAME", "Which model's tokens; default as for dsv4 run"},
    {OPTION_IDS_JSON, "json", NULL, "Print the ids as a JSON list, the text as a JSON string"},
    OPTIONS_COMMON,
    {0}};

static int encode(struct dsv4 *c, const char *model, const struct buf *text, bool special, bool json)
{
    _cleanup_free_ uint32_t *ids = NULL;
    size_t n;

    if (dsv4_tokenize(c, model, text->data, text->size, special, &ids, &n) < 0)
        return tool_error(dsv4_get_error(c));
    if (json)
        putchar('[');
    for (size_t i = 0; i < n; i++)
        printf("%s%u", i == 0 ? "" : json ? "," : " ", ids[i]);
    fputs(json ? "]\n" : "\n", stdout);
    return EXIT_OK;
}

/* Ids separated by white space. 0, -ENOMEM, or -EINVAL after a message. */
static int parse_ids(char *text, uint32_t **ret, size_t *ret_n)
{
    _cleanup_free_ uint32_t *ids = reallocarray(NULL, strlen(text) / 2 + 1, sizeof(*ids));
    char *save = NULL;
    size_t n = 0;

    if (!ids)
        return -ENOMEM;
    for (char *word = strtok_r(text, " \t\n\r", &save); word; word = strtok_r(NULL, " \t\n\r", &save)) {
        uint64_t v;
        if (parse_u64(word, 0, UINT32_MAX, &v) < 0) {
            tool_fail(0, "%.40s: not a token id", word);
            return -EINVAL;
        }
        ids[n++] = (uint32_t)v;
    }
    *ret = TAKE_PTR(ids);
    *ret_n = n;
    return 0;
}

static int decode(struct dsv4 *c, const char *model, struct buf *input, bool json)
{
    _cleanup_free_ uint32_t *ids = NULL;
    _cleanup_free_ char *text = NULL;
    size_t n, size;

    int r = parse_ids(input->data, &ids, &n);
    if (r < 0)
        return r == -EINVAL ? EXIT_USAGE : tool_fail(EXIT_FAILED, "out of memory");
    if (dsv4_detokenize(c, model, ids, n, &text, &size) < 0)
        return tool_error(dsv4_get_error(c));
    if (json) {
        _cleanup_json_ json_t *j = json_stringn(text, size);
        if (!j)
            return tool_fail(EXIT_FAILED, "the tokens are not whole characters: no JSON string");
        char *dump = json_dumps(j, JSON_ENCODE_ANY);
        if (!dump)
            return tool_fail(EXIT_FAILED, "out of memory");
        puts(dump);
        free(dump);
        return EXIT_OK;
    }
    if (!isatty(STDOUT_FILENO)) {
        fwrite(text, 1, size, stdout);
        return EXIT_OK;
    }
    _cleanup_buf_ struct buf b = BUF_INIT;
    if (visible_append(&b, text, size) < 0)
        return tool_fail(EXIT_FAILED, "out of memory");
    puts(b.data);
    return EXIT_OK;
}

static int tokenize(const struct verb *v, int argc, char **argv)
{
    _cleanup_buf_ struct buf input = BUF_INIT;
    _cleanup_(dsv4_unrefp) struct dsv4 *c = NULL;
    _cleanup_free_ char *model = NULL;
    const char *wanted = NULL, *file = NULL;
    bool decoding = false, special = false, json = false;
    int o, r;

    while ((o = options_next(v, argc, argv)) >= 0) {
        if (o == 'd')
            decoding = true;
        else if (o == OPTION_SPECIAL)
            special = true;
        else if (o == OPTION_IDS_JSON)
            json = true;
        else if (o == 'f')
            file = optarg;
        else if (o == 'm')
            wanted = optarg;
    }
    if (file && argv[optind])
        return tool_fail(EXIT_USAGE, "arguments and --file exclude each other");
    if (buf_append(&input, "", 0) < 0 || (argv[optind] && tool_join(argv + optind, &input) < 0))
        return tool_fail(EXIT_FAILED, "out of memory");
    if (!argv[optind] && (r = tool_read(file, &input)) != EXIT_OK)
        return r;
    if ((r = tool_connect(&c)) != EXIT_OK || (r = model_choose(c, wanted, &model)) != EXIT_OK)
        return r;
    r = decoding ? decode(c, model, &input, json) : encode(c, model, &input, special, json);
    if (r == EXIT_OK && (fflush(stdout) != 0 || ferror(stdout)))
        return tool_fail(EXIT_FAILED, "the result cannot be written");
    return r;
}

const struct verb cmd_tokenize = {"tokenize", "[TEXT...]", "Turn text into token ids, or back", options, tokenize};

static const struct option_spec models_options[] = {OPTIONS_TABLE, OPTIONS_COMMON, {0}};

static int models(const struct verb *v, int argc, char **argv)
{
    _cleanup_(dsv4_unrefp) struct dsv4 *c = NULL;
    enum json_mode mode = JSON_OFF;
    bool legend = true;
    int o;

    while ((o = options_next(v, argc, argv)) >= 0) {
        if (o == OPTION_JSON)
            mode = option_json_mode(optarg);
        else if (o == OPTION_NO_LEGEND)
            legend = false;
    }
    if (argv[optind])
        return tool_fail(EXIT_USAGE, "no arguments are expected");
    int r = tool_connect(&c);
    return r != EXIT_OK ? r : show_models(c, mode, legend);
}

const struct verb cmd_models = {"models", "", "List the models", models_options, models};
