/* SPDX-License-Identifier: MIT */
/* Replies and events of libdsv4 as JSON. Keys are documented in dsv4(1) and dsv4ctl(1); what is not known is left out. */
#include "client/tool.h"

#include <stdio.h>
#include <string.h>

const struct column model_columns[] = {
    {"name", "NAME", COLUMN_TEXT},          {"state", "STATE", COLUMN_TEXT},
    {"context_tokens", "CONTEXT", COLUMN_NUMBER}, {"weight_bytes", "WEIGHTS", COLUMN_BYTES},
    {"device", "DEVICE", COLUMN_TEXT},      {"aliases", "ALIASES", COLUMN_TEXT},
    {"detail", "DETAIL", COLUMN_TEXT},      {NULL, NULL, COLUMN_TEXT}};
const struct column session_columns[] = {
    {"session", "SESSION", COLUMN_TEXT},    {"model", "MODEL", COLUMN_TEXT},
    {"label", "LABEL", COLUMN_TEXT},        {"tokens", "TOKENS", COLUMN_NUMBER},
    {"kv_bytes", "KV", COLUMN_BYTES},       {"place", "PLACE", COLUMN_TEXT},
    {"used_usec", "USED", COLUMN_AGE},      {NULL, NULL, COLUMN_TEXT}};

const char *model_state_name(enum dsv4_model_state s)
{
    static const char *const names[] = {"unloaded", "loading", "ready", "draining", "failed"};
    return (size_t)s < ELEMENTS(names) ? names[s] : "unknown";
}

/* A string that may be absent, and may not be UTF-8: jansson takes only that. */
static void set_text(json_t *j, const char *key, const char *s)
{
    _cleanup_buf_ struct buf b = BUF_INIT;

    if (!s)
        return;
    json_t *v = json_string(s);
    if (!v && visible_append(&b, s, strlen(s)) >= 0)
        v = json_string(b.data);
    json_object_set_new(j, key, v);
}

static void set_number(json_t *j, const char *key, uint64_t n)
{
    json_object_set_new(j, key, json_integer((json_int_t)n));
}

static void set_known(json_t *j, const char *key, uint64_t n)
{
    if (n > 0)
        set_number(j, key, n);
}

