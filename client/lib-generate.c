/* SPDX-License-Identifier: MIT */
/* The builder of generation parameters. Ranges are not checked here: the server knows them and says so by name. */
#include "client/lib.h"

#include <errno.h>
#include <string.h>

int dsv4_generate_new(struct dsv4_generate **ret)
{
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = calloc(1, sizeof(*g));

    if (!g)
        return -ENOMEM;
    g->n_ref = 1;
    g->m = malloc(sizeof(*g->m));
    if (!g->m)
        return -ENOMEM;
    dsv4__v1__generate__init(g->m);
    *ret = TAKE_PTR(g);
    return 0;
}

struct dsv4_generate *dsv4_generate_ref(struct dsv4_generate *g)
{
    if (g)
        g->n_ref++;
    return g;
}

struct dsv4_generate *dsv4_generate_unref(struct dsv4_generate *g)
{
    if (!g || --g->n_ref > 0)
        return NULL;
    if (g->m)
        dsv4__v1__generate__free_unpacked(g->m, NULL);
    dsv4_chat_unref(g->chat);
    free(g);
    return NULL;
}

/* ---------------------------------------------------------------- input */

static void drop_input(struct dsv4_generate *g)
{
    if (g->m->input_case == DSV4__V1__GENERATE__INPUT_TEXT)
        free(g->m->text);
    else if (g->m->input_case == DSV4__V1__GENERATE__INPUT_TOKENS)
        dsv4__v1__token_ids__free_unpacked(g->m->tokens, NULL);
    g->m->input_case = DSV4__V1__GENERATE__INPUT__NOT_SET;
    g->m->text = NULL;
    g->chat = dsv4_chat_unref(g->chat);
}

int dsv4_generate_set_text(struct dsv4_generate *g, const char *text, size_t size)
{
    if (memchr(text, '\0', size))
        return -EINVAL; /* protobuf-c keeps strings as C does */
    char *copy = strndup(text, size);
    if (!copy)
        return -ENOMEM;
    drop_input(g);
    g->m->input_case = DSV4__V1__GENERATE__INPUT_TEXT;
    g->m->text = copy;
    return 0;
}

int dsv4_generate_set_chat(struct dsv4_generate *g, struct dsv4_chat *chat)
{
    dsv4_chat_ref(chat); /* first: it may be the one that is dropped */
    drop_input(g);
    g->chat = chat;
    return 0;
}

int dsv4_generate_set_tokens(struct dsv4_generate *g, const uint32_t *ids, size_t n_ids)
{
    Dsv4__V1__TokenIds *tokens = malloc(sizeof(*tokens));
    uint32_t *copy = reallocarray(NULL, n_ids + 1, sizeof(*copy));

    if (!tokens || !copy) {
        free(tokens);
        free(copy);
        return -ENOMEM;
    }
    if (n_ids)
        memcpy(copy, ids, n_ids * sizeof(*ids));
    dsv4__v1__token_ids__init(tokens);
    tokens->id = copy;
    tokens->n_id = n_ids;
    drop_input(g);
    g->m->input_case = DSV4__V1__GENERATE__INPUT_TOKENS;
    g->m->tokens = tokens;
    return 0;
}

/* ---------------------------------------------------------------- where and how */

int dsv4_generate_set_model(struct dsv4_generate *g, const char *model)
{
    return replace_string(&g->m->model, model);
}

int dsv4_generate_set_session(struct dsv4_generate *g, const char *session)
{
    return replace_string(&g->m->session, session);
}

int dsv4_generate_set_max_tokens(struct dsv4_generate *g, uint32_t tokens)
{
    g->m->has_max_tokens = true;
    g->m->max_tokens = tokens;
    return 0;
}

static Dsv4__V1__Sampling *sampling(struct dsv4_generate *g)
{
    if (!g->m->sampling) {
        g->m->sampling = malloc(sizeof(*g->m->sampling));
        if (g->m->sampling)
            dsv4__v1__sampling__init(g->m->sampling);
    }
    return g->m->sampling;
}

#define SAMPLING_SETTER(name, type)                                    \
    int dsv4_generate_set_##name(struct dsv4_generate *g, type value)  \
    {                                                                  \
        Dsv4__V1__Sampling *s = sampling(g);                           \
        if (!s)                                                        \
            return -ENOMEM;                                            \
        s->has_##name = true;                                          \
        s->name = value;                                               \
        return 0;                                                      \
    }
SAMPLING_SETTER(temperature, float)
SAMPLING_SETTER(top_p, float)
SAMPLING_SETTER(top_k, uint32_t)
SAMPLING_SETTER(min_p, float)
SAMPLING_SETTER(seed, uint64_t)
SAMPLING_SETTER(presence_penalty, float)
SAMPLING_SETTER(frequency_penalty, float)

int dsv4_generate_add_bias(struct dsv4_generate *g, uint32_t token, float bias)
{
    Dsv4__V1__Sampling *s = sampling(g);
    _cleanup_free_ Dsv4__V1__LogitBias *b = malloc(sizeof(*b));

    if (!s || !b)
        return -ENOMEM;
    dsv4__v1__logit_bias__init(b);
    b->id = token;
    b->bias = bias;
    int r = append_pointer(&s->bias, &s->n_bias, b);
    if (r >= 0)
        b = NULL;
    return r;
}

int dsv4_generate_add_stop(struct dsv4_generate *g, const char *stop)
{
    _cleanup_free_ char *copy = strdup(stop);

    if (!copy)
        return -ENOMEM;
    int r = append_pointer(&g->m->stop, &g->m->n_stop, copy);
    if (r >= 0)
        copy = NULL;
    return r;
}

int dsv4_generate_set_logprobs(struct dsv4_generate *g, uint32_t alternatives)
{
    g->m->has_logprobs = true;
    g->m->logprobs = alternatives;
    return 0;
}

int dsv4_generate_set_append_only(struct dsv4_generate *g, int append_only)
{
    g->m->has_append_only = true;
    g->m->append_only = append_only != 0;
    return 0;
}

int dsv4_generate_set_resume_seconds(struct dsv4_generate *g, uint32_t seconds)
{
    g->m->has_resume_seconds = seconds > 0;
    g->m->resume_seconds = seconds;
    return 0;
}

int dsv4_generate_set_response_format(struct dsv4_generate *g, enum dsv4_response_format format, const char *text)
{
    if ((int)format < DSV4_RESPONSE_JSON || format > DSV4_RESPONSE_REGEX || (format == DSV4_RESPONSE_JSON) != !text)
        return -EINVAL;
    _cleanup_free_ Dsv4__V1__ResponseFormat *f = malloc(sizeof(*f));
    _cleanup_free_ char *copy = text ? strdup(text) : NULL;
    if (!f || (text && !copy))
        return -ENOMEM;
    dsv4__v1__response_format__init(f);
    if (format == DSV4_RESPONSE_JSON) {
        f->kind_case = DSV4__V1__RESPONSE_FORMAT__KIND_JSON;
        f->json = true;
    } else {
        f->kind_case = format == DSV4_RESPONSE_REGEX ? DSV4__V1__RESPONSE_FORMAT__KIND_REGEX
                                                     : DSV4__V1__RESPONSE_FORMAT__KIND_JSON_SCHEMA;
        f->regex = TAKE_PTR(copy); /* the same place as json_schema */
    }
    if (g->m->response_format)
        dsv4__v1__response_format__free_unpacked(g->m->response_format, NULL);
    g->m->response_format = TAKE_PTR(f);
    return 0;
}
