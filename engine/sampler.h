/* SPDX-License-Identifier: MIT */
/*
 * From logits to a token. A sampler's choices depend on its settings, its seed, the tokens it has seen and the logits,
 * and on nothing else: the random number of output token i is a pure function of (seed, i).
 *
 * Order: logit bias, presence and frequency penalties (over the output so far), then greedy if temperature == 0, else
 * temperature, top_k, min_p, top_p (the released order for what it has; cuts are made on probabilities sorted by
 * (probability descending, id ascending), so ties are stable), then one draw. NaN logits count as -inf and +inf as the
 * largest float; when all are -inf the lowest id wins. Tokens less likely than e^-87 of the best one are never drawn.
 * Never allocates in sampler_next; takes time linear in the vocabulary.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/fail.h"
#include "base/macros.h"

struct logit_bias {
    uint32_t id;
    float bias;
};

#define SAMPLER_BIAS_MAX 1024

struct sampler_params {
    float temperature;       /* 0 .. 2 */
    float top_p;             /* (0, 1] */
    float min_p;             /* [0, 1) */
    uint32_t top_k;          /* 0: off */
    uint64_t seed;
    float presence_penalty, frequency_penalty; /* -2 .. 2 */
    const struct logit_bias *bias; /* copied */
    uint32_t n_bias;               /* at most SAMPLER_BIAS_MAX */
};
#define SAMPLER_PARAMS_INIT ((struct sampler_params){.temperature = 1, .top_p = 1})

struct sampler;

/* RANGE, naming the field, for a value that is NaN or outside; BAD_TOKEN for a bias outside the vocabulary. */
int sampler_params_check(const struct sampler_params *p, struct fail *f); /* all but the vocabulary */
int sampler_new(const struct sampler_params *p, uint32_t vocab, struct sampler **ret, struct fail *f);
struct sampler *sampler_free(struct sampler *s);
DEFINE_CLEANUP(struct sampler *, sampler_free)

/* The next token; logits [vocab] are not changed. Counts it as output. */
uint32_t sampler_next(struct sampler *s, const float *logits);

/* The random number of output token `draw`: in [0, 1), 53 bits. */
double sampler_random(uint64_t seed, uint64_t draw);

/* Log-probabilities of the untouched logits: of `id`, and the `n` (<= 20) most likely, best first; entries past the
 * vocabulary have id UINT32_MAX. All are -inf where all logits are. */
struct logprob {
    uint32_t id;
    float logprob;
};
float sampler_logprobs(const struct sampler *s, const float *logits, uint32_t id, uint32_t n, struct logprob *ret_top);
