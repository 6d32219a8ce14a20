/* SPDX-License-Identifier: MIT */
/* Messages to a prompt, as the released encoder does it (chat.h). Two passes: messages become turns (tool results join
 * the user's turn, in the order of the calls), then each turn is written with its marks. Parsing is in completion*.c. */
#include "engine/chat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "base/size.h"
#include "engine/chat-format.h"
#include "engine/pyjson.h"

#define TAG(name) "<" MARK_DSML name
#define END_TAG(name) "</" MARK_DSML name

static const char effort_max[] =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

static const char tools_before[] =
    "\n\n## Tools\n\nYou have access to a set of tools to help answer the user's question. You can invoke tools by "
    "writing a \"" TAG("tool_calls") ">\" block like the following:\n\n"
    TAG("tool_calls") ">\n"
    TAG("invoke") " name=\"$TOOL_NAME\">\n"
    TAG("parameter") " name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE" END_TAG("parameter") ">\n...\n"
    END_TAG("invoke") ">\n"
    TAG("invoke") " name=\"$TOOL_NAME2\">\n...\n"
    END_TAG("invoke") ">\n"
    END_TAG("tool_calls") ">\n\n"
    "String parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, booleans, "
    "arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n\n"
    "If thinking_mode is enabled (triggered by " MARK_THINK "), you MUST output your complete reasoning inside "
    MARK_THINK "..." MARK_THINK_END " BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after " MARK_THINK_END " with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n";

static const char tools_after[] =
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n";

static const char format_before[] =
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

static const struct {
    const char *name, *mark;
} tasks[] = {
    {"action", "<｜action｜>"}, {"query", "<｜query｜>"}, {"authority", "<｜authority｜>"},
    {"domain", "<｜domain｜>"}, {"title", "<｜title｜>"}, {"read_url", "<｜read_url｜>"},
};

static const char *task_mark(const char *name)
{
    for (size_t i = 0; i < ELEMENTS(tasks); i++)
        if (strcmp(tasks[i].name, name) == 0)
            return tasks[i].mark;
    return NULL;
}

/* ---------------------------------------------------------------- memory */

void chat_message_deinit(struct chat_message *m)
{
    for (size_t i = 0; i < m->n_tool_calls; i++) {
        free(m->tool_call[i].id);
        free(m->tool_call[i].name);
        free(m->tool_call[i].arguments_json);
        free(m->tool_call[i].raw);
    }
    for (size_t i = 0; i < m->n_tools; i++) {
        free(m->tool[i].name);
        free(m->tool[i].description);
        free(m->tool[i].parameters_json);
        free(m->tool[i].schema_json);
    }
    free(m->tool_call);
    free(m->tool);
    free(m->content);
    free(m->reasoning);
    free(m->tool_call_id);
    free(m->task);
    free(m->response_format_json);
    *m = (struct chat_message){0};
}

void chat_deinit(struct chat *c)
{
    for (size_t i = 0; i < c->n_messages; i++)
        chat_message_deinit(&c->message[i]);
    free(c->message);
    *c = (struct chat){0};
}

void chat_prompt_deinit(struct chat_prompt *p)
{
    buf_deinit(&p->text);
    free(p->span);
    *p = (struct chat_prompt){0};
}

/* ---------------------------------------------------------------- writing with spans */

/* `text` of the spans stays NULL until all is written, since the buffer moves. */
static int put(struct chat_prompt *p, const char *s, size_t n, bool control)
{
    if (n == 0)
        return 0;
    struct text_span *last = p->n_spans ? &p->span[p->n_spans - 1] : NULL;
    if (!last || last->control != control) {
        if (p->n_spans == p->span_capacity) {
            size_t capacity = p->span_capacity ? p->span_capacity * 2 : 16;
            struct text_span *span = reallocarray(p->span, capacity, sizeof(*span));
            if (!span)
                return -ENOMEM;
            p->span = span;
            p->span_capacity = capacity;
        }
        last = &p->span[p->n_spans++];
        *last = (struct text_span){.control = control};
    }
    int r = buf_append(&p->text, s, n);
    if (r == 0)
        last->n += n;
    return r;
}

