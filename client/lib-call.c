/* SPDX-License-Identifier: MIT */
/* The synchronous calls: each fills one message, waits, and takes the reply out of the answer. */
#include "client/lib.h"

#include <errno.h>
#include <string.h>

#define OPERATION(m_, case_) \
    Dsv4__V1__ClientMessage m_ = DSV4__V1__CLIENT_MESSAGE__INIT; \
    m_.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_##case_
#define ANSWER(case_) DSV4__V1__SERVER_MESSAGE__EVENT_##case_

/* A string that is not ours to change, for a message that will only be read. */
static char *lend(const char *s)
{
    return (char *)(uintptr_t)s;
}

int dsv4_list_models(struct dsv4 *c, struct dsv4_models **ret)
{
    OPERATION(m, LIST_MODELS);
    Dsv4__V1__ListModels list = DSV4__V1__LIST_MODELS__INIT;
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    m.list_models = &list;
    int r = conn_call(c, &m, ANSWER(MODELS), &a);
    if (r >= 0)
        *ret = (struct dsv4_models *)TAKE_PTR(a->models);
    return r;
}

/* ---------------------------------------------------------------- sessions */

static int session_call(struct dsv4 *c, Dsv4__V1__ClientMessage *m, struct dsv4_session **ret)
{
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    int r = conn_call(c, m, ANSWER(SESSION), &a);
    if (r >= 0 && ret)
        *ret = (struct dsv4_session *)TAKE_PTR(a->session);
    return r;
}

int dsv4_open_session(struct dsv4 *c, const char *model, const char *label, uint32_t idle_seconds,
                      struct dsv4_session **ret)
{
    OPERATION(m, OPEN_SESSION);
    Dsv4__V1__OpenSession open = DSV4__V1__OPEN_SESSION__INIT;

    open.model = lend(model);
    open.label = lend(label);
    open.has_idle_seconds = idle_seconds > 0;
    open.idle_seconds = idle_seconds;
    m.open_session = &open;
    return session_call(c, &m, ret);
}

int dsv4_close_session(struct dsv4 *c, const char *session)
{
    OPERATION(m, CLOSE_SESSION);
    Dsv4__V1__CloseSession close_ = DSV4__V1__CLOSE_SESSION__INIT;

    close_.session = lend(session);
    m.close_session = &close_;
    return conn_call(c, &m, ANSWER(DONE), NULL);
}

int dsv4_fork_session(struct dsv4 *c, const char *session, const char *label, struct dsv4_session **ret)
{
    OPERATION(m, FORK_SESSION);
    Dsv4__V1__ForkSession fork_ = DSV4__V1__FORK_SESSION__INIT;

    fork_.session = lend(session);
    fork_.label = lend(label);
    m.fork_session = &fork_;
    return session_call(c, &m, ret);
}

int dsv4_trim_session(struct dsv4 *c, const char *session, uint32_t tokens, struct dsv4_session **ret)
{
    OPERATION(m, TRIM_SESSION);
    Dsv4__V1__TrimSession trim = DSV4__V1__TRIM_SESSION__INIT;

    trim.session = lend(session);
    trim.tokens = tokens;
    m.trim_session = &trim;
    return session_call(c, &m, ret);
}

int dsv4_list_sessions(struct dsv4 *c, struct dsv4_sessions **ret)
{
    OPERATION(m, LIST_SESSIONS);
    Dsv4__V1__ListSessions list = DSV4__V1__LIST_SESSIONS__INIT;
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    m.list_sessions = &list;
    int r = conn_call(c, &m, ANSWER(SESSIONS), &a);
    if (r >= 0)
        *ret = (struct dsv4_sessions *)TAKE_PTR(a->sessions);
    return r;
}

/* ---------------------------------------------------------------- text */

