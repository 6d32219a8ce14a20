/* SPDX-License-Identifier: MIT */
/*
 * See textstream.h. Each stop string has its own Knuth-Morris-Pratt matcher: how much of it the text ends with is known
 * after every byte, and the most of those is what must be held back. At most STOP_STRINGS_MAX steps a byte on average.
 */
#include "engine/textstream.h"

#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

struct stop {
    unsigned char text[STOP_STRING_BYTES_MAX]; /* [n] */
    uint16_t shorter[STOP_STRING_BYTES_MAX];   /* [n]: of text[0..i], the longest proper prefix that is a suffix too */
    uint16_t n, matched;                       /* matched: how much of it the text ends with */
};

struct textstream {
    const struct tokenizer *tokenizer;
    struct buf bytes;   /* of tokens, not characters yet: the beginning of one, at most 3 between calls */
    struct buf text;    /* characters: first what the last call gave out, then what is held back */
    size_t given;       /* bytes of text that the last call gave out */
    bool ended;
    uint32_t n_stops;
    struct stop stop[]; /* [n_stops] */
};

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

static uint16_t advance(const struct stop *s, uint16_t matched, unsigned char c)
{
    while (matched > 0 && s->text[matched] != c)
        matched = s->shorter[matched - 1];
    return s->text[matched] == c ? (uint16_t)(matched + 1) : 0;
}

static void stop_init(struct stop *s, const char *text, size_t n)
{
    memcpy(s->text, text, n);
    s->n = (uint16_t)n;
    for (size_t i = 1; i < n; i++)
        s->shorter[i] = advance(s, s->shorter[i - 1], s->text[i]);
}

int textstream_new(const struct tokenizer *t, const char *const *stop, const size_t *stop_n, uint32_t n_stops,
                   struct textstream **ret)
{
    _cleanup_(textstream_freep) struct textstream *s = NULL;

    if (n_stops > STOP_STRINGS_MAX)
        return -EINVAL;
    for (uint32_t i = 0; i < n_stops; i++)
        if (stop_n[i] == 0 || stop_n[i] > STOP_STRING_BYTES_MAX || utf8_invalid_at(stop[i], stop_n[i]) >= 0)
            return -EINVAL;
    s = calloc(1, sizeof(*s) + n_stops * sizeof(s->stop[0]));
    if (!s)
        return -ENOMEM;
    s->tokenizer = t;
    s->n_stops = n_stops;
    for (uint32_t i = 0; i < n_stops; i++)
        stop_init(&s->stop[i], stop[i], stop_n[i]);
    *ret = TAKE_PTR(s);
    return 0;
}

struct textstream *textstream_free(struct textstream *s)
{
    if (s) {
        buf_deinit(&s->bytes);
        buf_deinit(&s->text);
    }
    free(s);
    return NULL;
}

/* One byte of text goes through the matchers: how long the stop string is that it completes, or 0. */
static size_t match_byte(struct textstream *s, unsigned char c)
{
    size_t found = 0;

    for (uint32_t i = 0; i < s->n_stops; i++) {
        struct stop *p = &s->stop[i];
        p->matched = advance(p, p->matched, c);
        if (p->matched == p->n)
            found = MAX(found, (size_t)p->n);
    }
    return found;
}

/* Appends text; cut before the stop string, and the end, if one is complete. */
static int add_text(struct textstream *s, const char *text, size_t n)
{
    int r = buf_reserve(&s->text, n);

    if (r < 0)
        return r;
    for (size_t i = 0; i < n && !s->ended; i++) {
        (void)buf_append(&s->text, text + i, 1);
        size_t found = match_byte(s, (unsigned char)text[i]);
        if (found > 0) {
            s->text.size -= found;
            s->text.data[s->text.size] = '\0';
            s->ended = true;
        }
    }
    return 0;
}

/* How many bytes at s are one mistake: the beginning of a character that then goes wrong, or one byte. */
static size_t mistake_length(const char *s, size_t n)
{
    size_t length = 1;
    uint32_t c;

    while (length < n && utf8_decode(s, length + 1, &c) == -1)
        length++;
    return length;
}

/* What of s->bytes is decided goes to the text; at the end of the output everything is. */
static int decode_bytes(struct textstream *s, bool last)
{
    const char *p = s->bytes.data;
    size_t n = s->bytes.size, i = 0;
    int r = 0;

    while (r == 0 && i < n && !s->ended) {
        uint32_t c;
        int length = utf8_decode(p + i, n - i, &c);
        if (length == -1 && !last)
            break;
        r = length > 0 ? add_text(s, p + i, (size_t)length) : add_text(s, replacement, sizeof(replacement) - 1);
        i += length > 0 ? (size_t)length : mistake_length(p + i, n - i);
    }
    buf_consume(&s->bytes, i);
    return r;
}

static int give_out(struct textstream *s, bool last, const char **ret, size_t *ret_n)
{
    size_t held = 0;

    for (uint32_t i = 0; i < s->n_stops && !s->ended && !last; i++)
        held = MAX(held, (size_t)s->stop[i].matched);
    s->given = s->text.size - held;
    *ret = s->text.data ? s->text.data : "";
    *ret_n = s->given;
    return s->ended ? 1 : 0;
}

int textstream_feed(struct textstream *s, uint32_t id, const char **ret, size_t *ret_n)
{
    const char *bytes;
    size_t n;
    int r = tokenizer_bytes(s->tokenizer, id, &bytes, &n);

    *ret = "";
    *ret_n = 0;
    if (r < 0)
        return r;
    buf_consume(&s->text, s->given);
    s->given = 0;
    if (s->ended)
        return 1;
    r = buf_append(&s->bytes, bytes, n);
    if (r == 0)
        r = decode_bytes(s, false);
    return r < 0 ? r : give_out(s, false, ret, ret_n);
}

int textstream_finish(struct textstream *s, const char **ret, size_t *ret_n)
{
    *ret = "";
    *ret_n = 0;
    buf_consume(&s->text, s->given);
    s->given = 0;
    if (s->ended)
        return 1;
    int r = decode_bytes(s, true);
    return r < 0 ? r : give_out(s, true, ret, ret_n);
}
