/* SPDX-License-Identifier: MIT */
/*
 * Encoding: control spans are searched for added tokens; the text between those, whichever spans it comes from, is cut
 * by the split patterns one after the other, and each piece is merged as a word. Reading the file: tokenizer-json.c.
 */
#include "engine/tokenizer.h"

#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "base/utf8.h"
#include "engine/tokenizer-private.h"

#define TEXT_BYTES_MAX ((size_t)INT32_MAX) /* positions in a word are 32 bits */

void tokens_deinit(struct tokens *t)
{
    free(t->id);
    *t = TOKENS_INIT;
}

int tokens_append(struct tokens *t, const uint32_t *id, size_t n)
{
    size_t need, bytes;

    if (!size_add(t->n, n, &need))
        return -ENOMEM;
    if (need > t->capacity) {
        size_t capacity = MAX(need, MAX((size_t)64, t->capacity + t->capacity / 2));
        uint32_t *more = size_mul(capacity, sizeof(*id), &bytes) ? realloc(t->id, bytes) : NULL;
        if (!more)
            return -ENOMEM;
        t->id = more;
        t->capacity = capacity;
    }
    if (n > 0)
        memcpy(t->id + t->n, id, n * sizeof(*id));
    t->n = need;
    return 0;
}

struct tokenizer *tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return NULL;
    for (unsigned i = 0; i < t->n_splits; i++)
        pattern_free(t->split[i]);
    added_free(t->added[0]);
    added_free(t->added[1]);
    bpe_free(t->bpe);
    buf_deinit(&t->bytes);
    free(t->token);
    free(t);
    return NULL;
}

/* ---- encoding */

struct added_hit {
    size_t at, n;
    uint32_t id;
};

/* Everything one tokenizer_encode needs. */
struct encoding {
    const struct tokenizer *t;
    const char *text;       /* [n], all spans */
    size_t n;
    uint16_t *scratch;      /* [n + 1] */
    uint8_t *cut;           /* [n]: a piece begins here */
    struct bpe_work work;
    struct buf hits;        /* struct added_hit, ascending */
    struct tokens *out;
};

static void encoding_deinit(struct encoding *e)
{
    free(e->scratch);
    free(e->cut);
    bpe_work_deinit(&e->work);
    buf_deinit(&e->hits);
}

static size_t piece_end(const struct encoding *e, size_t at, size_t end)
{
    const uint8_t *next = at + 1 < end ? memchr(e->cut + at + 1, 1, end - at - 1) : NULL;
    return next ? (size_t)(next - e->cut) : end;
}

