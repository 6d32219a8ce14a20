/* SPDX-License-Identifier: MIT */
/* Sampling: the same choice as a slow and obvious implementation, in thousands of random cases; the right frequencies;
 * nothing that a logit can be breaks it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

#define VOCAB_MAX 400

static uint64_t state = 1;

static uint32_t any(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static float any_float(float min, float max)
{
    return min + (max - min) * (float)any(1 << 24) / (1 << 24);
}

/* ---------------------------------------------------------------- the obvious implementation */

struct candidate {
    uint32_t id;
    double logit, p;
};

static int compare_candidates(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int compare_ids(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return x->id < y->id ? -1 : 1;
}

static double sum_p(const struct candidate *c, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].p;
    return sum;
}

static uint32_t slow_next(const struct sampler_params *p, uint32_t vocab, const float *logits, const uint32_t *count, uint64_t draw)
{
    struct candidate c[VOCAB_MAX];
    uint32_t n = vocab;

    for (uint32_t i = 0; i < vocab; i++) {
        float x = logits[i];
        for (uint32_t k = 0; k < p->n_bias; k++)
            if (p->bias[k].id == i)
                x += p->bias[k].bias;
        if (count[i])
            x = x - p->presence_penalty - p->frequency_penalty * (float)count[i];
        c[i] = (struct candidate){.id = i, .logit = (double)x};
    }
    qsort(c, n, sizeof(*c), compare_candidates);
    if (p->temperature == 0)
        return c[0].id;
    double top = c[0].logit;
    for (uint32_t i = 0; i < n; i++)
        c[i].p = exp((c[i].logit - top) / (double)p->temperature);
    if (p->top_k && p->top_k < n)
        n = p->top_k;
    while (p->min_p > 0 && n > 1 && c[n - 1].p < (double)p->min_p)
        n--;
    if (p->top_p < 1) {
        double goal = sum_p(c, n) * (double)p->top_p, sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            sum += c[i].p;
            if (sum >= goal)
                n = i + 1;
        }
    }
    qsort(c, n, sizeof(*c), compare_ids);
    double goal = sampler_random(p->seed, draw) * sum_p(c, n), sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += c[i].p;
        if (sum > goal)
            return c[i].id;
    }
    return c[n - 1].id;
}

static struct sampler_params any_params(struct logit_bias *bias, uint32_t vocab)
{
    static const float temperatures[] = {0, 0.01f, 0.3f, 0.7f, 1, 1, 1.5f, 2};
    struct sampler_params p = SAMPLER_PARAMS_INIT;

    p.temperature = temperatures[any(8)];
    p.seed = (uint64_t)any(1 << 30) << 20;
    p.top_k = any(3) ? 0 : any(vocab + 3);
    p.top_p = any(2) ? 1 : any_float(0.001f, 1);
    p.min_p = any(3) ? 0 : any_float(0, 0.999f);
    if (any(3) == 0) {
        p.presence_penalty = any_float(-2, 2);
        p.frequency_penalty = any(2) ? 0 : any_float(-2, 2);
    }
    p.n_bias = any(3) ? 0 : any(4);
    for (uint32_t i = 0; i < p.n_bias; i++)
        bias[i] = (struct logit_bias){.id = any(vocab), .bias = any_float(-10, 10)};
    p.bias = bias;
    return p;
}

