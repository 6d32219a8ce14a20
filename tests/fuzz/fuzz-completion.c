/* SPDX-License-Identifier: MIT */
/* The completion parsers on any bytes: the streaming one never refuses and does not depend on how the text is cut; where
 * it repaired nothing and the strict one accepts, both give the same. First byte: bit 0 thinking, the rest the cutting. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
    struct buf text[3]; /* content, reasoning, calls */
};

static int on_content(const char *s, size_t n, void *userdata)
{
    return buf_append(&((struct sum *)userdata)->text[0], s, n);
}

static int on_reasoning(const char *s, size_t n, void *userdata)
{
    return buf_append(&((struct sum *)userdata)->text[1], s, n);
}

static int on_begin(uint32_t call, const char *name, void *userdata)
{
    (void)call;
    return buf_printf(&((struct sum *)userdata)->text[2], "%s ", name);
}

static int on_arguments(uint32_t call, const char *s, size_t n, void *userdata)
{
    (void)call;
    return buf_append(&((struct sum *)userdata)->text[2], s, n);
}

static int on_end(uint32_t call, const char *raw, size_t n, void *userdata)
{
    (void)call, (void)raw, (void)n;
    return buf_append(&((struct sum *)userdata)->text[2], "\n", 1);
}

static int stream(const char *text, size_t n, bool thinking, size_t piece, struct sum *s)
{
    static const struct completion_events e = {on_content, on_reasoning, on_begin, on_arguments, on_end};
    struct completion *c = NULL;

    if (completion_new(thinking, true, &e, s, &c) < 0)
        abort();
    for (size_t i = 0; i < n; i += piece)
        if (completion_feed(c, text + i, MIN(piece, n - i), NULL) < 0)
            abort();
    int r = completion_finish(c, NULL);
    completion_free(c);
    return r;
}

static void expect(const struct buf *b, const char *s, size_t n)
{
    if (b->size != n || (n && memcmp(b->data, s, n) != 0))
        abort();
}

static void compare_with_strict(const char *text, size_t n, bool thinking, const struct sum *s)
{
    static const char eos[] = "<｜end▁of▁sentence｜>";
    _cleanup_buf_ struct buf ended = BUF_INIT, calls = BUF_INIT;
    struct chat_message m = {0};

    buf_append(&ended, text, n);
    buf_append_str(&ended, eos);
    if (memchr(text, 0, n) || completion_parse(ended.data, ended.size, thinking, &m, NULL) < 0)
        return;
    expect(&s->text[0], m.content, strlen(m.content));
    expect(&s->text[1], m.reasoning, strlen(m.reasoning));
    for (size_t i = 0; i < m.n_tool_calls; i++)
        buf_printf(&calls, "%s %s\n", m.tool_call[i].name, m.tool_call[i].arguments_json);
    /* a name that contains tags may be read differently */
    if (!calls.data || !memmem(calls.data, calls.size, "｜DSML｜", 10))
        expect(&s->text[2], calls.data, calls.size);
    chat_message_deinit(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sum whole = {0}, pieces = {0};

    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    bool thinking = data[0] & 1;
    int r = stream(text, size - 1, thinking, size, &whole);
    if (stream(text, size - 1, thinking, 1 + (data[0] >> 1) % 16, &pieces) != r || r < 0)
        abort();
    for (int i = 0; i < 3; i++)
        expect(&whole.text[i], pieces.text[i].data, pieces.text[i].size);
    if (r == 0 && size > 1)
        compare_with_strict(text, size - 1, thinking, &whole);
    for (int i = 0; i < 3; i++) {
        buf_deinit(&whole.text[i]);
        buf_deinit(&pieces.text[i]);
    }
    return 0;
}