static int tokenize(struct dsv4 *c, Dsv4__V1__Tokenize *t, uint32_t **ret_ids, size_t *ret_n)
{
    OPERATION(m, TOKENIZE);
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    m.tokenize = t;
    int r = conn_call(c, &m, ANSWER(TOKENS), &a);
    if (r < 0)
        return r;
    if (!a->tokens->id && !(a->tokens->id = calloc(1, sizeof(uint32_t)))) /* never NULL */
        return conn_oom(c);
    *ret_n = a->tokens->n_id;
    a->tokens->n_id = 0;
    *ret_ids = TAKE_PTR(a->tokens->id);
    return 0;
}

int dsv4_tokenize(struct dsv4 *c, const char *model, const char *text, size_t size, int special, uint32_t **ret_ids,
                  size_t *ret_n)
{
    Dsv4__V1__Tokenize t = DSV4__V1__TOKENIZE__INIT;

    if (memchr(text, '\0', size))
        return conn_fail(c, EINVAL, "BAD_UTF8", "the text contains a NUL, which cannot be sent");
    _cleanup_free_ char *copy = strndup(text, size);
    if (!copy)
        return conn_oom(c);
    t.model = lend(model);
    t.input_case = DSV4__V1__TOKENIZE__INPUT_TEXT;
    t.text = copy;
    t.has_special = special != 0;
    t.special = special != 0;
    return tokenize(c, &t, ret_ids, ret_n);
}

int dsv4_tokenize_chat(struct dsv4 *c, const char *model, const struct dsv4_chat *chat, uint32_t **ret_ids,
                       size_t *ret_n)
{
    Dsv4__V1__Tokenize t = DSV4__V1__TOKENIZE__INIT;

    t.model = lend(model);
    t.input_case = DSV4__V1__TOKENIZE__INPUT_CHAT;
    t.chat = chat->m;
    return tokenize(c, &t, ret_ids, ret_n);
}

int dsv4_detokenize(struct dsv4 *c, const char *model, const uint32_t *ids, size_t n_ids, char **ret_text,
                    size_t *ret_size)
{
    OPERATION(m, DETOKENIZE);
    Dsv4__V1__Detokenize d = DSV4__V1__DETOKENIZE__INIT;
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    d.model = lend(model);
    d.n_id = n_ids;
    d.id = (uint32_t *)(uintptr_t)ids;
    m.detokenize = &d;
    int r = conn_call(c, &m, ANSWER(TEXT), &a);
    if (r < 0)
        return r;
    char *text = malloc(a->text->utf8.len + 1);
    if (!text)
        return conn_oom(c);
    if (a->text->utf8.len)
        memcpy(text, a->text->utf8.data, a->text->utf8.len);
    text[a->text->utf8.len] = '\0';
    *ret_text = text;
    *ret_size = a->text->utf8.len;
    return 0;
}

/* ---------------------------------------------------------------- account and state */

int dsv4_get_usage(struct dsv4 *c, uint64_t since_usec, struct dsv4_usage **ret)
{
    OPERATION(m, GET_USAGE);
    Dsv4__V1__GetUsage get = DSV4__V1__GET_USAGE__INIT;
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    get.has_since_usec = since_usec > 0;
    get.since_usec = since_usec;
    m.get_usage = &get;
    int r = conn_call(c, &m, ANSWER(USAGE), &a);
    if (r >= 0)
        *ret = (struct dsv4_usage *)TAKE_PTR(a->usage);
    return r;
}

int dsv4_get_status(struct dsv4 *c, struct dsv4_status **ret)
{
    OPERATION(m, GET_STATUS);
    Dsv4__V1__GetStatus get = DSV4__V1__GET_STATUS__INIT;
    _cleanup_answer_ Dsv4__V1__ServerMessage *a = NULL;

    m.get_status = &get;
    int r = conn_call(c, &m, ANSWER(STATUS), &a);
    if (r >= 0)
        *ret = (struct dsv4_status *)TAKE_PTR(a->status);
    return r;
}
