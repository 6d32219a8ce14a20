/* SPDX-License-Identifier: MIT */
/*
 * A completion as it streams, to events (chat.h). A machine over marks: in each state some marks mean something, text
 * before them is passed on at once, and only what may be the beginning of a mark waits. Never refuses a text. Time is
 * linear in the text; memory is bounded by the caps below.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "base/utf8.h"
#include "engine/chat.h"
#include "engine/chat-format.h"
#include "engine/pyjson.h"

#define HEADER_BYTES_MAX ((size_t)64 << 10) /* a call's or parameter's name with what is around it */
#define MARK_BYTES_MAX ((size_t)64)         /* no mark is longer */
#define KEYS_BYTES_MAX ((size_t)1 << 20)    /* of one call, to notice what is given twice */
#define VALUE_BYTES_MAX ((size_t)4 << 20)   /* a JSON value waiting for its end; a longer one becomes a string */

enum state {
    STATE_REASONING,
    STATE_CONTENT,
    STATE_BLOCK,       /* between calls */
    STATE_CALL_HEAD,   /* after <invoke, up to the newline */
    STATE_CALL,        /* between parameters */
    STATE_PARAM_HEAD,  /* after <parameter, up to the value */
    STATE_VALUE,
};

/* What may stand between two tags: '>' and a newline, as far as it has come. */
enum gap {
    GAP_GREATER,
    GAP_NEWLINE,
    GAP_OPTIONAL, /* one more newline may come */
    GAP_DONE,
};

enum value {
    VALUE_STRING, /* escaped and given as it comes */
    VALUE_JSON,   /* kept until its end */
    VALUE_DROPPED,
};

struct completion {
    struct completion_events e;
    void *userdata;
    bool tools, repaired;
    enum state state;
    enum gap gap;
    bool stray;           /* text where none belongs has begun */
    struct buf in;        /* not yet understood */
    size_t searched;      /* bytes of in where no mark of this state begins */
    struct buf out;       /* scratch: escaped text */
    uint32_t calls;

    /* the current call */
    bool call_repaired, has_parameter;
    enum value value_kind;
    struct buf key, value, raw;
    bool raw_lost;        /* too long to keep */
    struct map *keys;
    size_t keys_bytes;
};

#define MARKS(...) \
    (const char *const[]) { __VA_ARGS__, NULL }

struct completion *completion_free(struct completion *c)
{
    if (!c)
        return NULL;
    buf_deinit(&c->in);
    buf_deinit(&c->out);
    buf_deinit(&c->key);
    buf_deinit(&c->value);
    buf_deinit(&c->raw);
    map_free(c->keys);
    free(c);
    return NULL;
}

int completion_new(bool thinking, bool tools, const struct completion_events *e, void *userdata, struct completion **ret)
{
    struct completion *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    c->e = *e;
    c->userdata = userdata;
    c->tools = tools;
    c->state = thinking ? STATE_REASONING : STATE_CONTENT;
    *ret = c;
    return 0;
}

bool completion_in_reasoning(const struct completion *c)
{
    return c->state == STATE_REASONING;
}

uint32_t completion_calls(const struct completion *c)
{
    return c->calls;
}

/* ---------------------------------------------------------------- events */

static int give_content(struct completion *c, const char *s, size_t n)
{
    if (c->calls || c->stray)
        c->repaired = c->repaired || n > 0;
    return n && c->e.content ? c->e.content(s, n, c->userdata) : 0;
}

static int give_reasoning(struct completion *c, const char *s, size_t n)
{
    return n && c->e.reasoning ? c->e.reasoning(s, n, c->userdata) : 0;
}

static int give_arguments(struct completion *c, const char *s, size_t n)
{
    return n && c->e.call_arguments ? c->e.call_arguments(c->calls - 1, s, n, c->userdata) : 0;
}

static int give_escaped(struct completion *c, const char *s, size_t n)
{
    buf_clear(&c->out);
    int r = pyjson_escape(s, n, &c->out);
    return r < 0 ? r : give_arguments(c, c->out.data, c->out.size);
}

static void repair_call(struct completion *c)
{
    c->repaired = c->call_repaired = true;
}

/* ---------------------------------------------------------------- searching */

