/* SPDX-License-Identifier: MIT */
/* See check.h. */
#include "daemon/check.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/macros.h"

static int out_of_range(struct fail *f, const char *field, int64_t limit, int64_t value, const char *range)
{
    fail_set(f, ERANGE, "RANGE", "%s is %lld; it must be %s", field, (long long)value, range);
    fail_field(f, field);
    fail_limit(f, limit, value);
    return -ERANGE;
}

struct real {
    const char *field;
    bool there;
    float value;
    double min, max;
    bool open_min, open_max; /* the end itself is outside */
};

static int check_real(const struct real *q, struct fail *f)
{
    double v = q->value;

    if (!q->there || (isfinite(v) && (q->open_min ? v > q->min : v >= q->min) && (q->open_max ? v < q->max : v <= q->max)))
        return 0;
    fail_set(f, ERANGE, "RANGE", "%s is %g; it must be in %c%g, %g%c", q->field, v, q->open_min ? '(' : '[', q->min, q->max,
             q->open_max ? ')' : ']');
    fail_field(f, q->field);
    return -ERANGE;
}

static int check_sampling(const Dsv4__V1__Sampling *s, struct fail *f)
{
    const struct real reals[] = {
        {"sampling.temperature", s->has_temperature, s->temperature, 0, 2, false, false},
        {"sampling.top_p", s->has_top_p, s->top_p, 0, 1, true, false},
        {"sampling.min_p", s->has_min_p, s->min_p, 0, 1, false, true},
        {"sampling.presence_penalty", s->has_presence_penalty, s->presence_penalty, -2, 2, false, false},
        {"sampling.frequency_penalty", s->has_frequency_penalty, s->frequency_penalty, -2, 2, false, false},
    };

    for (size_t i = 0; i < ELEMENTS(reals); i++)
        if (check_real(&reals[i], f) < 0)
            return -ERANGE;
    if (s->n_bias > CHECK_BIASES_MAX)
        return out_of_range(f, "sampling.bias", CHECK_BIASES_MAX, (int64_t)s->n_bias, "at most 1024 entries");
    for (size_t i = 0; i < s->n_bias; i++) {
        char field[64];
        snprintf(field, sizeof(field), "sampling.bias[%zu].bias", i);
        struct real bias = {field, true, s->bias[i]->bias, -100, 100, false, false};
        if (check_real(&bias, f) < 0)
            return -ERANGE;
    }
    return 0;
}

static int check_stops(const Dsv4__V1__Generate *g, struct fail *f)
{
    if (g->n_stop > CHECK_STOPS_MAX)
        return out_of_range(f, "stop", CHECK_STOPS_MAX, (int64_t)g->n_stop, "at most 16 strings");
    for (size_t i = 0; i < g->n_stop; i++) {
        size_t n = strlen(g->stop[i]);
        char field[40];
        if (n >= 1 && n <= CHECK_STOP_BYTES_MAX)
            continue;
        snprintf(field, sizeof(field), "stop[%zu]", i);
        fail_set(f, ERANGE, "RANGE", "%s has %zu bytes; it must have 1 to 256", field, n);
        fail_field(f, field);
        fail_limit(f, n ? CHECK_STOP_BYTES_MAX : 1, (int64_t)n);
        return -ERANGE;
    }
    return 0;
}

int check_chat(const Dsv4__V1__Chat *c, struct fail *f)
{
    char field[64];

    if (c->has_reasoning && c->reasoning > DSV4__V1__REASONING__MAX)
        return out_of_range(f, "chat.reasoning", DSV4__V1__REASONING__MAX, (int64_t)c->reasoning, "0, 1 or 2");
    for (size_t i = 0; i < c->n_message; i++) {
        if (c->message[i]->role <= DSV4__V1__ROLE__LATEST_REMINDER)
            continue;
        snprintf(field, sizeof(field), "chat.message[%zu].role", i);
        return out_of_range(f, field, DSV4__V1__ROLE__LATEST_REMINDER, (int64_t)c->message[i]->role, "0 to 5");
    }
    return 0;
}

int check_label(const char *label, const char *field, struct fail *f)
{
    size_t n = label ? strlen(label) : 0;

    if (n <= CHECK_LABEL_BYTES_MAX)
        return 0;
    fail_set(f, ERANGE, "RANGE", "%s has %zu bytes; the most is %d", field, n, CHECK_LABEL_BYTES_MAX);
    fail_field(f, field);
    fail_limit(f, CHECK_LABEL_BYTES_MAX, (int64_t)n);
    return -ERANGE;
}

static int check_input(const Dsv4__V1__Generate *g, struct fail *f)
{
    switch (g->input_case) {
    case DSV4__V1__GENERATE__INPUT_TEXT:
    case DSV4__V1__GENERATE__INPUT_TOKENS:
    case DSV4__V1__GENERATE__INPUT_MEMFD:
        return 0;
    case DSV4__V1__GENERATE__INPUT_CHAT:
        return check_chat(g->chat, f);
    default:
        break;
    }
    if (g->session && g->session[0])
        return 0; /* go on from where the session is */
    fail_set(f, EINVAL, "MISSING_FIELD", "Generate needs text, chat, tokens or memfd");
    fail_field(f, "input");
    return -EINVAL;
}

int check_generate(const Dsv4__V1__Generate *g, struct fail *f)
{
    int r = check_input(g, f);

    if (r == 0 && g->sampling)
        r = check_sampling(g->sampling, f);
    if (r == 0)
        r = check_stops(g, f);
    if (r < 0)
        return r;
    if (g->has_max_tokens && g->max_tokens == 0)
        return out_of_range(f, "max_tokens", 1, 0, "at least 1 (append_only generates nothing)");
    if (g->has_max_tokens && g->max_tokens > INT32_MAX)
        return out_of_range(f, "max_tokens", INT32_MAX, g->max_tokens, "1 to 2147483647");
    if (g->has_logprobs && g->logprobs > CHECK_LOGPROBS_MAX)
        return out_of_range(f, "logprobs", CHECK_LOGPROBS_MAX, g->logprobs, "0 to 20");
    if (g->has_resume_seconds && g->resume_seconds > CHECK_RESUME_SECONDS_MAX)
        return out_of_range(f, "resume_seconds", CHECK_RESUME_SECONDS_MAX, g->resume_seconds, "0 to 3600");
    if (!g->response_format)
        return 0;
    fail_set(f, EOPNOTSUPP, "UNSUPPORTED", "this server does not offer response_format yet");
    fail_field(f, "response_format");
    return -EOPNOTSUPP;
}
