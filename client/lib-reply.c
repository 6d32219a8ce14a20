/* SPDX-License-Identifier: MIT */
/* Getters of replies: models, sessions, usage, status. Each reply is the message that came (see lib.h). */
#include "client/lib.h"

#include <errno.h>

/* A reply of type T seen as its message of type M. */
#define VIEW(T, M, name)                                       \
    static const M *name(const struct T *x)                    \
    {                                                          \
        return (const M *)x;                                   \
    }
VIEW(dsv4_models, Dsv4__V1__ModelList, models)
VIEW(dsv4_model, Dsv4__V1__Model, model)
VIEW(dsv4_sessions, Dsv4__V1__SessionList, sessions)
VIEW(dsv4_session, Dsv4__V1__SessionInfo, session)
VIEW(dsv4_usage, Dsv4__V1__Usage, usage)
VIEW(dsv4_status, Dsv4__V1__Status, status)

#define FREE(T, M, free_unpacked)              \
    struct T *T##_free(struct T *x)            \
    {                                          \
        if (x)                                 \
            free_unpacked((M *)x, NULL);       \
        return NULL;                           \
    }
FREE(dsv4_models, Dsv4__V1__ModelList, dsv4__v1__model_list__free_unpacked)
FREE(dsv4_sessions, Dsv4__V1__SessionList, dsv4__v1__session_list__free_unpacked)
FREE(dsv4_session, Dsv4__V1__SessionInfo, dsv4__v1__session_info__free_unpacked)
FREE(dsv4_usage, Dsv4__V1__Usage, dsv4__v1__usage__free_unpacked)
FREE(dsv4_status, Dsv4__V1__Status, dsv4__v1__status__free_unpacked)

/* ---------------------------------------------------------------- models */

size_t dsv4_models_get_size(const struct dsv4_models *m)
{
    return models(m)->n_model;
}

const struct dsv4_model *dsv4_models_get(const struct dsv4_models *m, size_t i)
{
    return i < models(m)->n_model ? (const struct dsv4_model *)models(m)->model[i] : NULL;
}

const char *dsv4_model_get_name(const struct dsv4_model *m)
{
    return model(m)->name;
}

size_t dsv4_model_get_n_aliases(const struct dsv4_model *m)
{
    return model(m)->n_alias;
}

const char *dsv4_model_get_alias(const struct dsv4_model *m, size_t i)
{
    return i < model(m)->n_alias ? model(m)->alias[i] : NULL;
}

enum dsv4_model_state dsv4_model_get_state(const struct dsv4_model *m)
{
    return (enum dsv4_model_state)model(m)->state;
}

const char *dsv4_model_get_architecture(const struct dsv4_model *m)
{
    return model(m)->architecture;
}

uint32_t dsv4_model_get_context_tokens(const struct dsv4_model *m)
{
    return model(m)->has_context_tokens ? model(m)->context_tokens : 0;
}

uint32_t dsv4_model_get_vocabulary(const struct dsv4_model *m)
{
    return model(m)->has_vocabulary ? model(m)->vocabulary : 0;
}

const uint8_t *dsv4_model_get_digest(const struct dsv4_model *m, size_t *ret_size)
{
    *ret_size = model(m)->has_digest ? model(m)->digest.len : 0;
    return *ret_size ? model(m)->digest.data : NULL;
}

uint64_t dsv4_model_get_weight_bytes(const struct dsv4_model *m)
{
    return model(m)->has_weight_bytes ? model(m)->weight_bytes : 0;
}

uint64_t dsv4_model_get_loaded_bytes(const struct dsv4_model *m)
{
    return model(m)->has_loaded_bytes ? model(m)->loaded_bytes : 0;
}

const char *dsv4_model_get_device(const struct dsv4_model *m)
{
    return model(m)->device;
}

int dsv4_model_has_reasoning(const struct dsv4_model *m)
{
    return model(m)->has_reasoning && model(m)->reasoning;
}

int dsv4_model_has_tools(const struct dsv4_model *m)
{
    return model(m)->has_tools && model(m)->tools;
}

const char *dsv4_model_get_detail(const struct dsv4_model *m)
{
    return model(m)->detail;
}

/* ---------------------------------------------------------------- sessions */

size_t dsv4_sessions_get_size(const struct dsv4_sessions *s)
{
    return sessions(s)->n_session;
}

const struct dsv4_session *dsv4_sessions_get(const struct dsv4_sessions *s, size_t i)
{
    return i < sessions(s)->n_session ? (const struct dsv4_session *)sessions(s)->session[i] : NULL;
}

const char *dsv4_session_get_id(const struct dsv4_session *s)
{
    return session(s)->session;
}