static void set_digest(json_t *j, const char *key, const uint8_t *digest, size_t n)
{
    char hex[129];

    if (!digest || n > 64)
        return;
    for (size_t i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    json_object_set_new(j, key, json_string(hex));
}

json_t *json_of_model(const struct dsv4_model *m)
{
    json_t *j = json_object(), *aliases = json_array();
    size_t n;

    set_text(j, "name", dsv4_model_get_name(m));
    for (size_t i = 0; i < dsv4_model_get_n_aliases(m); i++)
        json_array_append_new(aliases, json_string(dsv4_model_get_alias(m, i)));
    json_object_set_new(j, "aliases", aliases);
    set_text(j, "state", model_state_name(dsv4_model_get_state(m)));
    set_text(j, "architecture", dsv4_model_get_architecture(m));
    set_known(j, "context_tokens", dsv4_model_get_context_tokens(m));
    set_known(j, "vocabulary", dsv4_model_get_vocabulary(m));
    set_known(j, "weight_bytes", dsv4_model_get_weight_bytes(m));
    if (dsv4_model_get_state(m) == DSV4_MODEL_LOADING)
        set_number(j, "loaded_bytes", dsv4_model_get_loaded_bytes(m));
    set_text(j, "device", dsv4_model_get_device(m));
    const uint8_t *digest = dsv4_model_get_digest(m, &n);
    set_digest(j, "digest", digest, n);
    json_object_set_new(j, "reasoning", json_boolean(dsv4_model_has_reasoning(m)));
    json_object_set_new(j, "tools", json_boolean(dsv4_model_has_tools(m)));
    set_text(j, "detail", dsv4_model_get_detail(m));
    return j;
}

json_t *json_of_session(const struct dsv4_session *s)
{
    static const char *const places[] = {"device", "host", "disk"};
    enum dsv4_place place = dsv4_session_get_place(s);
    json_t *j = json_object();

    set_text(j, "session", dsv4_session_get_id(s));
    set_text(j, "model", dsv4_session_get_model(s));
    set_text(j, "label", dsv4_session_get_label(s));
    set_number(j, "tokens", dsv4_session_get_tokens(s));
    set_number(j, "kv_bytes", dsv4_session_get_kv_bytes(s));
    set_text(j, "place", (size_t)place < ELEMENTS(places) ? places[place] : "unknown");
    set_known(j, "created_usec", dsv4_session_get_created_usec(s));
    set_known(j, "used_usec", dsv4_session_get_used_usec(s));
    return j;
}

json_t *json_of_error(const struct dsv4_error *e)
{
    json_t *j = json_pack("{s:s}", "event", "error");
    int64_t v;

    set_text(j, "code", dsv4_error_get_code(e));
    set_text(j, "message", dsv4_error_get_message(e));
    if (dsv4_error_get_field(e)[0])
        set_text(j, "field", dsv4_error_get_field(e));
    if (dsv4_error_get_limit(e, &v))
        json_object_set_new(j, "limit", json_integer(v));
    if (dsv4_error_get_value(e, &v))
        json_object_set_new(j, "value", json_integer(v));
    set_known(j, "retry_after_ms", dsv4_error_get_retry_after_ms(e));
    return j;
}

static json_t *json_of_logprobs(const struct dsv4_event *e)
{
    json_t *list = json_array();
    uint32_t token;
    float logprob;

    for (size_t i = 0; i < dsv4_event_get_n_logprobs(e); i++) {
        json_t *top = json_array();
        for (size_t k = 0; k < dsv4_event_get_n_alternatives(e, i); k++) {
            dsv4_event_get_alternative(e, i, k, &token, &logprob);
            json_array_append_new(top, json_pack("{s:I,s:f}", "token", (json_int_t)token, "logprob", (double)logprob));
        }
        dsv4_event_get_logprob(e, i, &token, &logprob);
        json_array_append_new(list, json_pack("{s:I,s:f,s:o}", "token", (json_int_t)token, "logprob", (double)logprob,
                                              "top", top));
    }
    return list;
}

static void set_delta(json_t *j, const struct dsv4_event *e)
{
    const char *id, *name, *arguments;
    uint32_t n;

    if (dsv4_event_get_index(e, &n) >= 0)
        set_number(j, "index", n);
    set_text(j, "content", dsv4_event_get_content(e));
    set_text(j, "reasoning", dsv4_event_get_reasoning(e));
    if (dsv4_event_get_tool_call(e, &n, &id, &name, &arguments)) {
        json_t *call = json_object();
        set_number(call, "call", n);
        set_text(call, "id", id);
        set_text(call, "name", name);
        set_text(call, "arguments", arguments);
        json_object_set_new(j, "tool_call", call);
    }
    if (dsv4_event_get_n_logprobs(e) > 0)
        json_object_set_new(j, "logprobs", json_of_logprobs(e));
}

static void set_finished(json_t *j, const struct dsv4_event *e)
{
    static const char *const reasons[] = {"stop", "length", "tool_calls", "cancelled", "prefilled"};
    enum dsv4_finish_reason reason = DSV4_FINISH_STOP;
    json_t *counts = json_object();
    uint64_t seed;
    size_t n;

    dsv4_event_get_finish_reason(e, &reason);
    set_text(j, "reason", (size_t)reason < ELEMENTS(reasons) ? reasons[reason] : "unknown");
    set_number(counts, "input_computed", dsv4_event_get_count(e, DSV4_COUNT_INPUT_COMPUTED));
    set_number(counts, "input_cached", dsv4_event_get_count(e, DSV4_COUNT_INPUT_CACHED));
    set_number(counts, "output", dsv4_event_get_count(e, DSV4_COUNT_OUTPUT));
    set_number(counts, "reasoning", dsv4_event_get_count(e, DSV4_COUNT_REASONING));
    json_object_set_new(j, "counts", counts);
    set_text(j, "session", dsv4_event_get_session(e));
    if (dsv4_event_get_seed(e, &seed) >= 0) {
        char text[24]; /* more than 63 bits are no JSON number that everyone reads */
        snprintf(text, sizeof(text), "%llu", (unsigned long long)seed);
        json_object_set_new(j, "seed", seed <= INT64_MAX ? json_integer((json_int_t)seed) : json_string(text));
    }
    set_number(j, "queue_usec", dsv4_event_get_usec(e, DSV4_PHASE_QUEUE));
    set_number(j, "prefill_usec", dsv4_event_get_usec(e, DSV4_PHASE_PREFILL));
    set_number(j, "decode_usec", dsv4_event_get_usec(e, DSV4_PHASE_DECODE));
    const uint8_t *digest = dsv4_event_get_model_digest(e, &n);
    set_digest(j, "model_digest", digest, n);
    if (dsv4_event_get_tool_call_repaired(e))
        json_object_set_new(j, "tool_call_repaired", json_true());
}

json_t *json_of_event(const struct dsv4_event *e)
{
    static const char *const names[] = {"accepted", "queued", "prefill", "delta", "finished", "error"};
    enum dsv4_event_type type = dsv4_event_get_type(e);
    uint32_t a, b, c;

    if (type == DSV4_EVENT_ERROR)
        return json_of_error(dsv4_event_get_error(e));
    json_t *j = json_object();
    set_text(j, "event", (size_t)type < ELEMENTS(names) ? names[type] : "unknown");
    if (dsv4_event_get_queue(e, &a, &b) >= 0) {
        set_number(j, "position", a);
        set_known(j, "estimate_ms", b);
    } else if (dsv4_event_get_prefill(e, &a, &b, &c) >= 0) {
        set_number(j, "done", a);
        set_number(j, "total", b);
        set_number(j, "cached", c);
    } else if (type == DSV4_EVENT_DELTA) {
        set_delta(j, e);
    } else if (type == DSV4_EVENT_FINISHED) {
        set_finished(j, e);
    }
    return j;
}

int show_models(struct dsv4 *c, enum json_mode mode, bool legend)
{
    _cleanup_(dsv4_models_freep) struct dsv4_models *models = NULL;
    _cleanup_json_ json_t *rows = json_array();

    if (dsv4_list_models(c, &models) < 0)
        return tool_error(dsv4_get_error(c));
    for (size_t i = 0; i < dsv4_models_get_size(models); i++)
        json_array_append_new(rows, json_of_model(dsv4_models_get(models, i)));
    return table_print(rows, model_columns, mode, legend);
}
