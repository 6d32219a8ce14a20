/* SPDX-License-Identifier: MIT */
/* See request.h: from logits to events. */
#include "engine/request-output.h"

#include <errno.h>
#include <string.h>

#define LOGPROBS_HELD 16 /* tokens whose log-probabilities wait for a delta with text */
#define ALTERNATIVES_MAX 20

struct pending_logprob {
    struct logprob chosen, top[ALTERNATIVES_MAX];
};

/* ---------------------------------------------------------------- events */

static void send_event(struct request *r, Dsv4__Engine__V1__EngineMessage *m)
{
    m->id = r->id;
    (void)outbox_put(r->env->outbox, m); /* if it fails, the box is broken and the process ends */
}

void request_send_queued(struct request *r, uint32_t position, uint64_t now_usec)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Queued queued = DSV4__V1__QUEUED__INIT;

    queued.position = r->position = position;
    r->progress_usec = now_usec;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_QUEUED;
    m.queued = &queued;
    send_event(r, &m);
}

void request_send_prefill(struct request *r, uint64_t now_usec)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Prefill prefill = DSV4__V1__PREFILL__INIT;

    prefill.done = r->session->kv ? MIN(r->session->kv->tokens, r->total) : 0;
    prefill.total = r->total;
    prefill.has_cached = true;
    prefill.cached = r->cached;
    r->progress_usec = now_usec;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_PREFILL;
    m.prefill = &prefill;
    send_event(r, &m);
}

struct logprob_messages {
    Dsv4__V1__TokenLogprob token[LOGPROBS_HELD], *token_p[LOGPROBS_HELD];
    Dsv4__V1__TokenLogprobAlternative top[LOGPROBS_HELD][ALTERNATIVES_MAX], *top_p[LOGPROBS_HELD][ALTERNATIVES_MAX];
};

static void fill_logprobs(const struct request *r, struct logprob_messages *l)
{
    for (uint32_t i = 0; i < r->n_logprobs; i++) {
        const struct pending_logprob *p = &r->logprob[i];
        l->token[i] = (Dsv4__V1__TokenLogprob)DSV4__V1__TOKEN_LOGPROB__INIT;
        l->token[i].id = p->chosen.id;
        l->token[i].logprob = p->chosen.logprob;
        for (uint32_t j = 0; j < r->logprobs; j++) {
            l->top[i][j] = (Dsv4__V1__TokenLogprobAlternative)DSV4__V1__TOKEN_LOGPROB_ALTERNATIVE__INIT;
            l->top[i][j].id = p->top[j].id;
            l->top[i][j].logprob = p->top[j].logprob;
            l->top_p[i][j] = &l->top[i][j];
        }
        l->token[i].top = l->top_p[i];
        l->token[i].n_top = r->logprobs;
        l->token_p[i] = &l->token[i];
    }
}

/* One delta; takes the waiting log-probabilities along. */
static void send_delta(struct request *r, Dsv4__V1__Delta *d)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    struct logprob_messages l;

    if (r->n_logprobs > 0) {
        fill_logprobs(r, &l);
        d->logprob = l.token_p;
        d->n_logprob = r->n_logprobs;
    }
    d->index = r->delta_index++;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_DELTA;
    m.delta = d;
    send_event(r, &m);
    r->n_logprobs = 0;
}

static void flush_logprobs(struct request *r)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;

    if (r->n_logprobs > 0)
        send_delta(r, &d);
}

/* Output text is not NUL-terminated and strings of protobuf-c are; a model may well write U+0000, which no string here can
 * carry: it becomes U+FFFD. */
static int with_text(struct request *r, Dsv4__V1__Delta *d, char **field, const char *text, size_t n)
{
    _cleanup_buf_ struct buf b = BUF_INIT;

    for (size_t i = 0; i < n;) {
        size_t k = strnlen(text + i, n - i);
        if (buf_append(&b, text + i, k) < 0 || (i + k < n && buf_append(&b, "\xef\xbf\xbd", 3) < 0))
            return fail_oom(r->callback_fail);
        i += k + 1;
    }
    if (!b.data)
        return 0;
    *field = b.data;
    send_delta(r, d);
    return 0;
}

static int on_content(const char *text, size_t n, void *userdata)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;

    return with_text(userdata, &d, &d.content, text, n);
}

static int on_reasoning(const char *text, size_t n, void *userdata)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;

    return with_text(userdata, &d, &d.reasoning, text, n);
}

static int on_call_begin(uint32_t call, const char *name, void *userdata)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;
    Dsv4__V1__ToolCallDelta c = DSV4__V1__TOOL_CALL_DELTA__INIT;
    _cleanup_free_ char *copy = strdup(name);
    struct request *r = userdata;

    if (!copy)
        return fail_oom(r->callback_fail);
    if (callstore_make_id(r->call_id) < 0)
        return fail_set(r->callback_fail, EIO, "INTERNAL", "no random numbers for a tool call's id");
    c.call = call;
    c.id = r->call_id;
    c.name = copy;
    d.tool_call = &c;
    send_delta(r, &d);
    return 0;
}

static int on_call_arguments(uint32_t call, const char *json, size_t n, void *userdata)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;
    Dsv4__V1__ToolCallDelta c = DSV4__V1__TOOL_CALL_DELTA__INIT;

    c.call = call;
    d.tool_call = &c;
    return with_text(userdata, &d, &c.arguments, json, n);
}

static int on_call_end(uint32_t call, const char *raw, size_t n, void *userdata)
{
    struct request *r = userdata;

    (void)call;
    if (callstore_put(r->env->calls, r->owner, r->call_id, raw, n) == -ENOMEM)
        return fail_oom(r->callback_fail);
    return 0;
}

