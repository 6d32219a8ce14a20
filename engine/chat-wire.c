/* SPDX-License-Identifier: MIT */
/* See chat-wire.h. */
#include "engine/chat-wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static int range(const char *field, const char *what, int64_t limit, int64_t value, struct fail *f)
{
    int r = fail_set(f, ERANGE, "RANGE", "%s is %lld, which is no %s", field, (long long)value, what);
    fail_field(f, field);
    fail_limit(f, limit, value);
    return r;
}

static int refuse(const char *field, const char *why, struct fail *f)
{
    int r = fail_set(f, EINVAL, "BAD_CHAT", "%s %s", field, why);
    fail_field(f, field);
    return r;
}

/* A copy of s (NULL stays NULL) if it is UTF-8; the field is path.name. */
static int copy_text(const char *s, const char *path, const char *name, char **ret, struct fail *f)
{
    if (!s)
        return 0;
    ssize_t at = utf8_invalid_at(s, strlen(s));
    if (at >= 0) {
        char field[96];
        snprintf(field, sizeof(field), "%s.%s", path, name);
        int r = fail_set(f, EILSEQ, "BAD_UTF8", "%s is not valid UTF-8 at byte %zd", field, at);
        fail_field(f, field);
        fail_limit(f, 0, at);
        return r;
    }
    *ret = strdup(s);
    return *ret ? 0 : fail_oom(f);
}

static int copy_calls(const Dsv4__V1__ChatMessage *in, const char *path, struct chat_message *m, struct fail *f)
{
    if (in->n_tool_call == 0)
        return 0;
    if (in->role != DSV4__V1__ROLE__ASSISTANT)
        return refuse(path, "has tool calls but is not from the assistant", f);
    m->tool_call = calloc(in->n_tool_call, sizeof(*m->tool_call));
    if (!m->tool_call)
        return fail_oom(f);
    for (size_t i = 0; i < in->n_tool_call; i++) {
        char call[80];
        snprintf(call, sizeof(call), "%s.tool_call[%zu]", path, i);
        struct chat_tool_call *c = &m->tool_call[m->n_tool_calls++];
        int r = copy_text(in->tool_call[i]->id, call, "id", &c->id, f);
        r = r < 0 ? r : copy_text(in->tool_call[i]->name, call, "name", &c->name, f);
        r = r < 0 ? r : copy_text(in->tool_call[i]->arguments_json, call, "arguments_json", &c->arguments_json, f);
        if (r < 0)
            return r;
    }
    return 0;
}

static int copy_role(Dsv4__V1__Role role, const char *path, enum chat_role *ret, struct fail *f)
{
    char field[80];

    switch (role) {
    case DSV4__V1__ROLE__SYSTEM:
        *ret = CHAT_SYSTEM;
        return 0;
    case DSV4__V1__ROLE__USER:
        *ret = CHAT_USER;
        return 0;
    case DSV4__V1__ROLE__ASSISTANT:
        *ret = CHAT_ASSISTANT;
        return 0;
    case DSV4__V1__ROLE__TOOL:
        *ret = CHAT_TOOL;
        return 0;
    case DSV4__V1__ROLE__DEVELOPER:
        *ret = CHAT_DEVELOPER;
        return 0;
    case DSV4__V1__ROLE__LATEST_REMINDER:
        *ret = CHAT_LATEST_REMINDER;
        return 0;
    default:
        snprintf(field, sizeof(field), "%s.role", path);
        return range(field, "role", DSV4__V1__ROLE__LATEST_REMINDER, (int64_t)role, f);
    }
}

static int copy_message(const Dsv4__V1__ChatMessage *in, size_t number, struct chat_message *m, struct fail *f)
{
    char path[48];

    snprintf(path, sizeof(path), "chat.message[%zu]", number);
    int r = copy_role(in->role, path, &m->role, f);
    if (r == 0 && in->reasoning && m->role != CHAT_ASSISTANT)
        r = refuse(path, "has reasoning but is not from the assistant", f);
    r = r < 0 ? r : copy_text(in->content, path, "content", &m->content, f);
    r = r < 0 ? r : copy_text(in->reasoning, path, "reasoning", &m->reasoning, f);
    r = r < 0 ? r : copy_text(in->tool_call_id, path, "tool_call_id", &m->tool_call_id, f);
    r = r < 0 ? r : copy_text(in->task, path, "task", &m->task, f);
    return r < 0 ? r : copy_calls(in, path, m, f);
}