/* The first place in s[from, n) where a mark stands (*ret_mark says which) or may stand when more comes (*ret_mark is -1),
 * or n. */
static size_t find_mark(const char *s, size_t n, size_t from, const char *const *mark, int *ret_mark)
{
    *ret_mark = -1;
    for (size_t i = from; i < n; i++) {
        if (s[i] != '<' && s[i] != '\n' && s[i] != '"')
            continue;
        for (int k = 0; mark[k]; k++) {
            size_t size = strlen(mark[k]);
            if (memcmp(s + i, mark[k], MIN(size, n - i)) != 0)
                continue;
            if (size <= n - i)
                *ret_mark = k;
            return i;
        }
    }
    return n;
}

/* Of the n bytes at s, how many of the first `at` may be passed on: what precedes a mark ends a character anyway. */
static size_t whole(const char *s, size_t n, size_t at)
{
    return at < n ? at : utf8_whole(s, n);
}

/* Text of a call, as it is understood. */
static int keep_raw(struct completion *c, const char *s, size_t n)
{
    if (c->raw_lost || n > COMPLETION_RAW_MAX - c->raw.size) {
        c->raw_lost = true;
        buf_deinit(&c->raw);
        return 0;
    }
    return buf_append(&c->raw, s, n);
}

/* ---------------------------------------------------------------- parameters */

static int open_parameter(struct completion *c)
{
    buf_clear(&c->out);
    int r = c->has_parameter ? buf_append(&c->out, ", ", 2) : 0;
    r = r < 0 ? r : pyjson_quote(c->key.data, c->key.size, &c->out);
    r = r < 0 ? r : buf_append_str(&c->out, c->value_kind == VALUE_STRING ? ": \"" : ": ");
    c->has_parameter = true;
    return r < 0 ? r : give_arguments(c, c->out.data, c->out.size);
}

/* The value said to be JSON turns out not to be, or too long: it goes on as a string. */
static int value_to_string(struct completion *c)
{
    repair_call(c);
    c->value_kind = VALUE_STRING;
    int r = open_parameter(c);
    r = r < 0 ? r : give_escaped(c, c->value.data, c->value.size);
    buf_clear(&c->value);
    return r;
}

static int begin_parameter(struct completion *c, const char *key, size_t n, enum value kind)
{
    c->value_kind = VALUE_DROPPED;
    buf_clear(&c->value);
    buf_clear(&c->key);
    int r = buf_append(&c->key, key, n);
    if (r < 0)
        return r;
    if (n > KEYS_BYTES_MAX - c->keys_bytes) {
        repair_call(c);
        return 0;
    }
    r = map_put(c->keys, key, n, c);
    if (r == -EEXIST) {
        repair_call(c);
        return 0;
    }
    if (r < 0)
        return r;
    c->keys_bytes += n + 64; /* an entry is not free */
    c->keys_bytes = MIN(c->keys_bytes, KEYS_BYTES_MAX);
    c->value_kind = kind;
    return kind == VALUE_STRING ? open_parameter(c) : 0;
}

static int value_text(struct completion *c, const char *s, size_t n)
{
    if (c->value_kind == VALUE_JSON && n > VALUE_BYTES_MAX - c->value.size) {
        int r = value_to_string(c);
        if (r < 0)
            return r;
    }
    if (c->value_kind == VALUE_JSON)
        return buf_append(&c->value, s, n);
    return c->value_kind == VALUE_STRING ? give_escaped(c, s, n) : 0;
}

static int end_parameter(struct completion *c)
{
    if (c->value_kind == VALUE_JSON) {
        _cleanup_json_ json_t *v = NULL;
        int r = pyjson_load(c->value.data ? c->value.data : "", c->value.size, PYJSON_STRICT, &v);
        if (r == -ENOMEM)
            return r;
        if (r == 0) {
            r = open_parameter(c);
            return r < 0 ? r : give_arguments(c, c->value.data, c->value.size);
        }
        r = value_to_string(c);
        if (r < 0)
            return r;
    }
    return c->value_kind == VALUE_STRING ? give_arguments(c, "\"", 1) : 0;
}

/* ---------------------------------------------------------------- calls */

