/* SPDX-License-Identifier: MIT */
/*
 * The forward pass on models/nano: the same bits whatever the chunks, the company and the threads; failures that change
 * nothing. Whether the numbers are right is tests/golden's business.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/forward.h"

#define VOCAB 512
#define LONGEST 300

static char directory[4096];

/* ---------------------------------------------------------------- helpers */

/* Texts that differ, with every id of the vocabulary possible. */
static uint32_t token_at(uint32_t text, uint32_t position)
{
    uint32_t x = text * 2654435761u + position * 40503u + 12345u;

    x ^= x >> 13;
    x *= 0x5bd1e995u;
    return (x ^ x >> 15) % VOCAB;
}

static struct model *open_model(const struct model_options *o)
{
    struct model *m = NULL;
    struct fail f = FAIL_INIT;

    if (model_open(directory, o, &m, &f) < 0)
        fail_msg("%s (%s)", f.message, f.code);
    assert_int_equal(m->shape->vocab, VOCAB);
    return m;
}

static struct model *open_nano(enum numerics numerics, uint32_t threads)
{
    struct model_options o = {.numerics = numerics, .threads = threads, .max_step_tokens = LONGEST,
                              .kv_bytes = 16 << 20, .context_tokens = 4096};

    return open_model(&o);
}

static struct kv_session *open_session(struct model *m, uint64_t owner)
{
    struct kv_session *s = NULL;
    struct fail f = FAIL_INIT;

    if (kv_session_new(m->pool, owner, &s, &f) < 0)
        fail_msg("%s (%s)", f.message, f.code);
    return s;
}

/* Adds tokens from..to-1 of a text in chunks; ret: [to - from][VOCAB] */
static void feed(struct model *m, struct kv_session *s, uint32_t text, uint32_t from, uint32_t to, uint32_t chunk,
                 float *ret)
{
    uint32_t token[LONGEST];
    struct fail f = FAIL_INIT;

    for (uint32_t at = from; at < to; at += chunk) {
        uint32_t n = MIN(chunk, to - at);
        struct step_part part = {.session = s, .token = token, .count = n, .logit_rows = n};

        for (uint32_t i = 0; i < n; i++)
            token[i] = token_at(text, at + i);
        if (forward_step(m, &part, 1, ret + (size_t)(at - from) * VOCAB, &f) < 0)
            fail_msg("%s (%s)", f.message, f.code);
    }
    assert_int_equal(s->tokens, to);
}

static float *rows_new(uint32_t n)
{
    float *rows = calloc((size_t)n * VOCAB, sizeof(*rows));

    assert_non_null(rows);
    return rows;
}

/* All logits of a text alone; the caller frees. */
static float *alone(struct model *m, uint32_t text, uint32_t n, uint32_t chunk)
{
    struct kv_session *s = open_session(m, text);
    float *rows = rows_new(n);

    feed(m, s, text, 0, n, chunk, rows);
    kv_session_free(s);
    return rows;
}

static void assert_same(const float *a, const float *b, uint32_t n, const char *what)
{
    for (uint32_t i = 0; i < n; i++)
        if (memcmp(a + (size_t)i * VOCAB, b + (size_t)i * VOCAB, VOCAB * sizeof(float)) != 0)
            fail_msg("%s: row %u of %u differs", what, i, n);
}

/* ---------------------------------------------------------------- the same bits */

static void chunks_change_nothing(void **state)
{
    const uint32_t chunk[] = {1, 7, 64, 128, 299};

    for (enum numerics k = NUMERICS_EXACT; k <= NUMERICS_FAST; k++) {
        struct model *m = open_nano(k, 2);
        float *whole = alone(m, 1, LONGEST, LONGEST);

        for (size_t i = 0; i < ELEMENTS(chunk); i++) {
            float *cut = alone(m, 1, LONGEST, chunk[i]);

            assert_same(whole, cut, LONGEST, k == NUMERICS_EXACT ? "exact" : "fast");
            free(cut);
        }
        free(whole);
        model_free(m);
    }
    (void)state;
}

