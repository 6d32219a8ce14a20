/* SPDX-License-Identifier: MIT */
/* See eval-util.h. */
#include "engine/eval-util.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/parse.h"
#include "engine/eval.h"

#define TOKEN_FILE_MAX ((size_t)256 << 20) /* bytes */
#define DUMP_NAMES_MAX (4 * MAX_LAYERS)

int eval_number(const char *command, const char *option, const char *value, uint64_t min, uint64_t max, uint64_t *ret)
{
    if (parse_u64(value, min, max, ret) == 0)
        return 0;
    fprintf(stderr, "dsv4-eval %s: --%s must be a whole number from %" PRIu64 " to %" PRIu64 ", not '%s'\n", command,
            option, min, max, value);
    return -EINVAL;
}

static int number32(const struct eval_options *o, const char *option, const char *value, uint32_t max, uint32_t *ret)
{
    uint64_t n;
    int r = eval_number(o->command, option, value, 1, max, &n);

    if (r == 0)
        *ret = (uint32_t)n;
    return r < 0 ? r : 1;
}

static int numerics_of(struct eval_options *o, const char *value)
{
    if (strcmp(value, "exact") == 0)
        o->model.numerics = NUMERICS_EXACT;
    else if (strcmp(value, "fast") == 0)
        o->model.numerics = NUMERICS_FAST;
    else {
        fprintf(stderr, "dsv4-eval %s: --numerics must be exact or fast, not '%s'\n", o->command, value);
        return -EINVAL;
    }
    return 1;
}

int eval_option(struct eval_options *o, int opt, const char *value)
{
    switch (opt) {
    case EVAL_OPT_MODEL:
        o->model_dir = value;
        return 1;
    case EVAL_OPT_BACKEND:
        o->model.device = value;
        return 1;
    case EVAL_OPT_NUMERICS:
        return numerics_of(o, value);
    case EVAL_OPT_THREADS:
        return number32(o, "threads", value, 4096, &o->model.threads);
    case EVAL_OPT_ISA:
        o->model.isa = value;
        return 1;
    case EVAL_OPT_STEP:
        return number32(o, "step-tokens", value, 65536, &o->model.max_step_tokens);
    case EVAL_OPT_DUMP:
        o->dump_dir = value;
        return 1;
    default:
        return 0;
    }
}

int eval_failed(const char *command, const struct fail *f)
{
    fprintf(stderr, "dsv4-eval %s: %s (%s)\n", command, f->message, f->code);
    return EXIT_FAILURE;
}

int eval_usage(const char *command, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "dsv4-eval %s: ", command);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "; dsv4-eval %s --help tells more\n", command);
    return EVAL_EXIT_USAGE;
}

/* ---------------------------------------------------------------- token files */

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* The word at text[at], of n bytes, as a token id. */
static int parse_token(const char *word, size_t n, size_t index, uint32_t vocab, uint32_t *ret, struct fail *f)
{
    char digits[24];
    uint64_t id;

    if (n < sizeof(digits)) {
        memcpy(digits, word, n);
        digits[n] = '\0';
        if (memchr(word, '\0', n) == NULL && parse_u64(digits, 0, vocab - 1, &id) == 0) {
            *ret = (uint32_t)id;
            return 0;
        }
    }
    return fail_set(f, EINVAL, "BAD_TOKEN", "word %zu is no token id; the model has 0 to %" PRIu32, index + 1, vocab - 1);
}

int eval_parse_tokens(const char *text, size_t size, uint32_t vocab, struct tokens *out, struct fail *f)
{
    size_t at = 0;

    for (;;) {
        size_t n = 0;
        uint32_t id;
        int r;

        while (at < size && is_space(text[at]))
            at++;
        if (at == size)
            break;
        while (at + n < size && !is_space(text[at + n]))
            n++;
        r = parse_token(text + at, n, out->n, vocab, &id, f);
        if (r < 0)
            return r;
        if (tokens_append(out, &id, 1) < 0)
            return fail_oom(f);
        at += n;
    }
    return out->n > 0 ? 0 : fail_set(f, EINVAL, "EMPTY_INPUT", "there are no token ids");
}