static int begin_call(struct completion *c, const char *name, size_t n)
{
    _cleanup_free_ char *copy = strndup(name, n);

    if (!copy)
        return -ENOMEM;
    c->calls++;
    c->has_parameter = false;
    c->keys_bytes = 0;
    c->keys = map_free(c->keys);
    int r = map_new(&c->keys);
    if (r == 0 && c->e.call_begin)
        r = c->e.call_begin(c->calls - 1, copy, c->userdata);
    return r < 0 ? r : give_arguments(c, "{", 1);
}

static int end_call(struct completion *c, bool repaired)
{
    if (repaired)
        repair_call(c);
    int r = give_arguments(c, "}", 1);
    bool whole_call = !c->call_repaired && !c->raw_lost;
    if (r == 0 && c->e.call_end)
        r = c->e.call_end(c->calls - 1, whole_call ? c->raw.data : NULL, whole_call ? c->raw.size : 0, c->userdata);
    return r;
}

/* The name in ' name="NAME"...', leniently. */
static void read_call_name(struct completion *c, const char **name, size_t *n)
{
    const char *s = *name, *end = *name + *n, *found = memmem(s, *n, "name=\"", 6);
    const char *p = s;

    while (p < end && (*p == ' ' || (*p >= '\t' && *p <= '\r')))
        p++;
    if (found != p || found == NULL)
        repair_call(c);
    *name = found ? found + 6 : end;
    const char *quote = found ? memrchr(*name, '"', (size_t)(end - *name)) : NULL;
    if (!quote)
        repair_call(c);
    *n = (size_t)((quote ? quote : end) - *name);
}

/* A parameter's header that did not end as it should: take what can be taken, as a string. */
static int salvage_parameter(struct completion *c, const char *s, size_t n)
{
    const char *key = memmem(s, n, "name=\"", 6), *end = s + n;
    const char *quote = key ? memchr(key + 6, '"', (size_t)(end - key - 6)) : NULL;

    repair_call(c);
    c->value_kind = VALUE_DROPPED;
    if (!quote)
        return 0;
    const char *greater = memchr(quote, '>', (size_t)(end - quote));
    int r = begin_parameter(c, key + 6, (size_t)(quote - key - 6), VALUE_STRING);
    return r < 0 || !greater ? r : value_text(c, greater + 1, (size_t)(end - greater - 1));
}

/* ---------------------------------------------------------------- one step in each state */

/* Each step understands the beginning of the text s of n bytes and sets *used; 0 used: more is needed. `last`: no more
 * will come, so everything has to be understood. */
typedef int (*step_fn)(struct completion *c, const char *s, size_t n, bool last, size_t *used);

static int go(struct completion *c, enum state state, enum gap gap)
{
    c->state = state;
    c->gap = gap;
    c->stray = false;
    c->searched = 0;
    return 0;
}

static int begin_block(struct completion *c)
{
    return go(c, STATE_BLOCK, GAP_GREATER);
}

static int step_reasoning(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    const char *const *marks = c->tools ? MARKS(MARK_THINK_END, "\n\n" DSML_CALLS ">") : MARKS(MARK_THINK_END);
    int which;
    size_t at = find_mark(s, n, 0, marks, &which);

    if (which < 0)
        at = last ? n : whole(s, n, at);
    int r = give_reasoning(c, s, at);
    *used = at;
    if (which < 0 || r < 0)
        return r;
    if (which == 0) {
        *used += strlen(MARK_THINK_END);
        return go(c, STATE_CONTENT, GAP_DONE);
    }
    *used += strlen("\n\n" DSML_CALLS);
    c->repaired = true;
    return begin_block(c);
}

static int step_content(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    static const char *const none[] = {NULL};
    const char *const *marks = c->tools ? MARKS("\n\n" DSML_CALLS, "\n" DSML_CALLS, DSML_CALLS) : none;
    int which;
    size_t at = find_mark(s, n, 0, marks, &which);

    if (which < 0)
        at = last ? n : whole(s, n, at);
    int r = give_content(c, s, at);
    *used = at;
    if (which < 0 || r < 0)
        return r;
    *used += strlen(marks[which]);
    if (which > 0 || c->calls)
        c->repaired = true;
    return begin_block(c);
}