const char *dsv4_session_get_model(const struct dsv4_session *s)
{
    return session(s)->model;
}

const char *dsv4_session_get_label(const struct dsv4_session *s)
{
    return session(s)->label;
}

uint32_t dsv4_session_get_tokens(const struct dsv4_session *s)
{
    return session(s)->has_tokens ? session(s)->tokens : 0;
}

uint64_t dsv4_session_get_kv_bytes(const struct dsv4_session *s)
{
    return session(s)->has_kv_bytes ? session(s)->kv_bytes : 0;
}

enum dsv4_place dsv4_session_get_place(const struct dsv4_session *s)
{
    return session(s)->has_place ? (enum dsv4_place)session(s)->place : DSV4_PLACE_DEVICE;
}

uint64_t dsv4_session_get_created_usec(const struct dsv4_session *s)
{
    return session(s)->has_created_usec ? session(s)->created_usec : 0;
}

uint64_t dsv4_session_get_used_usec(const struct dsv4_session *s)
{
    return session(s)->has_used_usec ? session(s)->used_usec : 0;
}

/* ---------------------------------------------------------------- usage */

static const Dsv4__V1__ModelUsage *usage_of(const struct dsv4_usage *u, size_t i)
{
    return i < usage(u)->n_model ? usage(u)->model[i] : NULL;
}

size_t dsv4_usage_get_n_models(const struct dsv4_usage *u)
{
    return usage(u)->n_model;
}

const char *dsv4_usage_get_model(const struct dsv4_usage *u, size_t i)
{
    return usage_of(u, i) ? usage_of(u, i)->model : NULL;
}

uint64_t dsv4_usage_get_count(const struct dsv4_usage *u, size_t i, enum dsv4_count count)
{
    if (!usage_of(u, i))
        return 0;
    const Dsv4__V1__TokenCounts *c = usage_of(u, i)->counts;
    switch (count) {
    case DSV4_COUNT_INPUT_COMPUTED:
        return c->input_computed;
    case DSV4_COUNT_INPUT_CACHED:
        return c->input_cached;
    case DSV4_COUNT_OUTPUT:
        return c->output;
    case DSV4_COUNT_REASONING:
        return c->has_reasoning ? c->reasoning : 0;
    }
    return 0;
}

uint64_t dsv4_usage_get_requests(const struct dsv4_usage *u, size_t i)
{
    return usage_of(u, i) ? usage_of(u, i)->requests : 0;
}

int dsv4_usage_get_cost(const struct dsv4_usage *u, size_t i, double *ret_cost, const char **ret_currency)
{
    const Dsv4__V1__ModelUsage *m = usage_of(u, i);

    if (!m || !m->has_cost)
        return 0;
    *ret_cost = m->cost;
    if (ret_currency)
        *ret_currency = m->currency;
    return 1;
}

size_t dsv4_usage_get_n_quotas(const struct dsv4_usage *u)
{
    return usage(u)->n_quota;
}

int dsv4_usage_get_quota(const struct dsv4_usage *u, size_t i, const char **ret_name, uint64_t *ret_limit,
                         uint64_t *ret_used, uint64_t *ret_resets_usec)
{
    if (i >= usage(u)->n_quota)
        return -ENOENT;
    const Dsv4__V1__Quota *q = usage(u)->quota[i];
    if (ret_name)
        *ret_name = q->name;
    if (ret_limit)
        *ret_limit = q->limit;
    if (ret_used)
        *ret_used = q->used;
    if (ret_resets_usec)
        *ret_resets_usec = q->has_resets_usec ? q->resets_usec : 0;
    return 0;
}

/* ---------------------------------------------------------------- status */

const char *dsv4_status_get_version(const struct dsv4_status *s)
{
    return status(s)->version;
}

uint64_t dsv4_status_get_started_usec(const struct dsv4_status *s)
{
    return status(s)->started_usec;
}

uint32_t dsv4_status_get_running(const struct dsv4_status *s)
{
    return status(s)->running;
}

uint32_t dsv4_status_get_queued(const struct dsv4_status *s)
{
    return status(s)->queued;
}

uint32_t dsv4_status_get_sessions(const struct dsv4_status *s)
{
    return status(s)->has_sessions ? status(s)->sessions : 0;
}

size_t dsv4_status_get_n_models(const struct dsv4_status *s)
{
    return status(s)->n_model;
}

const struct dsv4_model *dsv4_status_get_model(const struct dsv4_status *s, size_t i)
{
    return i < status(s)->n_model ? (const struct dsv4_model *)status(s)->model[i] : NULL;
}