static void threads_change_nothing(void **state)
{
    for (enum numerics k = NUMERICS_EXACT; k <= NUMERICS_FAST; k++) {
        struct model *m = open_nano(k, 1);
        float *one = alone(m, 3, LONGEST, LONGEST);

        model_free(m);
        for (uint32_t threads = 2; threads <= 3; threads++) {
            m = open_nano(k, threads);
            float *many = alone(m, 3, LONGEST, 150);

            assert_same(one, many, LONGEST, "threads");
            free(many);
            model_free(m);
        }
        free(one);
    }
    (void)state;
}

enum { COMPANY = 6 };

/* One step for every session that has tokens left: chunk[i] of them. Returns whether there was one. */
static bool step_together(struct model *m, struct kv_session *const *s, const uint32_t *length, const uint32_t *chunk,
                          float *const *rows, float *logits)
{
    static uint32_t token[COMPANY][LONGEST];
    struct step_part part[COMPANY];
    uint32_t which[COMPANY], n = 0;
    struct fail f = FAIL_INIT;

    for (uint32_t i = 0; i < COMPANY; i++) {
        uint32_t count = MIN(chunk[i], length[i] - s[i]->tokens);

        for (uint32_t k = 0; k < count; k++)
            token[i][k] = token_at(i, s[i]->tokens + k);
        if (count > 0) {
            which[n] = i;
            part[n++] = (struct step_part){.session = s[i], .token = token[i], .count = count, .logit_rows = count};
        }
    }
    if (n == 0)
        return false;
    if (forward_step(m, part, n, logits, &f) < 0)
        fail_msg("%s (%s)", f.message, f.code);
    for (uint32_t k = 0; k < n; k++) {
        memcpy(rows[which[k]] + (size_t)(s[which[k]]->tokens - part[k].count) * VOCAB, logits,
               (size_t)part[k].count * VOCAB * sizeof(float));
        logits += (size_t)part[k].count * VOCAB;
    }
    return true;
}

/* Chunks of prompts and single tokens of others in the same steps. */
static void company_changes_nothing(void **state)
{
    const uint32_t length[COMPANY] = {1, 130, 33, 257, 128, LONGEST}, chunk[COMPANY] = {1, 1, 5, 64, 128, 37};

    for (enum numerics k = NUMERICS_EXACT; k <= NUMERICS_FAST; k++) {
        struct model *m = open_nano(k, 2);
        struct kv_session *s[COMPANY];
        float *rows[COMPANY], *logits = rows_new(LONGEST);

        for (uint32_t i = 0; i < COMPANY; i++) {
            s[i] = open_session(m, i);
            rows[i] = rows_new(length[i]);
        }
        while (step_together(m, s, length, chunk, rows, logits))
            ;
        for (uint32_t i = 0; i < COMPANY; i++) {
            float *own = alone(m, i, length[i], LONGEST);

            assert_same(own, rows[i], length[i], "company");
            free(own);
            free(rows[i]);
            kv_session_free(s[i]);
        }
        free(logits);
        model_free(m);
    }
    (void)state;
}

/* A fork goes on as the original would have, and neither notices the other. */
static void forks_go_on(void **state)
{
    struct model *m = open_nano(NUMERICS_FAST, 2);
    struct kv_session *a = open_session(m, 9), *b = NULL;
    float *rows = rows_new(LONGEST), *own = alone(m, 9, LONGEST, LONGEST), *forked = rows_new(LONGEST);
    struct fail f = FAIL_INIT;

    feed(m, a, 9, 0, 201, 50, rows);
    assert_int_equal(kv_session_fork(a, &b, &f), 0);
    for (uint32_t i = 201; i < LONGEST; i++) {
        feed(m, b, 9, i, i + 1, 1, forked + (size_t)i * VOCAB);
        feed(m, a, 4, i, i + 1, 1, rows); /* another text, into the page they shared */
    }
    assert_same(own + 201 * VOCAB, forked + 201 * VOCAB, LONGEST - 201, "fork");
    kv_session_free(a);
    kv_session_free(b);
    free(rows);
    free(own);
    free(forked);
    model_free(m);
    (void)state;
}