/* Text between tags: what belongs there is swallowed, white space too, the rest is content. */
static int gap_text(struct completion *c, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!c->stray && s[i] == '>' && c->gap == GAP_GREATER) {
            c->gap = GAP_NEWLINE;
        } else if (!c->stray && s[i] == '\n' && (c->gap == GAP_NEWLINE || c->gap == GAP_OPTIONAL)) {
            c->gap = GAP_DONE;
        } else {
            repair_call(c);
            if (!c->stray && (s[i] == ' ' || (s[i] >= '\t' && s[i] <= '\r')))
                continue;
            c->stray = true;
            return give_content(c, s + i, n - i);
        }
    }
    return 0;
}

static void end_gap(struct completion *c)
{
    if (c->gap != GAP_DONE && c->gap != GAP_OPTIONAL)
        repair_call(c);
}

/* The gap up to a mark, for the two states between tags. *ret_mark: -1 when none came yet. */
static int step_gap(struct completion *c, const char *s, size_t n, bool last, const char *const *marks, size_t *used, int *ret_mark)
{
    size_t at = find_mark(s, n, 0, marks, ret_mark);

    if (*ret_mark < 0)
        at = last ? n : whole(s, n, at);
    *used = at;
    int r = gap_text(c, s, at);
    if (r == 0 && *ret_mark >= 0) {
        end_gap(c);
        *used += strlen(marks[*ret_mark]);
    }
    return r;
}

static int begin_call_head(struct completion *c)
{
    c->call_repaired = c->raw_lost = false;
    buf_clear(&c->raw);
    go(c, STATE_CALL_HEAD, GAP_DONE);
    return keep_raw(c, DSML_INVOKE, strlen(DSML_INVOKE));
}

static int step_block(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    int which;
    int r = step_gap(c, s, n, last, MARKS(DSML_INVOKE, DSML_CALLS_END, DSML_CALLS), used, &which);

    if (r < 0 || which < 0)
        return r;
    if (which == 0)
        return begin_call_head(c);
    if (which == 1)
        return go(c, STATE_CONTENT, GAP_DONE);
    c->repaired = true;
    return begin_block(c);
}

static int step_call(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    int which;
    int r = step_gap(c, s, n, last, MARKS(DSML_PARAMETER, DSML_INVOKE_END, DSML_INVOKE, DSML_CALLS_END), used, &which);

    if (r == 0)
        r = keep_raw(c, s, *used);
    if (r < 0 || which < 0)
        return r;
    if (which == 0)
        return go(c, STATE_PARAM_HEAD, GAP_DONE);
    if (which == 1)
        r = keep_raw(c, ">", 1);
    r = r < 0 ? r : end_call(c, which > 1);
    if (r < 0)
        return r;
    if (which == 1)
        return begin_block(c);
    return which == 2 ? begin_call_head(c) : go(c, STATE_CONTENT, GAP_DONE);
}

/* Where a header ends: at one of the marks, by length, or with the text. False: not yet. Looks no farther than the
 * decision needs, so that it does not depend on how the text is cut. */
static bool header_end(struct completion *c, const char *s, size_t n, bool last, const char *const *marks, size_t *ret_at,
                       int *ret_mark)
{
    size_t window = MIN(n, HEADER_BYTES_MAX + MARK_BYTES_MAX);

    *ret_at = find_mark(s, window, MIN(c->searched, window), marks, ret_mark);
    if (*ret_mark >= 0 && *ret_at <= HEADER_BYTES_MAX)
        return true;
    if (*ret_mark >= 0 || window < n || window == HEADER_BYTES_MAX + MARK_BYTES_MAX) {
        *ret_mark = -1;
        *ret_at = utf8_whole(s, HEADER_BYTES_MAX);
        return true;
    }
    if (last) {
        *ret_at = n;
        return true;
    }
    c->searched = *ret_at;
    return false;
}

static int step_call_head(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    static const char *const marks[] = {"\">\n", "\"><", DSML_PARAMETER, DSML_INVOKE_END, DSML_INVOKE, DSML_CALLS_END, NULL};
    size_t at, size;
    int which;

    *used = 0;
    if (!header_end(c, s, n, last, marks, &at, &which))
        return 0;
    if (which != 0)
        repair_call(c);
    if (which == 0 || which == 1)
        at++; /* the quote belongs to the name */
    const char *name = s;
    size = at;
    read_call_name(c, &name, &size);
    *used = which == 0 ? at + 2 : which == 1 ? at + 1 : at;
    int r = keep_raw(c, s, *used);
    r = r < 0 ? r : begin_call(c, name, size);
    return r < 0 ? r : go(c, STATE_CALL, which == 0 ? GAP_OPTIONAL : GAP_DONE);
}

