/* SPDX-License-Identifier: MIT */
/* What events and errors say. Every getter answers for every type of event, with nothing where it has nothing. */
#include "client/lib.h"

#include <errno.h>

struct dsv4_event *event_free(struct dsv4_event *e)
{
    if (e && e->m)
        dsv4__v1__server_message__free_unpacked(e->m, NULL);
    free(e);
    return NULL;
}

/* ---------------------------------------------------------------- errors */

const char *dsv4_version(void)
{
    return PACKAGE_VERSION;
}

const struct dsv4_error *dsv4_get_error(const struct dsv4 *c)
{
    return &c->error;
}

const char *dsv4_error_get_code(const struct dsv4_error *e)
{
    return e->f.code;
}

const char *dsv4_error_get_message(const struct dsv4_error *e)
{
    return e->f.message;
}

const char *dsv4_error_get_field(const struct dsv4_error *e)
{
    return e->f.field;
}

int dsv4_error_get_errno(const struct dsv4_error *e)
{
    return e->f.err;
}

int dsv4_error_get_limit(const struct dsv4_error *e, int64_t *ret)
{
    if (e->f.has_limit)
        *ret = e->f.limit;
    return e->f.has_limit;
}

int dsv4_error_get_value(const struct dsv4_error *e, int64_t *ret)
{
    if (e->f.has_value)
        *ret = e->f.value;
    return e->f.has_value;
}

uint32_t dsv4_error_get_retry_after_ms(const struct dsv4_error *e)
{
    return e->f.retry_after_ms;
}

/* ---------------------------------------------------------------- events */

static const Dsv4__V1__Delta *delta_of(const struct dsv4_event *e)
{
    return e->type == DSV4_EVENT_DELTA ? e->m->delta : NULL;
}

static const Dsv4__V1__Finished *finished_of(const struct dsv4_event *e)
{
    return e->type == DSV4_EVENT_FINISHED ? e->m->finished : NULL;
}

enum dsv4_event_type dsv4_event_get_type(const struct dsv4_event *e)
{
    return e->type;
}

int dsv4_event_get_queue(const struct dsv4_event *e, uint32_t *ret_position, uint32_t *ret_estimate_ms)
{
    if (e->type != DSV4_EVENT_QUEUED)
        return -ENODATA;
    if (ret_position)
        *ret_position = e->m->queued->position;
    if (ret_estimate_ms)
        *ret_estimate_ms = e->m->queued->has_estimate_ms ? e->m->queued->estimate_ms : 0;
    return 0;
}

int dsv4_event_get_prefill(const struct dsv4_event *e, uint32_t *ret_done, uint32_t *ret_total, uint32_t *ret_cached)
{
    if (e->type != DSV4_EVENT_PREFILL)
        return -ENODATA;
    if (ret_done)
        *ret_done = e->m->prefill->done;
    if (ret_total)
        *ret_total = e->m->prefill->total;
    if (ret_cached)
        *ret_cached = e->m->prefill->has_cached ? e->m->prefill->cached : 0;
    return 0;
}

const char *dsv4_event_get_content(const struct dsv4_event *e)
{
    const Dsv4__V1__Delta *d = delta_of(e);
    return d ? d->content : NULL;
}

const char *dsv4_event_get_reasoning(const struct dsv4_event *e)
{
    const Dsv4__V1__Delta *d = delta_of(e);
    return d ? d->reasoning : NULL;
}

int dsv4_event_get_tool_call(const struct dsv4_event *e, uint32_t *ret_call, const char **ret_id,
                             const char **ret_name, const char **ret_arguments)
{
    const Dsv4__V1__Delta *d = delta_of(e);

    if (!d || !d->tool_call)
        return 0;
    if (ret_call)
        *ret_call = d->tool_call->call;
    if (ret_id)
        *ret_id = d->tool_call->id;
    if (ret_name)
        *ret_name = d->tool_call->name;
    if (ret_arguments)
        *ret_arguments = d->tool_call->arguments;
    return 1;
}

int dsv4_event_get_index(const struct dsv4_event *e, uint32_t *ret)
{
    const Dsv4__V1__Delta *d = delta_of(e);

    if (!d)
        return -ENODATA;
    *ret = d->index;
    return 0;
}