/* Far from the start: more entries than top-k, many pages, prefill and decode. */
static void long_sessions(void **state)
{
    enum { LENGTH = 3000, TAIL = 20 };
    struct model *m = open_nano(NUMERICS_FAST, 2);
    uint32_t *token = calloc(LENGTH, sizeof(*token));
    float *a = rows_new(TAIL), *b = rows_new(TAIL);
    struct kv_session *s = open_session(m, 1), *t = open_session(m, 1);
    struct fail f = FAIL_INIT;

    assert_non_null(token);
    for (uint32_t i = 0; i < LENGTH; i++)
        token[i] = token_at(1, i);
    assert_int_equal(forward_prefill(m, s, token, LENGTH - TAIL, NULL, &f), 0);
    for (uint32_t i = 0; i < TAIL; i++)
        feed(m, s, 1, LENGTH - TAIL + i, LENGTH - TAIL + i + 1, 1, a + (size_t)i * VOCAB);
    assert_int_equal(forward_prefill(m, t, token, 2900, NULL, &f), 0);
    assert_int_equal(forward_prefill(m, t, token + 2900, LENGTH - TAIL - 2900, NULL, &f), 0);
    feed(m, t, 1, LENGTH - TAIL, LENGTH, TAIL, b);
    assert_same(a, b, TAIL, "position 3000");
    kv_session_free(s);
    kv_session_free(t);
    free(a);
    free(b);
    free(token);
    model_free(m);
    (void)state;
}

/* ---------------------------------------------------------------- failures */

static void assert_step_fails(struct model *m, const struct step_part *part, uint32_t n, float *logits, int err,
                              const char *code)
{
    struct fail f = FAIL_INIT;
    struct kv_stats before, after;
    uint32_t had = n > 0 ? part[0].session->tokens : 0;

    kv_pool_stats(m->pool, &before);
    assert_int_equal(forward_step(m, part, n, logits, &f), -err);
    assert_string_equal(f.code, code);
    kv_pool_stats(m->pool, &after);
    assert_int_equal(before.pages_used, after.pages_used);
    assert_int_equal(n > 0 ? part[0].session->tokens : 0, had);
}

static void bad_steps_are_refused(void **state)
{
    struct model *m = open_nano(NUMERICS_EXACT, 1);
    struct kv_session *s = open_session(m, 1);
    const uint32_t good[2] = {1, 2}, bad[2] = {1, VOCAB}, many[LONGEST + 1] = {0};
    struct step_part p[2] = {{.session = s, .token = good, .count = 2, .logit_rows = 2}};
    float *rows = rows_new(4);

    assert_step_fails(m, p, 0, rows, EINVAL, "EMPTY_INPUT");
    assert_step_fails(m, p, 1, NULL, EINVAL, "RANGE");
    p[0].logit_rows = 3;
    assert_step_fails(m, p, 1, rows, ERANGE, "RANGE");
    p[0].logit_rows = 1;
    p[0].count = 0;
    assert_step_fails(m, p, 1, rows, EINVAL, "EMPTY_INPUT");
    p[0].count = 2;
    p[0].token = bad;
    assert_step_fails(m, p, 1, rows, EINVAL, "BAD_TOKEN");
    p[0].token = good;
    p[1] = p[0];
    assert_step_fails(m, p, 2, rows, EINVAL, "RANGE");
    p[0].token = many;
    p[0].count = LONGEST + 1;
    assert_step_fails(m, p, 1, rows, ERANGE, "RANGE");
    s->tokens = m->context_tokens - 1;
    p[0].token = good;
    p[0].count = 2;
    assert_step_fails(m, p, 1, rows, ENOSPC, "CONTEXT_FULL");
    s->tokens = 0;
    assert_int_equal(forward_step(m, p, 1, rows, NULL), 0); /* and after all that it still works */
    assert_int_equal(s->tokens, 2);
    kv_session_free(s);
    free(rows);
    model_free(m);
    (void)state;
}

