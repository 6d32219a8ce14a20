/* SPDX-License-Identifier: MIT */
/* See request.h. Making a request and putting its input into the session; what comes out is in request-output.c. */
#include "engine/request.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "engine/chat-wire.h"
#include "engine/request-output.h"

#define LOGPROBS_MAX 20

void request_prompt_deinit(struct request_prompt *p)
{
    tokens_deinit(&p->tokens);
    *p = (struct request_prompt){0};
}

/* ---------------------------------------------------------------- making one */

static int check_range(struct fail *f, const char *field, uint64_t value, uint64_t min, uint64_t max)
{
    if (value >= min && value <= max)
        return 0;
    fail_set(f, ERANGE, "RANGE", "%s is %" PRIu64 "; %" PRIu64 " to %" PRIu64 " is possible", field, value, min, max);
    fail_field(f, field);
    fail_limit(f, (int64_t)max, (int64_t)value);
    return -ERANGE;
}

static int make_stream(struct request *r, const Dsv4__V1__Generate *g, struct fail *f)
{
    const char *stop[STOP_STRINGS_MAX];
    size_t stop_n[STOP_STRINGS_MAX];
    int e = check_range(f, "stop", g->n_stop, 0, STOP_STRINGS_MAX);

    if (e < 0)
        return e;
    for (size_t i = 0; i < g->n_stop; i++) {
        stop[i] = g->stop[i];
        stop_n[i] = strlen(g->stop[i]);
        e = check_range(f, "bytes of stop", stop_n[i], 1, STOP_STRING_BYTES_MAX);
        if (e < 0)
            return e;
    }
    e = textstream_new(r->env->tokenizer, stop, stop_n, (uint32_t)g->n_stop, &r->stream);
    if (e == -EINVAL)
        return fail_set(f, EILSEQ, "BAD_UTF8", "a stop string is not valid UTF-8");
    return e < 0 ? fail_oom(f) : 0;
}

static int make_sampler(struct request *r, const Dsv4__V1__Generate *g, struct fail *f)
{
    const struct model_config *config = r->env->model->checkpoint->config;
    struct sampler_params defaults = SAMPLER_PARAMS_INIT;
    _cleanup_(sampler_params_deinit) struct sampler_params params = SAMPLER_PARAMS_INIT;

    defaults.temperature = config->sampling.temperature;
    defaults.top_p = config->sampling.top_p;
    int e = sampler_params_from_wire(g->sampling, &defaults, &params, f);
    if (e < 0)
        return e;
    if (!g->sampling || !g->sampling->has_seed)
        if (getrandom(&params.seed, sizeof(params.seed), 0) != (ssize_t)sizeof(params.seed))
            return fail_set(f, EIO, "INTERNAL", "no random numbers for a seed");
    r->seed = params.seed;
    return sampler_new(&params, r->env->model->shape->vocab, &r->sampler, f);
}

static int take_settings(struct request *r, const Dsv4__Engine__V1__Work *w, struct fail *f)
{
    const Dsv4__V1__Generate *g = w->generate;

    r->weight = w->has_weight ? w->weight : SCHED_WEIGHT;
    r->append_only = g->has_append_only && g->append_only;
    r->has_max_tokens = g->has_max_tokens;
    r->max_tokens = g->max_tokens;
    r->want_logprobs = g->has_logprobs;
    r->logprobs = g->has_logprobs ? g->logprobs : 0;
    if (g->response_format)
        return fail_set(f, EOPNOTSUPP, "UNSUPPORTED", "this server cannot force a response format yet");
    if (r->has_max_tokens && !r->append_only) {
        int e = check_range(f, "max_tokens", r->max_tokens, 1, UINT32_MAX); /* check_length knows the upper limit */
        if (e < 0)
            return e;
    }
    switch (g->input_case) {
    case DSV4__V1__GENERATE__INPUT_TEXT:
        r->input = INPUT_TEXT;
        break;
    case DSV4__V1__GENERATE__INPUT_CHAT:
        r->input = INPUT_CHAT;
        break;
    case DSV4__V1__GENERATE__INPUT_TOKENS:
        r->input = INPUT_TOKENS;
        break;
    case DSV4__V1__GENERATE__INPUT_MEMFD:
        r->input = g->memfd->is_chat ? INPUT_CHAT : INPUT_TEXT;
        break;
    default:
        return fail_set(f, EINVAL, "EMPTY_INPUT", "there is no input: text, chat, tokens or memfd");
    }
    return check_range(f, "logprobs", r->logprobs, 0, LOGPROBS_MAX);
}

int request_new(const struct request_env *e, uint64_t id, uint64_t owner, const Dsv4__Engine__V1__Work *w,
                uint64_t now_usec, struct request **ret, struct fail *f)
{
    _cleanup_(request_freep) struct request *r = calloc(1, sizeof(*r));
    int err;

    if (!r)
        return fail_oom(f);
    r->item.userdata = r;
    r->env = e;
    r->id = id;
    r->owner = owner;
    r->created_usec = now_usec;
    if (w->generate->session && !(r->session_id = strdup(w->generate->session)))
        return fail_oom(f);
    err = take_settings(r, w, f);
    if (err < 0)
        return err;
    err = make_stream(r, w->generate, f);
    if (err < 0)
        return err;
    err = make_sampler(r, w->generate, f);
    if (err < 0)
        return err;
    *ret = TAKE_PTR(r);
    return 0;
}

