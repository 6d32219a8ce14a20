/* SPDX-License-Identifier: MIT */
/* See chat-json.h. */
#include "engine/chat-json.h"

#include <errno.h>
#include <string.h>

static const struct {
    const char *name;
    enum chat_role role;
} roles[] = {
    {"system", CHAT_SYSTEM}, {"user", CHAT_USER}, {"assistant", CHAT_ASSISTANT},
    {"tool", CHAT_TOOL}, {"developer", CHAT_DEVELOPER}, {"latest_reminder", CHAT_LATEST_REMINDER},
};

struct reader {
    size_t message;
    struct fail *f;
};

static int refuse(const struct reader *at, const char *key, const char *expected)
{
    char field[64];

    snprintf(field, sizeof(field), "message[%zu].%s", at->message, key);
    int r = fail_set(at->f, EINVAL, "BAD_CHAT", "%s of message %zu: expected %s", key, at->message, expected);
    fail_field(at->f, field);
    return r;
}

static bool is_absent(const json_t *v)
{
    return !v || json_is_null(v);
}

static int copy_string(const struct reader *at, const char *key, const json_t *v, char **ret)
{
    size_t n = 0;

    if (is_absent(v))
        return 0;
    const char *s = pyjson_string(v, &n);
    if (!s || memchr(s, '\0', n))
        return refuse(at, key, "a string without NUL characters");
    *ret = strndup(s, n);
    return *ret ? 0 : fail_oom(at->f);
}

static int copy_member(const struct reader *at, const json_t *object, const char *key, char **ret)
{
    return copy_string(at, key, json_object_get(object, key), ret);
}

static int required_member(const struct reader *at, const json_t *object, const char *key, char **ret)
{
    int r = copy_member(at, object, key, ret);
    return r < 0 || *ret ? r : refuse(at, key, "it to be there");
}

static int copy_json(const struct reader *at, const json_t *v, char **ret)
{
    _cleanup_buf_ struct buf text = BUF_INIT;

    if (pyjson_dump(v, &text) < 0)
        return fail_oom(at->f);
    *ret = buf_take(&text);
    return 0;
}

/* ---------------------------------------------------------------- parts of a message */

static int read_tools(const struct reader *at, const json_t *v, struct chat_message *m)
{
    size_t n = json_array_size(v);

    if (is_absent(v))
        return 0;
    if (!json_is_array(v))
        return refuse(at, "tools", "an array");
    m->tool = calloc(n + 1, sizeof(*m->tool));
    if (!m->tool)
        return fail_oom(at->f);
    for (size_t i = 0; i < n; i++) {
        const json_t *function = json_object_get(json_array_get(v, i), "function");
        if (!function)
            return refuse(at, "tools", "objects that have a \"function\"");
        m->n_tools++;
        int r = copy_json(at, function, &m->tool[i].schema_json);
        if (r < 0)
            return r;
    }
    return 0;
}