int request_output_begin_chat(struct request *r, bool thinking, bool tools)
{
    static const struct completion_events events = {
        .content = on_content,
        .reasoning = on_reasoning,
        .call_begin = on_call_begin,
        .call_arguments = on_call_arguments,
        .call_end = on_call_end,
    };

    return completion_new(thinking, tools, &events, r, &r->completion);
}

/* ---------------------------------------------------------------- tokens */

static int show(struct request *r, const char *text, size_t n, struct fail *f)
{
    int e;

    if (n == 0)
        return 0;
    r->callback_fail = f;
    e = r->completion ? completion_feed(r->completion, text, n, f) : on_content(text, n, r);
    r->callback_fail = NULL;
    return e;
}

static int note_logprob(struct request *r, const float *logits, uint32_t id, struct fail *f)
{
    if (!r->want_logprobs)
        return 0;
    if (!r->logprob && !(r->logprob = calloc(LOGPROBS_HELD, sizeof(*r->logprob))))
        return fail_oom(f);
    if (r->n_logprobs == LOGPROBS_HELD)
        flush_logprobs(r);
    struct pending_logprob *p = &r->logprob[r->n_logprobs++];
    p->chosen = (struct logprob){.id = id, .logprob = sampler_logprobs(r->sampler, logits, id, r->logprobs, p->top)};
    return 0;
}

int request_token(struct request *r, const float *logits, uint64_t now_usec, Dsv4__V1__FinishReason *ret_reason,
                  struct fail *f)
{
    const char *text;
    size_t n;
    uint32_t id = sampler_next(r->sampler, logits);
    int stopped, e = session_push(r->session, id, f);

    if (e < 0)
        return e;
    if (r->output++ == 0)
        r->answered_usec = now_usec;
    r->reasoning += r->completion && completion_in_reasoning(r->completion);
    e = note_logprob(r, logits, id, f);
    if (e < 0)
        return e;
    *ret_reason = DSV4__V1__FINISH_REASON__STOP;
    if (id == r->env->eos)
        return 1;
    stopped = textstream_feed(r->stream, id, &text, &n);
    if (stopped == -ENOENT) /* a row of the head that no token of the tokenizer stands for: it has no text */
        stopped = 0;
    if (stopped < 0)
        return fail_oom(f);
    e = show(r, text, n, f);
    if (e < 0 || stopped)
        return e < 0 ? e : 1;
    *ret_reason = DSV4__V1__FINISH_REASON__LENGTH;
    return r->output >= r->max_tokens;
}

/* ---------------------------------------------------------------- the end */

/* The text held back, and the end of the parsing. 1: a tool call had to be repaired. */
static int flush(struct request *r, struct fail *f)
{
    const char *text;
    size_t n;
    int e = textstream_finish(r->stream, &text, &n);

    if (e < 0)
        return fail_oom(f);
    e = show(r, text, n, f);
    if (e == 0 && r->completion) {
        r->callback_fail = f;
        e = completion_finish(r->completion, f);
        r->callback_fail = NULL;
    }
    flush_logprobs(r);
    return e;
}

static uint64_t between(uint64_t from, uint64_t to)
{
    return from > 0 && to > from ? to - from : 0;
}

static void send_finished(struct request *r, Dsv4__V1__FinishReason reason, bool repaired, uint64_t now)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Finished finished = DSV4__V1__FINISHED__INIT;
    Dsv4__V1__TokenCounts counts = DSV4__V1__TOKEN_COUNTS__INIT;
    const struct session *s = r->session;
    uint32_t computed = s && s->kv && r->started_usec ? MIN(s->kv->tokens, r->total) : 0;

    counts.input_cached = r->cached;
    counts.input_computed = computed > r->cached ? computed - r->cached : 0;
    counts.output = r->output;
    counts.has_reasoning = r->completion != NULL;
    counts.reasoning = r->reasoning;
    finished.reason = reason;
    finished.counts = &counts;
    finished.session = r->session_id;
    finished.has_seed = finished.has_queue_usec = finished.has_prefill_usec = finished.has_decode_usec = true;
    finished.seed = r->seed;
    finished.queue_usec = between(r->created_usec, r->started_usec ? r->started_usec : now);
    finished.prefill_usec = between(r->started_usec, r->answered_usec ? r->answered_usec : now);
    finished.decode_usec = between(r->answered_usec, now);
    finished.has_model_digest = true;
    finished.model_digest.data = r->env->model->checkpoint->digest;
    finished.model_digest.len = sizeof(r->env->model->checkpoint->digest);
    finished.has_tool_call_repaired = repaired;
    finished.tool_call_repaired = repaired;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_FINISHED;
    m.finished = &finished;
    send_event(r, &m);
}

void request_finish(struct request *r, Dsv4__V1__FinishReason reason, uint64_t now_usec)
{
    struct fail f = FAIL_INIT;
    int repaired = r->quiet || r->output == 0 ? 0 : flush(r, &f);
    uint32_t calls = r->completion ? completion_calls(r->completion) : 0;

    if (repaired < 0 && reason != DSV4__V1__FINISH_REASON__CANCELLED) {
        request_fail(r, &f);
        return;
    }
    if (reason == DSV4__V1__FINISH_REASON__STOP && calls > 0)
        reason = DSV4__V1__FINISH_REASON__TOOL_CALLS;
    if (reason == DSV4__V1__FINISH_REASON__PREFILLED)
        r->session->base = r->session->tokens.n; /* the last one too, though it was not computed */
    send_finished(r, reason, repaired > 0 && calls > 0, now_usec);
}

void request_fail(struct request *r, struct fail *f)
{
    outbox_put_error(r->env->outbox, r->id, f);
}
