/* SPDX-License-Identifier: MIT */
/* A whole completion to a message, accepting and refusing exactly what the released code does: for dsv4-eval encode and
 * as the measure of the streaming parser (completion.c), which is the one that serves. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"
#include "engine/chat-format.h"
#include "engine/pyjson.h"

struct slice {
    const char *s;
    size_t n;
};
#define SLICE(text) ((struct slice){text, sizeof(text) - 1})

struct parser {
    const char *text; /* [n] */
    size_t n, at;
    struct chat_message *m;
    struct fail *f;
};

static int refuse(const struct parser *p, const char *why)
{
    int r = fail_set(p->f, EINVAL, "BAD_COMPLETION", "at byte %zu: %s", p->at, why);
    return r;
}

static bool starts(struct slice text, struct slice with)
{
    return text.n >= with.n && memcmp(text.s, with.s, with.n) == 0;
}

static bool equals(struct slice a, const char *b)
{
    return a.n == strlen(b) && memcmp(a.s, b, a.n) == 0;
}

/* Text up to the earliest of two marks (b may be empty), which is skipped. Returns which: 0, 1, or -1 at the end. */
static int read_until(struct parser *p, struct slice a, struct slice b, struct slice *ret)
{
    struct slice mark[2] = {a, b};
    size_t from = p->at;

    for (size_t i = from; i < p->n; i++)
        for (int k = 0; k < 2; k++)
            if (mark[k].n && starts((struct slice){p->text + i, p->n - i}, mark[k])) {
                *ret = (struct slice){p->text + from, i - from};
                p->at = i + mark[k].n;
                return k;
            }
    *ret = (struct slice){p->text + from, p->n - from};
    p->at = p->n;
    return -1;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

/* White space, name="NAME">, a newline and perhaps one more. */
static bool parse_name(struct slice head, struct slice *ret)
{
    while (head.n && is_space(head.s[0]))
        head.s++, head.n--;
    if (!starts(head, SLICE("name=\"")))
        return false;
    head.s += 6;
    head.n -= 6;
    if (head.n >= 4 && memcmp(head.s + head.n - 4, "\">\n\n", 4) == 0)
        head.n--;
    if (head.n < 3 || memcmp(head.s + head.n - 3, "\">\n", 3) != 0)
        return false;
    *ret = (struct slice){head.s, head.n - 3};
    return true;
}

struct parameter {
    struct slice key, value;
    bool string;
};

/* ' name="KEY" string="true|false">VALUE<', perhaps with a newline after. */
static bool parse_parameter(struct slice text, struct parameter *ret)
{
    if (!starts(text, SLICE(" name=\"")))
        return false;
    if (text.n && text.s[text.n - 1] == '\n')
        text.n--;
    if (text.s[text.n - 1] != '<')
        return false;
    for (size_t i = 7; i < text.n; i++) {
        struct slice rest = {text.s + i, text.n - i};
        bool yes = starts(rest, SLICE("\" string=\"true\">"));
        if (!yes && !starts(rest, SLICE("\" string=\"false\">")))
            continue;
        size_t value = i + (yes ? 16 : 17);
        *ret = (struct parameter){.key = {text.s + 7, i - 7}, .value = {text.s + value, text.n - 1 - value}, .string = yes};
        return true;
    }
    return false;
}

static int add_argument(struct buf *out, const struct parameter *a)
{
    int r = out->size > 1 ? buf_append(out, ", ", 2) : 0;

    r = r < 0 ? r : pyjson_quote(a->key.s, a->key.n, out);
    r = r < 0 ? r : buf_append(out, ": ", 2);
    if (r < 0)
        return r;
    return a->string ? pyjson_quote(a->value.s, a->value.n, out) : buf_append(out, a->value.s, a->value.n);
}

static int compare_keys(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    int c = memcmp(x->s, y->s, MIN(x->n, y->n));
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

static bool has_twice(struct slice *key, size_t n)
{
    if (n > 1)
        qsort(key, n, sizeof(*key), compare_keys);
    for (size_t i = 1; i < n; i++)
        if (compare_keys(&key[i - 1], &key[i]) == 0)
            return true;
    return false;
}

/* The parameters of a call into `out`, without the closing brace; p->at is after the tag that ended them. */
static int parse_arguments(struct parser *p, struct buf *out, struct buf *keys, int *stop)
{
    while (*stop == 0) {
        struct parameter a;
        struct slice text;
        (void)read_until(p, SLICE("/" MARK_DSML "parameter"), (struct slice){0}, &text);
        if (!parse_parameter(text, &a))
            return refuse(p, "a parameter is not of the form name=\"...\" string=\"true|false\">...");
        int r = add_argument(out, &a);
        r = r < 0 ? r : buf_append(keys, &a.key, sizeof(a.key));
        if (r < 0)
            return r;
        *stop = read_until(p, SLICE(DSML_PARAMETER), SLICE(DSML_INVOKE_END), &text);
        if (!equals(text, ">\n"))
            return refuse(p, "a parameter does not end in '>' and a newline");
    }
    if (has_twice((struct slice *)(void *)keys->data, keys->size / sizeof(struct slice)))
        return refuse(p, "a parameter is given twice");
    return 0;
}

static int add_call(struct chat_message *m, struct slice name, struct buf *arguments)
{
    if ((m->n_tool_calls & (m->n_tool_calls - 1)) == 0) { /* grow at powers of two */
        size_t capacity = m->n_tool_calls ? m->n_tool_calls * 2 : 1;
        struct chat_tool_call *call = reallocarray(m->tool_call, capacity, sizeof(*call));
        if (!call)
            return -ENOMEM;
        m->tool_call = call;
    }
    struct chat_tool_call *c = &m->tool_call[m->n_tool_calls];
    *c = (struct chat_tool_call){.name = strndup(name.s, name.n)};
    if (!c->name)
        return -ENOMEM;
    c->arguments_json = buf_take(arguments);
    m->n_tool_calls++;
    return 0;
}

static int parse_call(struct parser *p)
{
    _cleanup_buf_ struct buf arguments = BUF_INIT, keys = BUF_INIT;
    struct slice head, name;

    int stop = read_until(p, SLICE(DSML_PARAMETER), SLICE(DSML_INVOKE_END), &head);
    if (!parse_name(head, &name))
        return refuse(p, "a call is not of the form name=\"...\"> and a newline");
    int r = buf_append(&arguments, "{", 1);
    r = r < 0 ? r : parse_arguments(p, &arguments, &keys, &stop);
    r = r < 0 ? r : buf_append(&arguments, "}", 1);
    return r < 0 ? r : add_call(p->m, name, &arguments);
}

static int parse_calls(struct parser *p)
{
    while (p->at < p->n) {
        struct slice gap;
        int stop = read_until(p, SLICE(DSML_INVOKE), SLICE(DSML_CALLS_END), &gap);
        if (!equals(gap, ">\n"))
            return refuse(p, "something else than '>' and a newline stands between tags");
        if (stop == 1)
            return 0;
        if (stop < 0)
            return refuse(p, "the block of calls does not end");
        int r = parse_call(p);
        if (r < 0)
            return r;
    }
    return 0;
}

static bool has_mark(struct slice text)
{
    static const char *const marks[] = {MARK_BOS, MARK_EOS, MARK_THINK, MARK_THINK_END, MARK_DSML};

    for (size_t i = 0; text.n && i < ELEMENTS(marks); i++)
        if (memmem(text.s, text.n, marks[i], strlen(marks[i])))
            return true;
    return false;
}

static int parse_all(struct parser *p, bool thinking)
{
    struct slice content, tail, reasoning = SLICE("");

    if (thinking && read_until(p, SLICE(MARK_THINK_END), SLICE("\n\n" DSML_CALLS), &reasoning) != 0)
        return refuse(p, "the reasoning does not end in " MARK_THINK_END);
    int stop = read_until(p, SLICE(MARK_EOS), SLICE("\n\n" DSML_CALLS), &content);
    if (stop < 0)
        return refuse(p, "there is no end-of-sentence mark");
    if (stop == 1) {
        int r = parse_calls(p);
        if (r < 0)
            return r;
        (void)read_until(p, SLICE(MARK_EOS), (struct slice){0}, &tail);
        if (tail.n)
            return refuse(p, "text follows the calls");
    }
    if (p->at != p->n)
        return refuse(p, "text follows the end-of-sentence mark");
    if (has_mark(content) || has_mark(reasoning))
        return refuse(p, "the content or reasoning holds a control mark");
    p->m->content = strndup(content.s, content.n);
    p->m->reasoning = strndup(reasoning.s, reasoning.n);
    return p->m->content && p->m->reasoning ? 0 : -ENOMEM;
}

int completion_parse(const char *text, size_t n, bool thinking, struct chat_message *ret, struct fail *f)
{
    struct chat_message m = {.role = CHAT_ASSISTANT};
    struct parser p = {.text = text, .n = n, .m = &m, .f = f};

    int r = parse_all(&p, thinking);
    if (r < 0) {
        chat_message_deinit(&m);
        return r == -ENOMEM ? fail_oom(f) : r;
    }
    *ret = m;
    return 0;
}
