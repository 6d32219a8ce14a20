/* SPDX-License-Identifier: MIT */
/*
 * Many tokenizations in one process, for tokenizer-compare.py: tokenizer-batch DIR plain|control|decode.
 * Standard input is records: a 32-bit number of items and the items (bytes; 32-bit ids for decode). Standard output is
 * one record for each: ids (bytes for decode). The time without input and output goes to standard error.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "engine/tokenizer.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int write_record(const void *data, size_t items, size_t item)
{
    uint32_t n = (uint32_t)items;
    return fwrite(&n, sizeof(n), 1, stdout) == 1 && fwrite(data, item, items, stdout) == items ? 0 : -1;
}

static int encode(const struct tokenizer *t, const struct buf *in, bool control, double *time)
{
    _cleanup_tokens_ struct tokens ids = TOKENS_INIT;
    struct text_span span = {.text = in->data, .n = in->size, .control = control};
    struct fail f = FAIL_INIT;
    double start = now();
    int r = tokenizer_encode(t, &span, 1, &ids, &f);

    *time += now() - start;
    if (r < 0) {
        fprintf(stderr, "tokenizer-batch: %s\n", f.message);
        return -1;
    }
    return write_record(ids.id, ids.n, sizeof(*ids.id));
}

static int decode(const struct tokenizer *t, const struct buf *in)
{
    _cleanup_buf_ struct buf out = BUF_INIT;
    const char *bytes;
    uint32_t id;
    size_t n;

    for (size_t i = 0; i < in->size; i += sizeof(id)) {
        memcpy(&id, in->data + i, sizeof(id));
        if (tokenizer_bytes(t, id, &bytes, &n) == 0 && buf_append(&out, bytes, n) < 0)
            return -1;
    }
    return write_record(out.data ? out.data : "", out.size, 1);
}

static int read_record(struct buf *in, size_t item)
{
    uint32_t n;

    buf_clear(in);
    if (fread(&n, sizeof(n), 1, stdin) != 1)
        return feof(stdin) ? 0 : -1;
    if (buf_reserve(in, n * item) < 0 || fread(in->data, item, n, stdin) != n)
        return -1;
    in->size = n * item;
    return 1;
}

static int run(const char *dir_name, const char *mode)
{
    _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
    _cleanup_close_ int dir = open(dir_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    _cleanup_buf_ struct buf in = BUF_INIT;
    struct fail f = FAIL_INIT;
    double start = now(), busy = 0;
    bool decoding = strcmp(mode, "decode") == 0, control = strcmp(mode, "control") == 0;
    int r = -1;

    if (dir < 0 || tokenizer_read(dir, &t, &f) < 0) {
        fprintf(stderr, "tokenizer-batch: %s: %s\n", dir_name, dir < 0 ? "cannot be opened" : f.message);
        return 1;
    }
    double load = now() - start;
    while ((r = read_record(&in, decoding ? 4 : 1)) == 1)
        if ((decoding ? decode(t, &in) : encode(t, &in, control, &busy)) < 0)
            return 1;
    fprintf(stderr, "%.6f %.6f\n", load, busy);
    return r < 0 || fflush(stdout) != 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("tokenizer-batch DIR plain|control|decode < RECORDS\n", stderr);
        return 64;
    }
    return run(argv[1], argv[2]);
}
