/* SPDX-License-Identifier: MIT */
/* dsv4-eval tokenize: standard input to token ids, or ids back to bytes. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "engine/eval.h"
#include "engine/tokenizer.h"

#define TEXT_BYTES_MAX ((size_t)256 << 20) /* one word of that length takes about 9 GiB while it is merged */
#define CHUNK ((size_t)64 << 10)

static const char usage[] =
    "dsv4-eval tokenize --model DIR [--special] < TEXT\n"
    "dsv4-eval tokenize --model DIR --decode < IDS\n\n"
    "Turn text into token ids, on one line, or token ids (separated by white space) back into bytes.\n\n"
    "      --model DIR   directory with tokenizer.json\n"
    "      --special     read control tokens such as <think> in the text as such; without it all of the text is\n"
    "                    ordinary text, as a user's is\n"
    "      --decode      from ids to bytes\n"
    "  -h, --help        show this\n\n"
    "At most 256 MiB of text; any number of ids.\n";

static int complain(const struct fail *f)
{
    fprintf(stderr, "dsv4-eval tokenize: %s\n", f->message);
    return 1;
}

static int read_text(struct buf *text)
{
    for (;;) {
        int r = buf_reserve(text, CHUNK);
        if (r < 0)
            return r;
        ssize_t n = read(STDIN_FILENO, text->data + text->size, CHUNK);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            return 0;
        text->size += n > 0 ? (size_t)n : 0;
    }
}

static int encode(const struct tokenizer *t, bool special)
{
    _cleanup_buf_ struct buf text = BUF_INIT_MAX(TEXT_BYTES_MAX + CHUNK);
    _cleanup_tokens_ struct tokens ids = TOKENS_INIT;
    struct fail f = FAIL_INIT;
    int r = read_text(&text);

    if (r == -EMSGSIZE || text.size > TEXT_BYTES_MAX)
        fail_set(&f, EFBIG, "FILE_TOO_LARGE", "standard input has more than %zu bytes", TEXT_BYTES_MAX);
    else if (r < 0)
        fail_set(&f, -r, "IO_ERROR", "reading standard input failed: %s", strerror(-r));
    if (f.err)
        return complain(&f);
    struct text_span span = {.text = text.data, .n = text.size, .control = special};
    if (tokenizer_encode(t, &span, 1, &ids, &f) < 0)
        return complain(&f);
    for (size_t i = 0; i < ids.n; i++)
        printf(i > 0 ? " %u" : "%u", ids.id[i]);
    putchar('\n');
    return 0;
}

/* The next number on standard input: 1, 0 at the end, -EINVAL. */
static int read_id(uint64_t *ret)
{
    int c = getchar();

    while (c == ' ' || c == '\n' || c == '\t' || c == '\r')
        c = getchar();
    if (c == EOF)
        return ferror(stdin) ? -EIO : 0;
    for (*ret = 0; c >= '0' && c <= '9' && *ret <= UINT32_MAX; c = getchar())
        *ret = *ret * 10 + (uint64_t)(c - '0');
    return *ret <= UINT32_MAX && (c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == EOF) ? 1 : -EINVAL;
}

static int decode(const struct tokenizer *t)
{
    struct fail f = FAIL_INIT;
    uint64_t id = 0;
    const char *bytes;
    size_t n;
    int r;

    for (uint64_t index = 0; (r = read_id(&id)) == 1; index++) {
        if (tokenizer_bytes(t, (uint32_t)id, &bytes, &n) < 0) {
            fail_set(&f, EINVAL, "BAD_TOKEN", "the id at index %ju, %ju, is not in the vocabulary", (uintmax_t)index,
                     (uintmax_t)id);
            return complain(&f);
        }
        fwrite(bytes, 1, n, stdout);
    }
    if (r < 0) {
        fail_set(&f, -r, "BAD_TOKEN", "standard input is not a list of token ids");
        return complain(&f);
    }
    return 0;
}

static int run(const char *model, bool special, bool decoding)
{
    _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
    _cleanup_close_ int dir = open(model, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct fail f = FAIL_INIT;

    if (dir < 0)
        fail_set(&f, errno, "NOT_FOUND", "%s: %s", model, strerror(errno));
    else
        (void)tokenizer_read(dir, &t, &f);
    if (f.err)
        return complain(&f);
    int status = decoding ? decode(t) : encode(t, special);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "dsv4-eval tokenize: writing standard output failed: %s\n", strerror(errno));
        return 1;
    }
    return status;
}

int eval_tokenize(int argc, char **argv)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"special", no_argument, NULL, 's'},
                                            {"decode", no_argument, NULL, 'd'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    const char *model = NULL;
    bool special = false, decoding = false;

    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'm') {
            model = optarg;
        } else if (c == 's') {
            special = true;
        } else if (c == 'd') {
            decoding = true;
        } else {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : EVAL_EXIT_USAGE;
        }
    }
    if (!model || optind != argc || (special && decoding)) {
        fputs(usage, stderr);
        return EVAL_EXIT_USAGE;
    }
    return run(model, special, decoding);
}