/* The format's own text. */
static int mark(struct chat_prompt *p, const char *s)
{
    return put(p, s, strlen(s), true);
}

/* Somebody else's text, which never makes control tokens. */
static int plain(struct chat_prompt *p, const char *s)
{
    return s ? put(p, s, strlen(s), false) : 0;
}

static int plain_json(struct chat_prompt *p, const json_t *v)
{
    _cleanup_buf_ struct buf text = BUF_INIT;
    int r = pyjson_dump(v, &text);
    return r < 0 ? r : put(p, text.data, text.size, false);
}

static void set_span_texts(struct chat_prompt *p)
{
    size_t at = 0;

    for (size_t i = 0; i < p->n_spans; i++) {
        p->span[i].text = p->text.data + at;
        at += p->span[i].n;
    }
}

/* ---------------------------------------------------------------- turns */

struct turn {
    enum chat_role role;
    size_t message;                   /* the first one, by its number in the chat */
    const struct chat_message *m;     /* the same; of a USER turn only one part of several */
    const char *task;
    const struct chat_message **part; /* [n_parts] USER: texts and tool results */
    size_t n_parts;
};

struct encoding {
    const struct chat *c;
    struct turn *turn;                /* [n_turns] */
    size_t n_turns, last_user;        /* last_user: SIZE_MAX if there is none */
    const struct chat_message **part; /* [n_messages], shared out to the turns */
    bool thinking, drop_reasoning;
};

static void encoding_deinit(struct encoding *e)
{
    free(e->turn);
    free(e->part);
}

static int refuse(size_t message, struct fail *f, const char *why)
{
    char field[32];

    snprintf(field, sizeof(field), "message[%zu]", message);
    int r = fail_set(f, EINVAL, "BAD_CHAT", "message %zu %s", message, why);
    fail_field(f, field);
    return r;
}

static bool joins(const struct encoding *e, const struct chat_message *m)
{
    if (e->n_turns == 0 || e->turn[e->n_turns - 1].role != CHAT_USER)
        return false;
    return m->role == CHAT_TOOL || (m->role == CHAT_USER && !e->turn[e->n_turns - 1].task);
}

static void make_turns(struct encoding *e)
{
    size_t n_parts = 0;

    for (size_t i = 0; i < e->c->n_messages; i++) {
        const struct chat_message *m = &e->c->message[i];
        bool user = m->role == CHAT_USER || m->role == CHAT_TOOL;
        if (!joins(e, m))
            e->turn[e->n_turns++] = (struct turn){
                .role = user ? CHAT_USER : m->role, .message = i, .m = m, .part = e->part + n_parts,
                .task = m->role == CHAT_TOOL ? NULL : m->task};
        if (!user)
            continue;
        e->part[n_parts++] = m;
        e->turn[e->n_turns - 1].n_parts++;
    }
}

static void find_last_user(struct encoding *e)
{
    e->last_user = SIZE_MAX;
    for (size_t i = 0; i < e->n_turns; i++)
        if (e->turn[i].role == CHAT_USER || e->turn[i].role == CHAT_DEVELOPER)
            e->last_user = i;
}

/* Decide on reasoning; where it is dropped, so are developer messages of earlier turns. */
static void drop_turns(struct encoding *e)
{
    e->thinking = e->c->effort != CHAT_EFFORT_NONE;
    e->drop_reasoning = !e->c->keep_reasoning;
    for (size_t i = 0; i < e->n_turns; i++)
        if (e->turn[i].role != CHAT_USER && e->turn[i].m->n_tools)
            e->drop_reasoning = false;
    find_last_user(e);
    if (!e->thinking || !e->drop_reasoning)
        return;
    size_t kept = 0;
    for (size_t i = 0; i < e->n_turns; i++)
        if (e->turn[i].role != CHAT_DEVELOPER || i == e->last_user)
            e->turn[kept++] = e->turn[i];
    e->n_turns = kept;
    find_last_user(e);
}

/* ---------------------------------------------------------------- the order of tool results */

struct result {
    uintptr_t order; /* place of its call, from 1 */
    size_t at;
    const struct chat_message *m;
};