struct request *request_free(struct request *r)
{
    if (!r)
        return NULL;
    assert(!r->item.owner);
    if (r->session) {
        session_end(r->session);
        if (!r->session->table)
            session_free(r->session);
    }
    sampler_free(r->sampler);
    textstream_free(r->stream);
    completion_free(r->completion);
    free(r->logprob);
    free(r->session_id);
    free(r);
    return NULL;
}

/* ---------------------------------------------------------------- input */

int request_attach(struct request *r, struct session_table *t, struct fail *f)
{
    struct session *s;
    int e = r->session_id ? session_find(t, r->session_id, r->owner, &s, f) : session_new_temporary(t, r->owner, &s, f);

    if (e < 0)
        return e;
    e = session_begin(s, f);
    if (e < 0)
        return e; /* only a named one can be busy */
    r->session = s;
    return 0;
}

static int check_tokens(const struct request *r, const struct tokens *t, struct fail *f)
{
    uint32_t vocab = r->env->model->shape->vocab;

    for (size_t i = 0; i < t->n; i++)
        if (t->id[i] >= vocab) {
            fail_set(f, EINVAL, "BAD_TOKEN", "token %zu of the input is %" PRIu32 "; the model's ids go up to %" PRIu32, i,
                     t->id[i], vocab - 1);
            fail_field(f, "tokens");
            fail_limit(f, vocab - 1, t->id[i]);
            return -EINVAL;
        }
    return 0;
}

/* Does it fit? total: tokens before the first output token. */
static int check_length(struct request *r, size_t input, size_t total, struct fail *f)
{
    size_t context = r->env->model->context_tokens;
    size_t output = r->append_only ? 0 : r->has_max_tokens ? r->max_tokens : 1;

    if (input > context) {
        fail_set(f, E2BIG, "PROMPT_TOO_LONG", "the prompt has %zu tokens; the context is %zu", input, context);
        fail_limit(f, (int64_t)context, (int64_t)input);
        return -E2BIG;
    }
    if (total + output > context) {
        fail_set(f, ENOSPC, "CONTEXT_FULL", "%zu tokens of input and %zu of output were asked for; the context is %zu",
                 total, output, context);
        fail_limit(f, (int64_t)context, (int64_t)(total + output));
        return -ENOSPC;
    }
    if (!r->has_max_tokens)
        r->max_tokens = (uint32_t)(context - total);
    return 0;
}

/* Raw input continues the session. Text at the very beginning gets the token that the model expects there; who gives
 * token ids is on their own. */
static int append_prompt(struct request *r, const struct tokens *t, struct fail *f)
{
    struct session *s = r->session;
    bool bos = r->input == INPUT_TEXT && s->tokens.n == 0;

    if (t->n == 0 && s->tokens.n == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "there is nothing to continue: the input is empty");
    int e = check_length(r, t->n + bos, s->tokens.n + t->n + bos, f);
    if (e == 0 && bos)
        e = session_append(s, &r->env->bos, 1, f);
    return e < 0 ? e : session_append(s, t->id, t->n, f);
}

static int replace_prompt(struct request *r, const struct request_prompt *p, struct fail *f)
{
    if (p->tokens.n == 0)
        return fail_set(f, EINVAL, "EMPTY_INPUT", "the conversation is empty");
    int e = check_length(r, p->tokens.n, p->tokens.n, f);
    if (e < 0)
        return e;
    if (request_output_begin_chat(r, p->thinking, p->tools) < 0)
        return fail_oom(f);
    return session_replace(r->session, p->tokens.id, p->tokens.n, f);
}

int request_take_prompt(struct request *r, struct request_prompt *p, struct fail *f)
{
    int e = check_tokens(r, &p->tokens, f);

    if (e < 0)
        return e;
    e = r->input == INPUT_CHAT ? replace_prompt(r, p, f) : append_prompt(r, &p->tokens, f);
    request_prompt_deinit(p);
    if (e < 0)
        return e;
    r->total = (uint32_t)r->session->tokens.n;
    return 0;
}

int request_start(struct request *r, struct session_table *t, uint64_t now_usec, uint32_t *ret, struct fail *f)
{
    struct session *s = r->session;
    uint32_t more;

    if (!r->append_only)
        session_prepare(s);
    r->cached = s->kv ? s->kv->tokens : 0;
    /* append_only leaves the last token uncomputed: whoever generates next needs the logits after it */
    *ret = r->total - r->cached - (r->append_only && r->total > r->cached);
    /* without max_tokens the output gets as much as there will be */
    more = *ret + (r->has_max_tokens && !r->append_only ? r->max_tokens - 1 : 0);
    int e = session_reserve(t, s, more, f);
    if (e < 0)
        return e;
    r->started_usec = now_usec;
    return 0;
}
