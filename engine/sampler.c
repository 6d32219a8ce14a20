/* SPDX-License-Identifier: MIT */
/*
 * See sampler.h. Everything is linear in the vocabulary and nothing is sorted: a cut (the best k tokens, or the best that
 * hold a share of the probability) is found by three rounds of counting on the bits of the logits, best first.
 */
#include "engine/sampler.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RADIX_BITS 11
#define RADIX_ROUNDS 3 /* 11 + 11 + 10 bits */
#define LOGPROBS_MAX 20

struct sampler {
    struct sampler_params p;
    struct logit_bias *bias; /* [p.n_bias] */
    uint32_t vocab;
    uint64_t draws;          /* tokens chosen so far */
    uint32_t *count;         /* [vocab] of each in the output; NULL without penalties */
    float *logit;            /* [vocab] after bias and penalties; never NaN or +inf */
    float *weight;           /* [vocab] exp((logit - best) / temperature); 0: cut away */
    double bucket[1u << RADIX_BITS];
};

/* ---------------------------------------------------------------- settings */

static int check_float(const char *field, double value, double min, double max, bool open_min, bool open_max, struct fail *f)
{
    if (value >= min && value <= max && !(open_min && value == min) && !(open_max && value == max))
        return 0;
    int r = fail_set(f, ERANGE, "RANGE", "%s is %g, expected %s%g .. %g%s", field, value, open_min ? "more than " : "", min, max,
                     open_max ? ", itself excluded" : "");
    fail_field(f, field);
    if (value >= -1e15 && value <= 1e15)
        fail_limit(f, (int64_t)(value < min ? min : max), (int64_t)value);
    return r;
}

static int check_bias(const struct sampler_params *p, uint32_t vocab, struct fail *f)
{
    if (p->n_bias > SAMPLER_BIAS_MAX) {
        int r = fail_set(f, ERANGE, "RANGE", "bias has %u entries, at most %d are allowed", p->n_bias, SAMPLER_BIAS_MAX);
        fail_field(f, "bias");
        fail_limit(f, SAMPLER_BIAS_MAX, p->n_bias);
        return r;
    }
    for (uint32_t i = 0; i < p->n_bias; i++) {
        char field[32];
        snprintf(field, sizeof(field), "bias[%u]", i);
        if (p->bias[i].id >= vocab) {
            int r = fail_set(f, EINVAL, "BAD_TOKEN", "%s is for token %u, the vocabulary ends at %u", field, p->bias[i].id,
                             vocab - 1);
            fail_field(f, field);
            fail_limit(f, (int64_t)vocab - 1, p->bias[i].id);
            return r;
        }
        int r = check_float(field, (double)p->bias[i].bias, -100, 100, false, false, f);
        if (r < 0)
            return r;
    }
    return 0;
}

int sampler_params_check(const struct sampler_params *p, struct fail *f)
{
    int r = check_float("temperature", (double)p->temperature, 0, 2, false, false, f);
    r = r < 0 ? r : check_float("top_p", (double)p->top_p, 0, 1, true, false, f);
    r = r < 0 ? r : check_float("min_p", (double)p->min_p, 0, 1, false, true, f);
    r = r < 0 ? r : check_float("presence_penalty", (double)p->presence_penalty, -2, 2, false, false, f);
    r = r < 0 ? r : check_float("frequency_penalty", (double)p->frequency_penalty, -2, 2, false, false, f);
    return r < 0 ? r : check_bias(p, UINT32_MAX, f);
}

struct sampler *sampler_free(struct sampler *s)
{
    if (!s)
        return NULL;
    free(s->bias);
    free(s->count);
    free(s->logit);
    free(s->weight);
    free(s);
    return NULL;
}

int sampler_new(const struct sampler_params *p, uint32_t vocab, struct sampler **ret, struct fail *f)
{
    if (vocab == 0)
        return fail_set(f, ERANGE, "RANGE", "the vocabulary is empty");
    int r = sampler_params_check(p, f);
    r = r < 0 ? r : check_bias(p, vocab, f);
    if (r < 0)
        return r;
    _cleanup_(sampler_freep) struct sampler *s = calloc(1, sizeof(*s));
    if (!s)
        return fail_oom(f);
    s->p = *p;
    s->vocab = vocab;
    s->bias = calloc((size_t)p->n_bias + 1, sizeof(*s->bias));
    s->logit = calloc(vocab, sizeof(*s->logit));
    s->weight = calloc(vocab, sizeof(*s->weight));
    bool penalties = p->presence_penalty != 0 || p->frequency_penalty != 0;
    if (penalties)
        s->count = calloc(vocab, sizeof(*s->count));
    if (!s->bias || !s->logit || !s->weight || (penalties && !s->count))
        return fail_oom(f);
    if (p->n_bias)
        memcpy(s->bias, p->bias, p->n_bias * sizeof(*s->bias));
    s->p.bias = s->bias;
    *ret = TAKE_PTR(s);
    return 0;
}