int eval_read_tokens(const char *path, uint32_t vocab, struct tokens *out, struct fail *f)
{
    _cleanup_free_ char *text = NULL;
    size_t size;
    int r = fd_read_file(AT_FDCWD, path, TOKEN_FILE_MAX, &text, &size, f);

    if (r < 0)
        return r;
    r = eval_parse_tokens(text, size, vocab, out, f);
    if (r < 0)
        fail_prefix(f, "%s", path);
    return r;
}

uint32_t eval_argmax(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* ---------------------------------------------------------------- dump */

struct eval_dump {
    int dir_fd;
    int err; /* first failure, negative errno; nothing is written after it */
    uint32_t n;
    struct {
        char name[48];
        uint32_t width;
    } seen[DUMP_NAMES_MAX];
};

/* True the first time a name comes. */
static bool dump_is_new(struct eval_dump *d, const char *name, uint32_t width)
{
    for (uint32_t i = 0; i < d->n; i++)
        if (strcmp(d->seen[i].name, name) == 0)
            return false;
    if (d->n < DUMP_NAMES_MAX) {
        snprintf(d->seen[d->n].name, sizeof(d->seen[d->n].name), "%s", name);
        d->seen[d->n++].width = width;
    }
    return true;
}

/* forward_watch: appends to DIR/NAME.f32. Opened anew each time: there are hundreds, and this is for looking closely. */
static void dump_write(const char *name, const float *data, uint32_t tokens, uint32_t width, void *userdata)
{
    struct eval_dump *d = userdata;
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (dump_is_new(d, name, width) ? O_TRUNC : O_APPEND);
    _cleanup_close_ int fd = -1;
    char file[64];

    if (d->err < 0)
        return;
    snprintf(file, sizeof(file), "%s.f32", name);
    fd = openat(d->dir_fd, file, flags, 0666);
    d->err = fd < 0 ? -errno : fd_write_full(fd, data, (size_t)tokens * width * sizeof(float));
}

static int dump_open(const char *dir, struct eval_dump **ret, struct fail *f)
{
    struct eval_dump *d;
    int fd;

    if (mkdir(dir, 0777) < 0 && errno != EEXIST)
        return fail_set(f, errno, "IO_ERROR", "%s: cannot be made: %s", dir, strerror(errno));
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: cannot be opened: %s", dir, strerror(errno));
    d = calloc(1, sizeof(*d));
    if (!d) {
        close(fd);
        return fail_oom(f);
    }
    d->dir_fd = fd;
    *ret = d;
    return 0;
}

static int dump_names(const struct eval_dump *d)
{
    int fd = openat(d->dir_fd, "names.txt", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    FILE *out = fd < 0 ? NULL : fdopen(fd, "w");

    if (!out) {
        int err = errno;
        if (fd >= 0)
            close(fd);
        return -err;
    }
    for (uint32_t i = 0; i < d->n; i++)
        fprintf(out, "%s %" PRIu32 "\n", d->seen[i].name, d->seen[i].width);
    return fclose(out) == 0 ? 0 : -errno;
}

/* ---------------------------------------------------------------- models */

int eval_model_open(const struct eval_options *o, struct eval_model *ret, struct fail *f)
{
    _cleanup_eval_model_ struct eval_model m = {0};
    int r = model_open(o->model_dir, &o->model, &m.model, f);

    if (r < 0)
        return r;
    r = kv_session_new(m.model->pool, 0, &m.session, f);
    if (r < 0)
        return r;
    if (o->dump_dir) {
        r = dump_open(o->dump_dir, &m.dump, f);
        if (r < 0)
            return r;
        forward_set_watch(m.model, dump_write, m.dump);
    }
    *ret = m;
    m = (struct eval_model){0};
    return 0;
}

int eval_model_finish(struct eval_model *m, struct fail *f)
{
    int r;

    if (!m->dump)
        return 0;
    r = m->dump->err < 0 ? m->dump->err : dump_names(m->dump);
    return r < 0 ? fail_set(f, -r, "IO_ERROR", "the dump could not be written: %s", strerror(-r)) : 0;
}

void eval_model_deinit(struct eval_model *m)
{
    (void)kv_session_free(m->session);
    (void)model_free(m->model);
    if (m->dump) {
        close(m->dump->dir_fd);
        free(m->dump);
    }
}