static void full_memory_changes_nothing(void **state)
{
    struct model_options o = {.numerics = NUMERICS_FAST, .threads = 1, .kv_bytes = 0};
    struct model *m = open_nano(NUMERICS_FAST, 1);

    o.kv_bytes = 3 * m->kv.page_bytes + 1;
    model_free(m);
    m = open_model(&o);

    struct kv_session *a = open_session(m, 1), *b = open_session(m, 2);
    float *rows = rows_new(LONGEST), *own = alone(m, 1, 200, 200);
    uint32_t token[LONGEST] = {0};
    struct step_part p[2] = {{.session = a, .token = token, .count = 5}, {.session = b, .token = token, .count = 130}};

    feed(m, a, 1, 0, 150, 150, rows);
    p[0].count = 120; /* one page more for a, two for b, one is free */
    assert_step_fails(m, p, 2, NULL, ENOSPC, "KV_FULL");
    assert_int_equal(b->tokens, 0);
    assert_int_equal(forward_prefill(m, b, token, LONGEST, NULL, NULL), -ENOSPC);
    assert_int_equal(b->tokens, 0);
    feed(m, a, 1, 150, 200, 50, rows + 150 * VOCAB);
    assert_same(own, rows, 200, "after KV_FULL");
    kv_session_free(a);
    kv_session_free(b);
    free(rows);
    free(own);
    model_free(m);
    (void)state;
}

static void assert_open_fails(const char *dir, const struct model_options *o, int err, const char *code)
{
    struct model *m = NULL;
    struct fail f = FAIL_INIT;

    assert_int_equal(model_open(dir, o, &m, &f), -err);
    assert_string_equal(f.code, code);
    assert_null(m);
}

static void bad_options_are_refused(void **state)
{
    assert_open_fails("/nonexistent", &(struct model_options){0}, ENOENT, "NOT_FOUND");
    assert_open_fails(directory, &(struct model_options){.device = "abacus"}, EOPNOTSUPP, "UNSUPPORTED");
    assert_open_fails(directory, &(struct model_options){.context_tokens = 1048577}, ERANGE, "RANGE");
    assert_open_fails(directory, &(struct model_options){.max_step_tokens = 1u << 30}, ERANGE, "RANGE");
    assert_open_fails(directory, &(struct model_options){.kv_bytes = 1}, ERANGE, "RANGE");
    assert_open_fails(directory, &(struct model_options){.kv_bytes = (uint64_t)1 << 44}, ENOMEM, "NO_MEMORY");
    (void)state;
}

/* ---------------------------------------------------------------- watching */

struct seen {
    uint32_t calls, streams;
    bool wrong;
};

static void note(const char *name, const float *data, uint32_t tokens, uint32_t width, void *userdata)
{
    struct seen *seen = userdata;
    uint32_t layer;
    char what[16];

    seen->calls++;
    if (sscanf(name, "layer%u.%15s", &layer, what) != 2 || layer >= 6 || tokens != 3)
        seen->wrong = true;
    else if (strcmp(what, "streams") == 0)
        seen->streams += width == 4 * 128 && data[0] == data[0];
}

static void layers_can_be_watched(void **state)
{
    struct model *m = open_nano(NUMERICS_EXACT, 1);
    struct kv_session *s = open_session(m, 1);
    struct seen seen = {0};
    float *rows = rows_new(8);

    forward_set_watch(m, note, &seen);
    feed(m, s, 1, 0, 3, 3, rows);
    assert_false(seen.wrong);
    assert_int_equal(seen.streams, 6);
    assert_int_equal(seen.calls, 6 * 4);
    forward_set_watch(m, NULL, NULL);
    feed(m, s, 1, 3, 8, 5, rows);
    assert_int_equal(seen.calls, 6 * 4);
    kv_session_free(s);
    free(rows);
    model_free(m);
    (void)state;
}

int main(void)
{
    const char *top = getenv("top_srcdir");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(forks_go_on),
        cmocka_unit_test(long_sessions),
        cmocka_unit_test(bad_steps_are_refused),
        cmocka_unit_test(full_memory_changes_nothing),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(layers_can_be_watched),
    };

    snprintf(directory, sizeof(directory), "%s/models/nano", top ? top : ".");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