static void chooses_as_the_obvious_way(void **unused)
{
    (void)unused;
    uint32_t not_best = 0;

    for (int i = 0; i < 4000; i++) {
        struct logit_bias bias[4];
        float logits[VOCAB_MAX];
        uint32_t count[VOCAB_MAX] = {0}, vocab = 1 + any(i % 2 ? VOCAB_MAX : 12);
        struct sampler_params p = any_params(bias, vocab);
        bool coarse = any(3) == 0; /* many equal logits */
        struct sampler *s = NULL;
        assert_int_equal(sampler_new(&p, vocab, &s, NULL), 0);
        for (uint64_t d = 0; d < 5; d++) {
            for (uint32_t k = 0; k < vocab; k++)
                logits[k] = coarse ? (float)any(4) : any_float(-8, 8);
            uint32_t expected = slow_next(&p, vocab, logits, count, d);
            uint32_t id = sampler_next(s, logits);
            if (id != expected)
                print_error("case %d draw %d: vocab %u temperature %g top_k %u top_p %g min_p %g\n", i, (int)d, vocab,
                            (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p);
            assert_int_equal(id, expected);
            not_best += logits[id] < 7;
            count[id]++;
        }
        sampler_free(s);
    }
    assert_true(not_best > 1000); /* or this would test argmax */
}

/* ---------------------------------------------------------------- frequencies */

static double chi_square(struct sampler_params p, const float *logits, const double *share, uint32_t vocab, uint32_t *ret_seen)
{
    struct sampler *s = NULL;
    uint32_t seen[64] = {0};
    const uint32_t draws = 200000;
    double chi = 0;

    assert_int_equal(sampler_new(&p, vocab, &s, NULL), 0);
    for (uint32_t i = 0; i < draws; i++)
        seen[sampler_next(s, logits)]++;
    sampler_free(s);
    for (uint32_t i = 0; i < vocab; i++) {
        double expected = share[i] * draws;
        if (expected > 0)
            chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        else
            assert_int_equal(seen[i], 0);
    }
    memcpy(ret_seen, seen, vocab * sizeof(*seen));
    return chi;
}

static void draws_in_proportion(void **unused)
{
    (void)unused;
    const float logits[8] = {0, 1, 2, 3, 0.5f, -1, -INFINITY, NAN};
    uint32_t seen[8];

    for (uint64_t seed = 0; seed < 4; seed++) {
        struct sampler_params p = SAMPLER_PARAMS_INIT;
        double share[8] = {0}, sum = 0;
        p.seed = seed;
        p.temperature = seed % 2 ? 0.8f : 1.0f;
        for (int i = 0; i < 6; i++)
            sum += share[i] = exp((double)logits[i] / (double)p.temperature);
        for (int i = 0; i < 6; i++)
            share[i] /= sum;
        assert_true(chi_square(p, logits, share, 8, seen) < 30); /* 5 degrees of freedom: P < 2e-5 */
        share[3] = 0.9; /* the test can fail */
        assert_true(chi_square(p, logits, share, 8, seen) > 1000);
    }
    struct sampler_params p = {.temperature = 1, .top_p = 1, .top_k = 2, .seed = 9};
    double share[8] = {[2] = 1 / (1 + exp(1)), [3] = 1 / (1 + exp(-1))};
    assert_true(chi_square(p, logits, share, 8, seen) < 25);
}

static void random_numbers_are_uniform_and_unrelated(void **unused)
{
    (void)unused;
    uint32_t seen[32] = {0}, pairs[64] = {0};
    const uint32_t n = 64000;
    double chi = 0, chi_pairs = 0;

    for (uint32_t i = 0; i < n; i++) {
        double x = sampler_random(42, i), y = sampler_random(43, i);
        assert_true(x >= 0 && x < 1);
        seen[(int)(x * 32)]++;
        pairs[(int)(x * 8) * 8 + (int)(y * 8)]++;
    }
    for (int i = 0; i < 32; i++)
        chi += (seen[i] - n / 32.0) * (seen[i] - n / 32.0) / (n / 32.0);
    for (int i = 0; i < 64; i++)
        chi_pairs += (pairs[i] - n / 64.0) * (pairs[i] - n / 64.0) / (n / 64.0);
    assert_true(chi < 75 && chi_pairs < 125);
    assert_true(sampler_random(1, 2) == sampler_random(1, 2));
    assert_true(sampler_random(1, 2) != sampler_random(2, 1));
}

/* ---------------------------------------------------------------- edges */

static uint32_t once(struct sampler_params p, const float *logits, uint32_t vocab)
{
    struct sampler *s = NULL;
    assert_int_equal(sampler_new(&p, vocab, &s, NULL), 0);
    uint32_t id = sampler_next(s, logits);
    assert_int_equal(sampler_free(s), NULL);
    assert_true(id < vocab);
    return id;
}

static void edges(void **unused)
{
    (void)unused;
    const float none[3] = {-INFINITY, NAN, -INFINITY}, huge[4] = {-1e30f, 1e30f, 0, 1e30f};
    const float infinite[3] = {1, INFINITY, NAN}, largest[3] = {FLT_MAX, -FLT_MAX, 0}, ties[4] = {1, 2, 2, 2};

    for (uint64_t seed = 0; seed < 50; seed++) {
        struct sampler_params p = SAMPLER_PARAMS_INIT;
        p.seed = seed;
        for (int i = 0; i < 5; i++) {
            p.temperature = (const float[]){0, 1e-6f, 1e-38f, 1, 2}[i];
            assert_int_equal(once(p, none, 3), 0);
            assert_int_equal(once(p, none, 1), 0);
            assert_int_equal(once(p, infinite, 3), 1);
            assert_int_equal(once(p, largest, 3), 0);
            assert_true(once(p, huge, 4) % 2 == 1);
            p.top_p = 1e-30f;
            assert_int_equal(once(p, ties, 4), 1);
            assert_int_equal(once(p, none, 3), 0);
            p.top_p = 0.5f; /* two of three equal ones, the lower ids */
            assert_true(once(p, ties, 4) <= 2);
            p.top_p = 1;
            p.top_k = 1;
            assert_int_equal(once(p, ties, 4), 1);
            p.top_k = 2;
            assert_true(once(p, ties, 4) <= 2);
            p.top_k = UINT32_MAX;
            p.min_p = 0.99f;
            assert_true(once(p, ties, 4) >= 1);
            p.top_k = 0;
            p.min_p = 0;
        }
    }
}

static void greedy_counts_penalties(void **unused)
{
    (void)unused;
    const float logits[3] = {1, 0.9f, 0};
    const struct logit_bias bias = {.id = 2, .bias = 0.5f};
    struct sampler_params p = {.temperature = 0, .top_p = 1, .frequency_penalty = 0.3f, .bias = &bias, .n_bias = 1};
    const uint32_t expected[] = {0, 1, 0, 1, 2, 0};
    struct sampler *s = NULL;

    assert_int_equal(sampler_new(&p, 3, &s, NULL), 0);
    for (size_t i = 0; i < ELEMENTS(expected); i++)
        assert_int_equal(sampler_next(s, logits), expected[i]);
    sampler_free(s);
    assert_true(logits[0] == 1);
}

static void log_probabilities(void **unused)
{
    (void)unused;
    const float logits[5] = {0, 3, 1, 3, NAN}, none[2] = {-INFINITY, NAN};
    struct logprob top[8];
    struct sampler *s = NULL;
    struct sampler_params p = {.temperature = 0.1f, .top_p = 0.1f};
    double norm = log(1 + 2 * exp(3) + exp(1));

    assert_int_equal(sampler_new(&p, 5, &s, NULL), 0);
    assert_true(fabs((double)sampler_logprobs(s, logits, 2, 8, top) - (1 - norm)) < 1e-6);
    const uint32_t order[8] = {1, 3, 2, 0, 4, UINT32_MAX, UINT32_MAX, UINT32_MAX};
    for (int i = 0; i < 8; i++)
        assert_int_equal(top[i].id, order[i]);
    assert_true(fabs((double)top[3].logprob + norm) < 1e-6);
    assert_true(isinf(top[4].logprob) && isinf(sampler_logprobs(s, logits, 4, 0, NULL)));
    assert_true(isinf(sampler_logprobs(s, logits, 5, 1, top)) && top[0].id == 1);
    sampler_free(s);
    assert_int_equal(sampler_new(&p, 2, &s, NULL), 0);
    assert_true(isinf(sampler_logprobs(s, none, 0, 2, top)) && isinf(top[0].logprob));
    sampler_free(s);
}

static void expect_range(struct sampler_params p, const char *code, const char *field)
{
    struct fail f = FAIL_INIT;
    struct sampler *s = NULL;

    assert_true(sampler_new(&p, 10, &s, &f) < 0);
    assert_null(s);
    assert_string_equal(f.code, code);
    assert_string_equal(f.field, field);
}

static void settings_out_of_range(void **unused)
{
    (void)unused;
    const struct logit_bias bias[2] = {{.id = 1, .bias = 100}, {.id = 2, .bias = 100.5f}}, outside = {.id = 10};
    struct fail f = FAIL_INIT;
    struct sampler *s = NULL;

#define WITH(...) ((struct sampler_params){.temperature = 1, .top_p = 1, __VA_ARGS__})
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
    expect_range(WITH(.temperature = NAN), "RANGE", "temperature");
    expect_range(WITH(.temperature = 2.1f), "RANGE", "temperature");
    expect_range(WITH(.temperature = -0.1f), "RANGE", "temperature");
    expect_range(WITH(.temperature = INFINITY), "RANGE", "temperature");
    expect_range(WITH(.top_p = 0), "RANGE", "top_p");
    expect_range(WITH(.top_p = 1.01f), "RANGE", "top_p");
    expect_range(WITH(.min_p = 1), "RANGE", "min_p");
    expect_range(WITH(.min_p = -1), "RANGE", "min_p");
#pragma GCC diagnostic pop
    expect_range(WITH(.presence_penalty = 3), "RANGE", "presence_penalty");
    expect_range(WITH(.frequency_penalty = NAN), "RANGE", "frequency_penalty");
    expect_range(WITH(.n_bias = 1025, .bias = bias), "RANGE", "bias");
    expect_range(WITH(.n_bias = 2, .bias = bias), "RANGE", "bias[1]");
    expect_range(WITH(.n_bias = 1, .bias = &outside), "BAD_TOKEN", "bias[0]");
    assert_int_equal(sampler_new(&(struct sampler_params){.temperature = 2, .top_p = 1}, 0, &s, &f), -ERANGE);
    assert_int_equal(sampler_new(&WITH(.presence_penalty = 2.5f), 4, &s, &f), -ERANGE);
    assert_true(f.has_limit && f.limit == 2 && f.value == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chooses_as_the_obvious_way), cmocka_unit_test(draws_in_proportion),
        cmocka_unit_test(random_numbers_are_uniform_and_unrelated), cmocka_unit_test(edges),
        cmocka_unit_test(greedy_counts_penalties), cmocka_unit_test(log_probabilities),
        cmocka_unit_test(settings_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