static int step_param_head(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    static const char *const marks[] = {"\" string=\"true\">", "\" string=\"false\">", DSML_PARAMETER_END, DSML_PARAMETER,
                                        DSML_INVOKE_END, DSML_INVOKE, DSML_CALLS_END, NULL};
    size_t at;
    int which, r;

    *used = 0;
    if (!header_end(c, s, n, last, marks, &at, &which))
        return 0;
    *used = at;
    if (which == 0 || which == 1) {
        *used += strlen(marks[which]);
        r = at < 7 || memcmp(s, " name=\"", 7) != 0
                ? (c->value_kind = VALUE_DROPPED, repair_call(c), 0)
                : begin_parameter(c, s + 7, at - 7, which == 0 ? VALUE_STRING : VALUE_JSON);
        r = r < 0 ? r : keep_raw(c, s, *used);
        return r < 0 ? r : go(c, STATE_VALUE, GAP_DONE);
    }
    r = salvage_parameter(c, s, at);
    if (r < 0 || which < 0 || which == 2)
        return r < 0 ? r : go(c, STATE_VALUE, GAP_DONE);
    r = end_parameter(c); /* another tag: the parameter is over */
    return r < 0 ? r : go(c, STATE_CALL, GAP_DONE);
}

static int step_value(struct completion *c, const char *s, size_t n, bool last, size_t *used)
{
    int which;
    size_t at = find_mark(s, n, 0, MARKS(DSML_PARAMETER_END), &which);

    if (which < 0)
        at = last ? n : whole(s, n, at);
    int r = value_text(c, s, at);
    *used = which < 0 ? at : at + strlen(DSML_PARAMETER_END);
    r = r < 0 ? r : keep_raw(c, s, *used);
    if (r < 0 || which < 0)
        return r;
    r = end_parameter(c);
    return r < 0 ? r : go(c, STATE_CALL, GAP_GREATER);
}

/* ---------------------------------------------------------------- driving */

static const step_fn steps[] = {
    [STATE_REASONING] = step_reasoning, [STATE_CONTENT] = step_content,       [STATE_BLOCK] = step_block,
    [STATE_CALL_HEAD] = step_call_head, [STATE_CALL] = step_call,             [STATE_PARAM_HEAD] = step_param_head,
    [STATE_VALUE] = step_value,
};

/* Understand what can be understood. A step that uses nothing and stays in its state waits for more. */
static int run(struct completion *c, bool last)
{
    size_t at = 0;
    int r = 0;

    while (at < c->in.size) {
        struct buf rest = c->in;
        enum state before = c->state;
        size_t used = 0;
        r = steps[before](c, rest.data + at, rest.size - at, last, &used);
        at += used;
        if (r < 0 || (used == 0 && c->state == before))
            break;
    }
    buf_consume(&c->in, at);
    return r;
}

int completion_feed(struct completion *c, const char *text, size_t n, struct fail *f)
{
    int r = buf_append(&c->in, text, n);

    if (r == 0 && n)
        r = run(c, false);
    return r == -ENOMEM ? fail_oom(f) : r;
}

/* The text ended within a call. */
static int close_call(struct completion *c)
{
    int r = 0;

    if (c->state == STATE_CALL_HEAD || c->state == STATE_PARAM_HEAD)
        repair_call(c);
    if (c->state == STATE_CALL_HEAD)
        r = begin_call(c, "", 0);
    if (c->state == STATE_VALUE)
        r = end_parameter(c);
    return r < 0 ? r : end_call(c, true);
}

int completion_finish(struct completion *c, struct fail *f)
{
    int r = run(c, true);

    if (r == 0 && c->state >= STATE_CALL_HEAD)
        r = close_call(c);
    if (c->state != STATE_CONTENT)
        c->repaired = true;
    if (r < 0)
        return r == -ENOMEM ? fail_oom(f) : r;
    return c->repaired;
}