size_t dsv4_event_get_n_logprobs(const struct dsv4_event *e)
{
    const Dsv4__V1__Delta *d = delta_of(e);
    return d ? d->n_logprob : 0;
}

int dsv4_event_get_logprob(const struct dsv4_event *e, size_t i, uint32_t *ret_token, float *ret_logprob)
{
    if (i >= dsv4_event_get_n_logprobs(e))
        return -ENODATA;
    const Dsv4__V1__TokenLogprob *l = delta_of(e)->logprob[i];
    if (ret_token)
        *ret_token = l->id;
    if (ret_logprob)
        *ret_logprob = l->logprob;
    return 0;
}

size_t dsv4_event_get_n_alternatives(const struct dsv4_event *e, size_t i)
{
    return i < dsv4_event_get_n_logprobs(e) ? delta_of(e)->logprob[i]->n_top : 0;
}

int dsv4_event_get_alternative(const struct dsv4_event *e, size_t i, size_t j, uint32_t *ret_token,
                               float *ret_logprob)
{
    if (j >= dsv4_event_get_n_alternatives(e, i))
        return -ENODATA;
    const Dsv4__V1__TokenLogprobAlternative *a = delta_of(e)->logprob[i]->top[j];
    if (ret_token)
        *ret_token = a->id;
    if (ret_logprob)
        *ret_logprob = a->logprob;
    return 0;
}

int dsv4_event_get_finish_reason(const struct dsv4_event *e, enum dsv4_finish_reason *ret)
{
    const Dsv4__V1__Finished *f = finished_of(e);

    if (!f)
        return -ENODATA;
    *ret = (enum dsv4_finish_reason)f->reason;
    return 0;
}

uint64_t dsv4_event_get_count(const struct dsv4_event *e, enum dsv4_count count)
{
    const Dsv4__V1__Finished *f = finished_of(e);

    if (!f || !f->counts)
        return 0;
    switch (count) {
    case DSV4_COUNT_INPUT_COMPUTED:
        return f->counts->input_computed;
    case DSV4_COUNT_INPUT_CACHED:
        return f->counts->input_cached;
    case DSV4_COUNT_OUTPUT:
        return f->counts->output;
    case DSV4_COUNT_REASONING:
        return f->counts->has_reasoning ? f->counts->reasoning : 0;
    }
    return 0;
}

uint64_t dsv4_event_get_usec(const struct dsv4_event *e, enum dsv4_phase phase)
{
    const Dsv4__V1__Finished *f = finished_of(e);

    if (!f)
        return 0;
    switch (phase) {
    case DSV4_PHASE_QUEUE:
        return f->has_queue_usec ? f->queue_usec : 0;
    case DSV4_PHASE_PREFILL:
        return f->has_prefill_usec ? f->prefill_usec : 0;
    case DSV4_PHASE_DECODE:
        return f->has_decode_usec ? f->decode_usec : 0;
    }
    return 0;
}

const char *dsv4_event_get_session(const struct dsv4_event *e)
{
    const Dsv4__V1__Finished *f = finished_of(e);
    return f ? f->session : NULL;
}

int dsv4_event_get_seed(const struct dsv4_event *e, uint64_t *ret)
{
    const Dsv4__V1__Finished *f = finished_of(e);

    if (!f || !f->has_seed)
        return -ENODATA;
    *ret = f->seed;
    return 0;
}

const uint8_t *dsv4_event_get_model_digest(const struct dsv4_event *e, size_t *ret_size)
{
    const Dsv4__V1__Finished *f = finished_of(e);

    *ret_size = f && f->has_model_digest ? f->model_digest.len : 0;
    return *ret_size ? f->model_digest.data : NULL;
}

int dsv4_event_get_tool_call_repaired(const struct dsv4_event *e)
{
    const Dsv4__V1__Finished *f = finished_of(e);
    return f && f->has_tool_call_repaired && f->tool_call_repaired;
}

const struct dsv4_error *dsv4_event_get_error(const struct dsv4_event *e)
{
    return e->type == DSV4_EVENT_ERROR ? &e->error : NULL;
}