static int read_calls(const struct reader *at, const json_t *v, struct chat_message *m)
{
    size_t n = json_array_size(v);

    if (is_absent(v))
        return 0;
    if (!json_is_array(v))
        return refuse(at, "tool_calls", "an array");
    m->tool_call = calloc(n + 1, sizeof(*m->tool_call));
    if (!m->tool_call)
        return fail_oom(at->f);
    for (size_t i = 0; i < n; i++) {
        const json_t *call = json_array_get(v, i), *function = json_object_get(call, "function");
        if (!json_is_object(function))
            return refuse(at, "tool_calls", "objects that have a \"function\"");
        struct chat_tool_call *c = &m->tool_call[m->n_tool_calls++];
        int r = copy_member(at, call, "id", &c->id);
        if (r == 0 && !c->id)
            r = copy_member(at, function, "id", &c->id);
        r = r < 0 ? r : required_member(at, function, "name", &c->name);
        r = r < 0 ? r : required_member(at, function, "arguments", &c->arguments_json);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A tool's result may be a list of parts: texts, and things that the model cannot see. */
static int read_parts(const struct reader *at, const json_t *v, char **ret)
{
    _cleanup_buf_ struct buf text = BUF_INIT;
    size_t i;
    json_t *part;
    int r = buf_reserve(&text, 0);

    json_array_foreach(v, i, part) {
        _cleanup_free_ char *type = NULL, *words = NULL;
        if (r == 0 && i)
            r = buf_append(&text, "\n\n", 2);
        if (r < 0)
            return fail_oom(at->f);
        r = required_member(at, part, "type", &type);
        if (r == 0 && strcmp(type, "text") == 0)
            r = copy_member(at, part, "text", &words);
        if (r < 0)
            return r;
        if (strcmp(type, "text") == 0)
            r = buf_append_str(&text, words ? words : "");
        else
            r = buf_printf(&text, "[Unsupported %s]", type);
    }
    if (r < 0)
        return fail_oom(at->f);
    *ret = buf_take(&text);
    return 0;
}

static int read_content(const struct reader *at, const json_t *object, struct chat_message *m)
{
    const json_t *v = json_object_get(object, "content");

    if (m->role == CHAT_TOOL && json_is_array(v))
        return read_parts(at, v, &m->content);
    if (m->role == CHAT_USER && json_is_null(v))
        return refuse(at, "content", "a string");
    return copy_string(at, "content", v, &m->content);
}

/* What Python counts as true: a format of {} or "" is none. */
static bool is_true(const json_t *v)
{
    size_t n = 1;

    if (is_absent(v) || json_is_false(v))
        return false;
    if (json_is_object(v) || json_is_array(v))
        return json_object_size(v) + json_array_size(v) > 0;
    return !pyjson_string(v, &n) || n > 0;
}

static int read_role(const struct reader *at, const json_t *object, enum chat_role *ret)
{
    size_t n = 0;
    const char *s = pyjson_string(json_object_get(object, "role"), &n);

    for (size_t i = 0; s && i < ELEMENTS(roles); i++)
        if (strlen(roles[i].name) == n && memcmp(roles[i].name, s, n) == 0) {
            *ret = roles[i].role;
            return 0;
        }
    return refuse(at, "role", "system, user, assistant, tool, developer or latest_reminder");
}

static int read_message(const struct reader *at, const json_t *v, struct chat_message *m)
{
    if (!json_is_object(v))
        return refuse(at, "all", "an object");
    int r = read_role(at, v, &m->role);
    r = r < 0 ? r : read_content(at, v, m);
    r = r < 0 ? r : copy_member(at, v, "reasoning_content", &m->reasoning);
    r = r < 0 ? r : copy_member(at, v, "tool_call_id", &m->tool_call_id);
    r = r < 0 ? r : copy_member(at, v, "task", &m->task);
    r = r < 0 ? r : read_tools(at, json_object_get(v, "tools"), m);
    r = r < 0 ? r : read_calls(at, json_object_get(v, "tool_calls"), m);
    const json_t *format = json_object_get(v, "response_format");
    if (r == 0 && is_true(format))
        r = copy_json(at, format, &m->response_format_json);
    m->no_eos = is_true(json_object_get(v, "wo_eos"));
    return r;
}

/* ---------------------------------------------------------------- the whole input */

static int bad_input(struct fail *f, const char *key, const char *expected)
{
    int r = fail_set(f, EINVAL, "BAD_CHAT", "input.%s: expected %s", key, expected);
    fail_field(f, key);
    return r;
}

static bool string_is(const json_t *v, const char *s)
{
    size_t n = 0;
    const char *text = v ? pyjson_string(v, &n) : NULL;
    return text && strlen(s) == n && memcmp(text, s, n) == 0;
}

static int read_settings(const json_t *input, struct chat *c, struct fail *f)
{
    const json_t *mode = json_object_get(input, "thinking_mode"), *drop = json_object_get(input, "drop_thinking");
    const json_t *effort = json_object_get(input, "reasoning_effort");

    if (!string_is(mode, "chat") && !string_is(mode, "thinking"))
        return bad_input(f, "thinking_mode", "\"chat\" or \"thinking\"");
    if (!is_absent(effort) && !string_is(effort, "high") && !string_is(effort, "max"))
        return bad_input(f, "reasoning_effort", "\"high\", \"max\" or null");
    if (drop && !json_is_boolean(drop))
        return bad_input(f, "drop_thinking", "true or false");
    if (is_true(json_object_get(input, "context")))
        return bad_input(f, "context", "no such input");
    if (string_is(mode, "thinking"))
        c->effort = string_is(effort, "max") ? CHAT_EFFORT_MAX : CHAT_EFFORT_HIGH;
    c->keep_reasoning = json_is_false(drop);
    return 0;
}

int chat_from_json(const json_t *input, struct chat *ret, struct fail *f)
{
    _cleanup_chat_ struct chat c = {0};
    const json_t *messages = json_object_get(input, "messages");
    size_t n = json_array_size(messages);

    if (!json_is_array(messages))
        return bad_input(f, "messages", "an array");
    int r = read_settings(input, &c, f);
    if (r < 0)
        return r;
    c.message = calloc(n + 1, sizeof(*c.message));
    if (!c.message)
        return fail_oom(f);
    for (size_t i = 0; i < n; i++) {
        struct reader at = {.message = i, .f = f};
        c.n_messages++;
        r = read_message(&at, json_array_get(messages, i), &c.message[i]);
        if (r < 0)
            return r;
    }
    *ret = c;
    c = (struct chat){0};
    return 0;
}

static int add_call(json_t *calls, const struct chat_tool_call *call)
{
    json_t *v = json_pack("{s:s, s:{s:s, s:s}}", "type", "function", "function", "name", call->name, "arguments",
                          call->arguments_json);
    return v ? json_array_append_new(calls, v) : -1;
}

int chat_message_to_json(const struct chat_message *m, json_t **ret, struct fail *f)
{
    _cleanup_json_ json_t *calls = json_array(), *v = NULL;

    if (!calls)
        return fail_oom(f);
    for (size_t i = 0; i < m->n_tool_calls; i++)
        if (add_call(calls, &m->tool_call[i]) < 0)
            return fail_oom(f);
    v = json_pack("{s:s, s:s, s:s, s:O}", "role", "assistant", "content", m->content ? m->content : "",
                  "reasoning_content", m->reasoning ? m->reasoning : "", "tool_calls", calls);
    if (!v)
        return fail_set(f, EILSEQ, "BAD_UTF8", "the message is not valid UTF-8");
    *ret = TAKE_PTR(v);
    return 0;
}