static int compare_results(const void *a, const void *b)
{
    const struct result *x = a, *y = b;

    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

static int sort_results(struct turn *t, const struct map *calls)
{
    _cleanup_free_ struct result *result = calloc(t->n_parts + 1, sizeof(*result));
    size_t n = 0;

    if (!result)
        return -ENOMEM;
    for (size_t i = 0; i < t->n_parts; i++) {
        if (t->part[i]->role != CHAT_TOOL)
            continue;
        const char *id = t->part[i]->tool_call_id;
        uintptr_t order = id ? (uintptr_t)map_get(calls, id, strlen(id)) : 0;
        /* a result of no known call counts as one of the first, as in the released code */
        result[n] = (struct result){.order = order ? order : 1, .at = n, .m = t->part[i]};
        n++;
    }
    qsort(result, n, sizeof(*result), compare_results);
    for (size_t i = 0, next = 0; i < t->n_parts; i++)
        if (t->part[i]->role == CHAT_TOOL)
            t->part[i] = result[next++].m;
    return 0;
}

static int note_calls(const struct chat_message *m, struct map **calls)
{
    *calls = map_free(*calls);
    int r = map_new(calls);
    for (size_t i = 0; r == 0 && i < m->n_tool_calls; i++) {
        const char *id = m->tool_call[i].id;
        if (!id || !id[0])
            continue;
        (void)map_remove(*calls, id, strlen(id));
        r = map_put(*calls, id, strlen(id), (void *)(uintptr_t)(i + 1));
    }
    return r;
}

static int order_results(struct encoding *e)
{
    _cleanup_map_ struct map *calls = NULL;
    int r = 0;

    for (size_t i = 0; r == 0 && i < e->n_turns; i++) {
        struct turn *t = &e->turn[i];
        if (t->role == CHAT_ASSISTANT && t->m->n_tool_calls)
            r = note_calls(t->m, &calls);
        else if (t->role == CHAT_USER && t->n_parts > 1 && calls && map_size(calls))
            r = sort_results(t, calls);
    }
    return r;
}

/* ---------------------------------------------------------------- writing turns */

static int put_json_text(struct chat_prompt *p, const char *text, const char *what, size_t message, struct fail *f)
{
    _cleanup_json_ json_t *v = NULL;

    int r = pyjson_load(text, strlen(text), PYJSON_LOOSE, &v);
    if (r == -EINVAL)
        return refuse(message, f, what);
    return r < 0 ? r : plain_json(p, v);
}

static int put_quoted(struct chat_prompt *p, const char *s)
{
    _cleanup_buf_ struct buf text = BUF_INIT;
    int r = pyjson_quote(s, strlen(s), &text);
    return r < 0 ? r : put(p, text.data, text.size, false);
}

static int put_tool(struct chat_prompt *p, const struct chat_tool *t, size_t message, struct fail *f)
{
    if (t->schema_json)
        return put_json_text(p, t->schema_json, "has a tool whose schema is not JSON", message, f);
    if (!t->name)
        return refuse(message, f, "has a tool without a name");
    int r = plain(p, "{\"name\": ");
    r = r < 0 ? r : put_quoted(p, t->name);
    if (r == 0 && t->description) {
        r = plain(p, ", \"description\": ");
        r = r < 0 ? r : put_quoted(p, t->description);
    }
    if (r == 0 && t->parameters_json) {
        r = plain(p, ", \"parameters\": ");
        r = r < 0 ? r : put_json_text(p, t->parameters_json, "has a tool whose parameters are not JSON", message, f);
    }
    return r < 0 ? r : plain(p, "}");
}

/* What a system or developer message says after its content. */
static int put_instructions(struct chat_prompt *p, const struct turn *t, struct fail *f)
{
    const struct chat_message *m = t->m;
    int r = 0;

    if (m->n_tools) {
        r = mark(p, tools_before);
        for (size_t i = 0; r == 0 && i < m->n_tools; i++) {
            r = i ? mark(p, "\n") : 0;
            r = r < 0 ? r : put_tool(p, &m->tool[i], t->message, f);
        }
        r = r < 0 ? r : mark(p, tools_after);
    }
    if (r == 0 && m->response_format_json) {
        r = mark(p, format_before);
        r = r < 0 ? r : put_json_text(p, m->response_format_json, "has a response format that is not JSON", t->message, f);
    }
    return r;
}

static int put_user(struct chat_prompt *p, const struct turn *t)
{
    int r = mark(p, MARK_USER);

    for (size_t i = 0; r == 0 && i < t->n_parts; i++) {
        bool result = t->part[i]->role == CHAT_TOOL;
        r = i ? mark(p, "\n\n") : 0;
        r = r < 0 || !result ? r : mark(p, "<tool_result>");
        r = r < 0 ? r : plain(p, t->part[i]->content);
        r = r < 0 || !result ? r : mark(p, "</tool_result>");
    }
    return r;
}

static int put_parameter(struct chat_prompt *p, const char *key, const char *text, size_t n, const json_t *v, bool first)
{
    int r = first ? 0 : mark(p, "\n");

    r = r < 0 ? r : mark(p, DSML_PARAMETER " name=\"");
    r = r < 0 ? r : plain(p, key);
    r = r < 0 ? r : mark(p, text ? "\" string=\"true\">" : "\" string=\"false\">");
    r = r < 0 ? r : text ? put(p, text, n, false) : plain_json(p, v);
    return r < 0 ? r : mark(p, DSML_PARAMETER_END ">");
}

static int put_arguments(struct chat_prompt *p, const struct chat_tool_call *call, size_t message, struct fail *f)
{
    _cleanup_json_ json_t *arguments = NULL;
    const char *key;
    json_t *v;
    bool first = true;

    if (!call->arguments_json)
        return refuse(message, f, "has a tool call without arguments");
    size_t size = strlen(call->arguments_json);
    int r = pyjson_load(call->arguments_json, size, PYJSON_LOOSE, &arguments);
    if (r == -EINVAL)
        return put_parameter(p, "arguments", call->arguments_json, size, NULL, true);
    if (r < 0)
        return r;
    if (!json_is_object(arguments))
        return refuse(message, f, "has a tool call whose arguments are JSON but not an object");
    json_object_foreach(arguments, key, v) {
        size_t n = 0;
        const char *text = pyjson_string(v, &n);
        r = put_parameter(p, pyjson_key(key), text, n, v, first);
        if (r < 0)
            return r;
        first = false;
    }
    return 0;
}

/* Text of the model's own, kept by the engine: its DSML marks were tokens of their own and are so again. */
static int put_raw(struct chat_prompt *p, const char *raw)
{
    int r = 0;

    for (const char *next; r == 0 && (next = strstr(raw, MARK_DSML)); raw = next + strlen(MARK_DSML)) {
        r = put(p, raw, (size_t)(next - raw), false);
        r = r < 0 ? r : mark(p, MARK_DSML);
    }
    return r < 0 ? r : plain(p, raw);
}

static int put_call(struct chat_prompt *p, const struct chat_tool_call *call, size_t message, struct fail *f)
{
    if (call->raw && call->raw_trusted)
        return put_raw(p, call->raw);
    if (!call->name)
        return refuse(message, f, "has a tool call without a name");
    int r = mark(p, DSML_INVOKE " name=\"");
    r = r < 0 ? r : plain(p, call->name);
    r = r < 0 ? r : mark(p, "\">\n");
    r = r < 0 ? r : put_arguments(p, call, message, f);
    return r < 0 ? r : mark(p, "\n" DSML_INVOKE_END ">");
}

static int put_assistant(struct chat_prompt *p, const struct encoding *e, size_t at, struct fail *f)
{
    const struct turn *t = &e->turn[at];
    const struct chat_message *m = t->m;
    bool after_task = at > 0 && e->turn[at - 1].task;
    bool later = e->last_user == SIZE_MAX || at > e->last_user;
    int r = 0;

    if (e->thinking && !after_task && (!e->drop_reasoning || later)) {
        r = plain(p, m->reasoning);
        r = r < 0 ? r : mark(p, MARK_THINK_END);
    }
    r = r < 0 ? r : plain(p, m->content);
    for (size_t i = 0; r == 0 && i < m->n_tool_calls; i++) {
        r = mark(p, i ? "\n" : "\n\n" DSML_CALLS ">\n");
        r = r < 0 ? r : put_call(p, &m->tool_call[i], t->message, f);
    }
    r = r < 0 || !m->n_tool_calls ? r : mark(p, "\n" DSML_CALLS_END);
    return r < 0 || m->no_eos ? r : mark(p, MARK_EOS);
}

static int put_turn(struct chat_prompt *p, const struct encoding *e, size_t at, struct fail *f)
{
    const struct turn *t = &e->turn[at];
    int r;

    switch (t->role) {
    case CHAT_SYSTEM:
        r = plain(p, t->m->content);
        return r < 0 ? r : put_instructions(p, t, f);
    case CHAT_DEVELOPER:
        if (!t->m->content || !t->m->content[0])
            return refuse(t->message, f, "is a developer message without content");
        r = mark(p, MARK_USER);
        r = r < 0 ? r : plain(p, t->m->content);
        return r < 0 ? r : put_instructions(p, t, f);
    case CHAT_USER:
        return put_user(p, t);
    case CHAT_LATEST_REMINDER:
        if (!t->m->content)
            return refuse(t->message, f, "is a reminder without content");
        r = mark(p, MARK_REMINDER);
        return r < 0 ? r : plain(p, t->m->content);
    case CHAT_ASSISTANT:
        return put_assistant(p, e, at, f);
    case CHAT_TOOL: /* make_turns made it USER */
        break;
    }
    return refuse(t->message, f, "has a role that is not known");
}

/* What makes the model speak, after a turn that the assistant follows or that is the last. */
static int put_opening(struct chat_prompt *p, const struct encoding *e, size_t at)
{
    const struct turn *t = &e->turn[at];

    if (at + 1 < e->n_turns) {
        enum chat_role next = e->turn[at + 1].role;
        if (next != CHAT_ASSISTANT && next != CHAT_LATEST_REMINDER)
            return 0;
    }
    bool action = t->task && strcmp(t->task, "action") == 0;
    bool asks = !t->task && (t->role == CHAT_USER || t->role == CHAT_DEVELOPER);
    int r = 0;
    if (action || asks) {
        bool think = e->thinking && (action || !e->drop_reasoning || at >= e->last_user);
        r = mark(p, MARK_ASSISTANT);
        r = r < 0 ? r : mark(p, think ? MARK_THINK : MARK_THINK_END);
    }
    return r < 0 || !t->task ? r : mark(p, task_mark(t->task));
}

static int put_all(struct chat_prompt *p, const struct encoding *e, struct fail *f)
{
    int r = mark(p, MARK_BOS);

    for (size_t i = 0; r == 0 && i < e->n_turns; i++) {
        r = i == 0 && e->c->effort == CHAT_EFFORT_MAX ? mark(p, effort_max) : 0;
        r = r < 0 ? r : put_turn(p, e, i, f);
        r = r < 0 ? r : put_opening(p, e, i);
    }
    return r;
}

int chat_encode(const struct chat *c, struct chat_prompt *p, struct fail *f)
{
    _cleanup_(encoding_deinit) struct encoding e = {.c = c};
    _cleanup_chat_prompt_ struct chat_prompt made = {0};

    for (size_t i = 0; i < c->n_messages; i++)
        if (c->message[i].task && !task_mark(c->message[i].task))
            return refuse(i, f, "asks for a task that is not known");
    e.turn = calloc(c->n_messages + 1, sizeof(*e.turn));
    e.part = calloc(c->n_messages + 1, sizeof(*e.part));
    if (!e.turn || !e.part)
        return fail_oom(f);
    make_turns(&e);
    int r = order_results(&e);
    if (r == 0) {
        drop_turns(&e);
        r = put_all(&made, &e, f);
    }
    if (r == -ENOMEM)
        return fail_oom(f);
    if (r < 0)
        return r;
    set_span_texts(&made);
    chat_prompt_deinit(p);
    *p = made;
    made = (struct chat_prompt){0};
    return 0;
}