/* text[at .. end), which contains no added token. */
static int encode_plain(struct encoding *e, size_t at, size_t end)
{
    for (unsigned s = 0; s < e->t->n_splits; s++)
        for (size_t i = at, next; i < end; i = next) {
            next = piece_end(e, i, end);
            pattern_split(e->t->split[s], e->text + i, next - i, e->scratch, e->cut + i);
        }
    for (size_t i = at, next; i < end; i = next) {
        next = piece_end(e, i, end);
        int r = bpe_encode(e->t->bpe, &e->work, e->text + i, next - i, e->out);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Added tokens of text[at .. end) in order: those of one list first, those of the next between them. */
static int find_added(struct encoding *e, unsigned list, size_t at, size_t end)
{
    struct added_hit hit;
    int r;

    if (list == ELEMENTS(e->t->added))
        return 0;
    while (at < end && added_find(e->t->added[list], e->text, end, at, &hit.at, &hit.n, &hit.id) == 1) {
        r = find_added(e, list + 1, at, hit.at);
        if (r == 0)
            r = buf_append(&e->hits, &hit, sizeof(hit));
        if (r < 0)
            return r;
        at = hit.at + hit.n;
    }
    return at < end ? find_added(e, list + 1, at, end) : 0;
}

static int encode_all(struct encoding *e, const struct text_span *span, size_t n_spans)
{
    size_t at = 0;
    int r = 0;

    for (size_t i = 0, begin = 0; r == 0 && i < n_spans; begin += span[i++].n)
        if (span[i].control)
            r = find_added(e, 0, begin, begin + span[i].n);
    for (size_t i = 0; r == 0 && i < e->hits.size / sizeof(struct added_hit); i++) {
        struct added_hit hit;
        memcpy(&hit, e->hits.data + i * sizeof(hit), sizeof(hit));
        r = encode_plain(e, at, hit.at);
        if (r == 0)
            r = tokens_append(e->out, &hit.id, 1);
        at = hit.at + hit.n;
    }
    return r < 0 ? r : encode_plain(e, at, e->n);
}

/* All spans as one text: the only span's own memory, or a copy in *joined. */
static int join_spans(const struct text_span *span, size_t n_spans, struct buf *joined, const char **ret, size_t *ret_n,
                      struct fail *f)
{
    size_t n = 0;

    for (size_t i = 0; i < n_spans; i++)
        if (!size_add(n, span[i].n, &n) || n > TEXT_BYTES_MAX) {
            int r = fail_set(f, ERANGE, "RANGE", "the text is longer than %zu bytes", TEXT_BYTES_MAX);
            fail_limit(f, (int64_t)TEXT_BYTES_MAX, n > INT64_MAX ? INT64_MAX : (int64_t)n);
            return r;
        }
    for (size_t i = 0; n_spans > 1 && i < n_spans; i++)
        if (span[i].n > 0 && buf_append(joined, span[i].text, span[i].n) < 0)
            return fail_oom(f);
    *ret = n == 0 ? "" : n_spans == 1 ? span[0].text : joined->data;
    *ret_n = n;
    ssize_t bad = utf8_invalid_at(*ret, n);
    if (bad >= 0) {
        int r = fail_set(f, EILSEQ, "BAD_UTF8", "the text is not valid UTF-8 at byte %zd", bad);
        if (f)
            f->has_value = true, f->value = bad;
        return r;
    }
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const struct text_span *span, size_t n_spans, struct tokens *out,
                     struct fail *f)
{
    _cleanup_buf_ struct buf joined = BUF_INIT;
    _cleanup_(encoding_deinit) struct encoding e = {.t = t, .out = out};
    int r = join_spans(span, n_spans, &joined, &e.text, &e.n, f);

    if (r < 0)
        return r;
    e.scratch = malloc((e.n + 1) * sizeof(*e.scratch));
    e.cut = calloc(e.n + 1, 1);
    if (!e.scratch || !e.cut)
        return fail_oom(f);
    size_t before = out->n;
    r = encode_all(&e, span, n_spans);
    if (r < 0) {
        out->n = before;
        return fail_oom(f);
    }
    return 0;
}

/* ---- looking up */

int tokenizer_bytes(const struct tokenizer *t, uint32_t id, const char **ret, size_t *ret_n)
{
    if (id >= t->size || !(t->token[id].flags & TOKEN_EXISTS))
        return -ENOENT;
    *ret = t->bytes.data + t->token[id].at;
    *ret_n = t->token[id].n;
    return 0;
}

int tokenizer_find_added(const struct tokenizer *t, const char *text, uint32_t *ret)
{
    size_t n = strlen(text), at, length;
    uint32_t id;

    for (unsigned list = 0; list < ELEMENTS(t->added); list++)
        if (added_find(t->added[list], text, n, 0, &at, &length, &id) == 1 && at == 0 && length == n) {
            *ret = id;
            return 0;
        }
    return -ENOENT;
}

bool tokenizer_is_special(const struct tokenizer *t, uint32_t id)
{
    return id < t->size && (t->token[id].flags & TOKEN_SPECIAL);
}

uint32_t tokenizer_size(const struct tokenizer *t)
{
    return t->size;
}
