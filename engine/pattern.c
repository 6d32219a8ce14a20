/* SPDX-License-Identifier: MIT */
/* Matching with a pattern's tables: see pattern-build.c for the idea. */
#include "base/buf.h"
#include "engine/pattern-private.h"

int pattern_new(const char *regex, size_t n, struct pattern **ret, struct fail *f)
{
    _cleanup_free_ struct syntax *syntax = NULL;
    int r = pattern_parse(regex, n, &syntax, f);

    return r < 0 ? r : pattern_build(syntax, ret, f);
}

int pattern_new_literal(const char *text, size_t n, struct pattern **ret, struct fail *f)
{
    _cleanup_buf_ struct buf regex = BUF_INIT;

    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i], letter = c | 0x20;
        bool plain = c <= ' ' || c >= 0x7f || (c >= '0' && c <= '9') || (letter >= 'a' && letter <= 'z');
        if (buf_append(&regex, "\\", plain ? 0 : 1) < 0 || buf_append(&regex, &c, 1) < 0)
            return fail_oom(f);
    }
    return pattern_new(regex.data ? regex.data : "", regex.size, ret, f);
}

struct pattern *pattern_free(struct pattern *p)
{
    if (!p)
        return NULL;
    free(p->class);
    free(p->before);
    free(p->action);
    free(p);
    return NULL;
}

/* ---- matching */

/* V at each character's first byte, from the end; [n] is the end. */
static void find_viable(const struct pattern *p, const char *text, size_t n, uint16_t *v /* [n + 1] */)
{
    uint16_t state = p->end;
    size_t i = n;

    v[n] = state;
    while (i > 0) {
        uint32_t c = (unsigned char)text[--i];
        if (c >= 0x80) {
            unsigned shift = 0;
            for (c = 0; ((unsigned char)text[i] & 0xc0) == 0x80; i--, shift += 6)
                c |= ((uint32_t)(unsigned char)text[i] & 0x3f) << shift;
            c |= ((uint32_t)(unsigned char)text[i] & (0x3fu >> (shift / 6))) << shift;
        }
        uint8_t class = p->class[p->block[c / BLOCK] * BLOCK + c % BLOCK];
        state = v[i] = p->before[state * p->n_classes + class];
    }
}

static size_t length_at(const char *s)
{
    unsigned char c = (unsigned char)*s;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

void pattern_split(const struct pattern *p, const char *text, size_t n, uint16_t *v, uint8_t *cut)
{
    find_viable(p, text, n, v);
    for (size_t i = 0; i < n;) {
        uint8_t take = p->action[v[i]][p->start];
        if (take == DO_FAIL) {
            i += length_at(text + i);
            continue;
        }
        for (cut[i] = 1; take != DO_MATCH; take = p->action[v[i]][p->after[take]])
            i += length_at(text + i);
        if (i < n)
            cut[i] = 1;
    }
}