static int copy_tools(const Dsv4__V1__Chat *in, struct chat_message *m, struct fail *f)
{
    m->tool = calloc(in->n_tool, sizeof(*m->tool));
    if (!m->tool)
        return fail_oom(f);
    for (size_t i = 0; i < in->n_tool; i++) {
        char path[48];
        snprintf(path, sizeof(path), "chat.tool[%zu]", i);
        struct chat_tool *t = &m->tool[m->n_tools++];
        int r = copy_text(in->tool[i]->name, path, "name", &t->name, f);
        r = r < 0 ? r : copy_text(in->tool[i]->description, path, "description", &t->description, f);
        r = r < 0 ? r : copy_text(in->tool[i]->parameters_json, path, "parameters_json", &t->parameters_json, f);
        if (r < 0)
            return r;
    }
    return 0;
}

static int copy_effort(const Dsv4__V1__Chat *in, enum chat_effort *ret, struct fail *f)
{
    *ret = CHAT_EFFORT_NONE;
    if (!in->has_reasoning || in->reasoning == DSV4__V1__REASONING__NONE)
        return 0;
    if (in->reasoning != DSV4__V1__REASONING__HIGH && in->reasoning != DSV4__V1__REASONING__MAX)
        return range("chat.reasoning", "reasoning effort", DSV4__V1__REASONING__MAX, (int64_t)in->reasoning, f);
    *ret = in->reasoning == DSV4__V1__REASONING__MAX ? CHAT_EFFORT_MAX : CHAT_EFFORT_HIGH;
    return 0;
}

int chat_from_wire(const Dsv4__V1__Chat *in, struct chat *out, struct fail *f)
{
    _cleanup_chat_ struct chat c = {.keep_reasoning = in->has_keep_reasoning && in->keep_reasoning};

    if (in->n_message == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "the chat has no messages");
    int r = copy_effort(in, &c.effort, f);
    if (r < 0)
        return r;
    c.message = calloc(in->n_message + 1, sizeof(*c.message));
    if (!c.message)
        return fail_oom(f);
    if (in->n_tool && in->message[0]->role != DSV4__V1__ROLE__SYSTEM)
        c.message[c.n_messages++].role = CHAT_SYSTEM;
    for (size_t i = 0; i < in->n_message; i++) {
        r = copy_message(in->message[i], i, &c.message[c.n_messages++], f);
        if (r < 0)
            return r;
    }
    if (in->n_tool) {
        r = copy_tools(in, &c.message[0], f);
        if (r < 0)
            return r;
    }
    *out = c;
    c = (struct chat){0};
    return 0;
}

/* ---------------------------------------------------------------- sampling */

void sampler_params_deinit(struct sampler_params *p)
{
    free((void *)(uintptr_t)p->bias);
    p->bias = NULL;
    p->n_bias = 0;
}

/* The biases of the message if there are any, else a copy of the default ones. */
static int copy_bias(const Dsv4__V1__Sampling *in, const struct sampler_params *defaults, struct sampler_params *p, struct fail *f)
{
    size_t n = in && in->n_bias ? in->n_bias : defaults->n_bias;

    p->bias = NULL;
    p->n_bias = 0;
    if (n > SAMPLER_BIAS_MAX) {
        int r = fail_set(f, ERANGE, "RANGE", "sampling.bias has %zu entries, at most %d are allowed", n, SAMPLER_BIAS_MAX);
        fail_field(f, "sampling.bias");
        fail_limit(f, SAMPLER_BIAS_MAX, (int64_t)n);
        return r;
    }
    if (n == 0)
        return 0;
    struct logit_bias *bias = calloc(n, sizeof(*bias));
    if (!bias)
        return fail_oom(f);
    for (size_t i = 0; i < n; i++)
        bias[i] = in && in->n_bias ? (struct logit_bias){.id = in->bias[i]->id, .bias = in->bias[i]->bias} : defaults->bias[i];
    p->bias = bias;
    p->n_bias = (uint32_t)n;
    return 0;
}

int sampler_params_from_wire(const Dsv4__V1__Sampling *in, const struct sampler_params *defaults, struct sampler_params *out,
                             struct fail *f)
{
    struct sampler_params p = *defaults;

    if (in) {
        p.temperature = in->has_temperature ? in->temperature : p.temperature;
        p.top_p = in->has_top_p ? in->top_p : p.top_p;
        p.top_k = in->has_top_k ? in->top_k : p.top_k;
        p.min_p = in->has_min_p ? in->min_p : p.min_p;
        p.seed = in->has_seed ? in->seed : p.seed;
        p.presence_penalty = in->has_presence_penalty ? in->presence_penalty : p.presence_penalty;
        p.frequency_penalty = in->has_frequency_penalty ? in->frequency_penalty : p.frequency_penalty;
    }
    int r = copy_bias(in, defaults, &p, f);
    if (r < 0)
        return r;
    r = sampler_params_check(&p, f);
    if (r < 0) {
        sampler_params_deinit(&p);
        if (f) {
            char field[96];
            snprintf(field, sizeof(field), "sampling.%.80s", f->field);
            fail_field(f, field);
            fail_prefix(f, "sampling");
        }
        return r;
    }
    *out = p;
    return 0;
}