/* ---------------------------------------------------------------- numbers */

/* exp(x) for x <= 0, the same on every machine (libm's differs between processors): 2^k times ten terms of the series in
 * the rest, good to 1e-11, where a weight is a float. 0 below e^-87, the end of the normal floats. */
static double exp_negative(double x)
{
    static const double inverse_factorial[] = {1, 1, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040,
                                               1.0 / 40320, 1.0 / 362880};
    if (!(x > -87))
        return 0;
    int k = (int)(x * 1.4426950408889634 - 0.5);
    double r = x - k * 0.69314718055994531; /* in [-0.35, 0.35] */
    double e = 0, power;
    for (int i = ELEMENTS(inverse_factorial) - 1; i >= 0; i--)
        e = e * r + inverse_factorial[i];
    uint64_t bits = (uint64_t)(1023 + k) << 52;
    memcpy(&power, &bits, sizeof(power));
    return e * power;
}

/* Bits that grow as the logit falls. */
static uint32_t rank_bits(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

/* A fixed scrambling of 64 bits (the finaliser of splitmix64). */
static uint64_t scramble(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double sampler_random(uint64_t seed, uint64_t draw)
{
    uint64_t key = scramble(seed + 0x9e3779b97f4a7c15u);
    uint64_t bits = scramble(key ^ scramble((draw + 1) * 0x9e3779b97f4a7c15u));

    return (double)(bits >> 11) * 0x1p-53;
}

/* ---------------------------------------------------------------- steps */

/* x is not NaN afterwards, nor +inf, nor -0. */
static float tame(float x)
{
    if (isnan(x))
        return -INFINITY;
    return x > FLT_MAX ? FLT_MAX : x + 0.0f;
}

static void adjust(struct sampler *s, const float *logits)
{
    for (uint32_t i = 0; i < s->vocab; i++)
        s->logit[i] = tame(logits[i]);
    for (uint32_t i = 0; i < s->p.n_bias; i++)
        s->logit[s->bias[i].id] = tame(s->logit[s->bias[i].id] + s->bias[i].bias);
    for (uint32_t i = 0; s->count && i < s->vocab; i++)
        if (s->count[i])
            s->logit[i] = tame(s->logit[i] - s->p.presence_penalty - s->p.frequency_penalty * (float)s->count[i]);
}

static uint32_t find_best(const float *x, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

static void weigh(struct sampler *s, uint32_t best)
{
    double top = (double)s->logit[best], temperature = (double)s->p.temperature;

    for (uint32_t i = 0; i < s->vocab; i++)
        s->weight[i] = (float)exp_negative(((double)s->logit[i] - top) / temperature);
    s->weight[best] = 1;
}

/* What token i counts towards a cut: one of the k best, or its weight. */
static double measure(const struct sampler *s, uint32_t i, bool by_weight)
{
    return by_weight ? (double)s->weight[i] : s->weight[i] > 0;
}

/* One round: among tokens whose rank has `prefix` above `shift + bits`, the bucket of the next bits where the running
 * sum reaches `goal`; what came before it is taken off *goal. */
static uint32_t find_bucket(struct sampler *s, uint32_t prefix, unsigned shift, unsigned bits, bool by_weight, double *goal)
{
    uint32_t n = 1u << bits, last = 0;
    double before = 0;

    memset(s->bucket, 0, n * sizeof(s->bucket[0]));
    for (uint32_t i = 0; i < s->vocab; i++) {
        uint32_t rank = rank_bits(s->logit[i]);
        if ((uint64_t)rank >> (shift + bits) == prefix && s->weight[i] > 0)
            s->bucket[(rank >> shift) & (n - 1)] += measure(s, i, by_weight);
    }
    for (uint32_t b = 0; b < n; b++) {
        if (s->bucket[b] <= 0)
            continue;
        *goal -= before;
        before = s->bucket[b];
        last = b;
        if (before >= *goal)
            break;
    }
    return last; /* where all together do not reach the goal: the last bucket with anything in it */
}

/* Keep the best tokens, fewest that reach `goal` together; among equal logits the lower ids. */
static void cut(struct sampler *s, bool by_weight, double goal)
{
    uint32_t edge = 0;
    unsigned shift = 32;

    for (int i = 0; i < RADIX_ROUNDS; i++) {
        unsigned bits = MIN(shift, (unsigned)RADIX_BITS);
        shift -= bits;
        edge = edge << bits | find_bucket(s, edge, shift, bits, by_weight, &goal);
    }
    bool any = false; /* the edge holds at least one that stays, whatever rounding did to goal */
    for (uint32_t i = 0; i < s->vocab; i++) {
        uint32_t rank = rank_bits(s->logit[i]);
        if (rank > edge || (rank == edge && any && goal <= 0))
            s->weight[i] = 0;
        if (rank != edge || s->weight[i] <= 0)
            continue;
        goal -= measure(s, i, by_weight);
        any = true;
    }
}

static double total_weight(const struct sampler *s)
{
    double sum = 0;

    for (uint32_t i = 0; i < s->vocab; i++)
        sum += (double)s->weight[i];
    return sum;
}

static void filter(struct sampler *s)
{
    if (s->p.top_k > 0 && s->p.top_k < s->vocab)
        cut(s, false, s->p.top_k);
    if (s->p.min_p > 0)
        for (uint32_t i = 0; i < s->vocab; i++)
            if (s->weight[i] < s->p.min_p)
                s->weight[i] = 0;
    if (s->p.top_p < 1)
        cut(s, true, (double)s->p.top_p * total_weight(s));
}

static uint32_t draw(const struct sampler *s, uint32_t best)
{
    double goal = sampler_random(s->p.seed, s->draws) * total_weight(s), sum = 0;
    uint32_t last = best;

    for (uint32_t i = 0; i < s->vocab; i++) {
        if (s->weight[i] <= 0)
            continue;
        sum += (double)s->weight[i];
        last = i;
        if (sum > goal)
            break;
    }
    return last;
}

uint32_t sampler_next(struct sampler *s, const float *logits)
{
    adjust(s, logits);
    uint32_t id = find_best(s->logit, s->vocab);

    if (s->p.temperature > 0 && s->logit[id] > -INFINITY) {
        weigh(s, id);
        filter(s);
        id = draw(s, id);
    }
    s->draws++;
    if (s->count && s->count[id] < UINT32_MAX)
        s->count[id]++;
    return id;
}

/* ---------------------------------------------------------------- log-probabilities */

static void keep_top(struct logprob *top, uint32_t n, uint32_t id, float value)
{
    uint32_t at = n;

    /* ids come in order, so an equal one goes behind */
    while (at > 0 && (top[at - 1].id == UINT32_MAX || top[at - 1].logprob < value))
        at--;
    if (at == n)
        return;
    memmove(&top[at + 1], &top[at], (n - 1 - at) * sizeof(*top));
    top[at] = (struct logprob){.id = id, .logprob = value};
}

float sampler_logprobs(const struct sampler *s, const float *logits, uint32_t id, uint32_t n, struct logprob *ret_top)
{
    double sum = 0, top = -INFINITY;

    n = MIN(n, (uint32_t)LOGPROBS_MAX);
    for (uint32_t i = 0; i < n; i++)
        ret_top[i] = (struct logprob){.id = UINT32_MAX, .logprob = -INFINITY};
    for (uint32_t i = 0; i < s->vocab; i++) {
        float x = tame(logits[i]);
        top = MAX(top, (double)x);
        if (n && (ret_top[n - 1].id == UINT32_MAX || x > ret_top[n - 1].logprob))
            keep_top(ret_top, n, i, x);
    }
    for (uint32_t i = 0; top > -INFINITY && i < s->vocab; i++)
        sum += exp_negative((double)tame(logits[i]) - top);
    double norm = top > -INFINITY ? top + log(sum) : 0;
    for (uint32_t i = 0; i < n && ret_top[i].id != UINT32_MAX; i++)
        ret_top[i].logprob = (float)((double)ret_top[i].logprob - norm);
    return id < s->vocab ? (float)((double)tame(logits[id]) - norm) : -INFINITY;
}
