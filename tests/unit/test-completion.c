/* SPDX-License-Identifier: MIT */
/* Completions: the strict parser equals the released one; the streaming one equals the strict one however the text is
 * cut, and makes valid calls of anything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/utf8.h"
#include "engine/chat-json.h"
#include "engine/chat.h"
#include "engine/pyjson.h"

#define D "｜DSML｜"
#define EOS "<｜end▁of▁sentence｜>"
#define OPEN "\n\n<" D "tool_calls>\n"
#define CLOSE "</" D "tool_calls>"
#define INVOKE(name, inside) "<" D "invoke name=\"" name "\">\n" inside "</" D "invoke>\n"
#define TEXT(key, value) "<" D "parameter name=\"" key "\" string=\"true\">" value "</" D "parameter>\n"
#define JSON(key, value) "<" D "parameter name=\"" key "\" string=\"false\">" value "</" D "parameter>\n"

static uint64_t state = 7;

static uint32_t any(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

/* ---------------------------------------------------------------- gathering events */

struct gathered {
    struct buf reasoning, content, calls, arguments; /* calls: NAME ARGUMENTS newline, each */
    struct buf raw;                                  /* of the last call */
    uint32_t n_calls;
    bool open, whole_text;
    int stop; /* returned by on_content */
};

static void gathered_deinit(struct gathered *g)
{
    buf_deinit(&g->reasoning);
    buf_deinit(&g->content);
    buf_deinit(&g->calls);
    buf_deinit(&g->arguments);
    buf_deinit(&g->raw);
}

static int on_content(const char *s, size_t n, void *userdata)
{
    struct gathered *g = userdata;
    assert_true(n > 0);
    assert_true(!g->whole_text || utf8_invalid_at(s, n) < 0);
    assert_int_equal(buf_append(&g->content, s, n), 0);
    return g->stop;
}

static int on_reasoning(const char *s, size_t n, void *userdata)
{
    struct gathered *g = userdata;
    assert_true(n > 0 && g->n_calls == 0);
    assert_true(!g->whole_text || utf8_invalid_at(s, n) < 0);
    return buf_append(&g->reasoning, s, n);
}

static int on_begin(uint32_t call, const char *name, void *userdata)
{
    struct gathered *g = userdata;
    assert_true(!g->open && call == g->n_calls);
    g->open = true;
    g->n_calls++;
    buf_clear(&g->arguments);
    return buf_printf(&g->calls, "%s ", name);
}

static int on_arguments(uint32_t call, const char *s, size_t n, void *userdata)
{
    struct gathered *g = userdata;
    assert_true(n > 0 && g->open && call + 1 == g->n_calls);
    assert_true(!g->whole_text || utf8_invalid_at(s, n) < 0);
    return buf_append(&g->arguments, s, n);
}

static int on_end(uint32_t call, const char *raw, size_t n, void *userdata)
{
    struct gathered *g = userdata;
    _cleanup_json_ json_t *v = NULL;

    assert_true(g->open && call + 1 == g->n_calls && (raw != NULL) == (n > 0));
    g->open = false;
    if (g->whole_text) {
        assert_int_equal(pyjson_load(g->arguments.data, g->arguments.size, PYJSON_STRICT, &v), 0);
        assert_true(json_is_object(v));
    }
    buf_clear(&g->raw);
    assert_int_equal(buf_append(&g->raw, raw ? raw : "", n), 0);
    return buf_printf(&g->calls, "%s\n", g->arguments.data);
}

static const struct completion_events events = {on_content, on_reasoning, on_begin, on_arguments, on_end};

enum cutting { WHOLE, BYTES, RANDOM };

/* What completion_finish says. */
static int stream(const char *text, size_t n, bool thinking, enum cutting cutting, struct gathered *g)
{
    struct completion *c = NULL;
    struct fail f = FAIL_INIT;

    assert_int_equal(completion_new(thinking, true, &events, g, &c), 0);
    for (size_t i = 0, piece; i < n; i += piece) {
        piece = cutting == WHOLE ? n : cutting == BYTES ? 1 : 1 + any(any(2) ? 4 : 40);
        piece = MIN(piece, n - i);
        assert_int_equal(completion_feed(c, text + i, piece, &f), 0);
    }
    int r = completion_finish(c, &f);
    assert_int_equal(completion_calls(c), g->n_calls);
    assert_false(g->open);
    completion_free(c);
    return r;
}

static void same_text(const struct buf *a, const char *s)
{
    assert_string_equal(a->data ? a->data : "", s ? s : "");
}

static void equal_to_strict(const struct gathered *g, const struct chat_message *m)
{
    _cleanup_buf_ struct buf calls = BUF_INIT;

    same_text(&g->content, m->content);
    same_text(&g->reasoning, m->reasoning);
    for (size_t i = 0; i < m->n_tool_calls; i++)
        assert_int_equal(buf_printf(&calls, "%s %s\n", m->tool_call[i].name, m->tool_call[i].arguments_json), 0);
    same_text(&g->calls, calls.data);
}

/* All ways to cut give the same; equal to the strict parser's where both find nothing wrong. Returns finish's answer. */
static int check(const char *text, size_t n, bool thinking, bool whole_text)
{
    struct gathered first = {.whole_text = whole_text};
    struct chat_message m = {0};
    _cleanup_buf_ struct buf ended = BUF_INIT;

    int r = stream(text, n, thinking, WHOLE, &first);
    assert_true(r == 0 || r == 1);
    for (int i = 0; i < 3; i++) {
        struct gathered g = {.whole_text = whole_text};
        assert_int_equal(stream(text, n, thinking, i ? RANDOM : BYTES, &g), r);
        same_text(&g.content, first.content.data);
        same_text(&g.reasoning, first.reasoning.data);
        same_text(&g.calls, first.calls.data);
        same_text(&g.raw, first.raw.data);
        gathered_deinit(&g);
    }
    assert_int_equal(buf_printf(&ended, "%.*s" EOS, (int)n, text), 0);
    if (r == 0 && completion_parse(ended.data, ended.size, thinking, &m, NULL) == 0)
        equal_to_strict(&first, &m);
    chat_message_deinit(&m);
    gathered_deinit(&first);
    return r;
}

/* ---------------------------------------------------------------- the released code's cases */

static void equals_the_released_parser(void **unused)
{
    (void)unused;
    const char *top = getenv("top_srcdir");
    char path[4096];
    _cleanup_free_ char *file = NULL;
    _cleanup_json_ json_t *cases = NULL;
    size_t size, i, done = 0;
    json_t *one;

    snprintf(path, sizeof(path), "%s/tests/golden/encoding/cases.json", top ? top : ".");
    assert_int_equal(fd_read_file(AT_FDCWD, path, 1 << 20, &file, &size, NULL), 0);
    assert_int_equal(pyjson_load(file, size, PYJSON_STRICT, &cases), 0);
    json_array_foreach(cases, i, one) {
        if (strcmp(json_string_value(json_object_get(one, "kind")), "parse") != 0)
            continue;
        struct chat_message m = {0};
        struct fail f = FAIL_INIT;
        const json_t *input = json_object_get(one, "input");
        const char *text = json_string_value(json_object_get(input, "text"));
        bool thinking = strcmp(json_string_value(json_object_get(input, "thinking_mode")), "thinking") == 0;
        const char *eos = strstr(text, EOS);
        size_t n = eos ? (size_t)(eos - text) : strlen(text);
        int r = completion_parse(text, strlen(text), thinking, &m, &f);
        if (json_object_get(one, "error")) {
            assert_int_equal(r, -EINVAL);
            assert_string_equal(f.code, "BAD_COMPLETION");
            (void)check(text, n, thinking, true);
        } else {
            _cleanup_json_ json_t *found = NULL;
            assert_int_equal(r, 0);
            assert_int_equal(chat_message_to_json(&m, &found, &f), 0);
            assert_true(json_equal(found, json_object_get(one, "message")));
            assert_int_equal(check(text, n, thinking, true), 0);
        }
        chat_message_deinit(&m);
        done++;
    }
    assert_int_equal(done, 9);
}

static void strict_edges(void **unused)
{
    (void)unused;
    static const struct {
        const char *text;
        bool thinking;
        int calls; /* -1: refused */
    } cases[] = {
        {OPEN INVOKE("a", "") CLOSE EOS, false, 1},
        {OPEN INVOKE("a", "\n") CLOSE EOS, false, 1},
        {OPEN INVOKE("a", "\n\n") CLOSE EOS, false, -1},
        {OPEN CLOSE EOS, false, 0},
        {OPEN INVOKE("a", "") CLOSE, false, 1}, /* no mark at the end is needed after calls */
        {OPEN INVOKE("a", "") CLOSE "\n" EOS, false, -1},
        {OPEN INVOKE("a", "") CLOSE EOS EOS, false, -1},
        {"a" EOS "b", false, -1},
        {"a</think>" EOS, false, -1},
        {"a" D EOS, false, -1},
        {"a<think></think>b" EOS, true, -1},
        {OPEN INVOKE("a", TEXT("x", "</" D "invoke>")) CLOSE EOS, false, 1},
        {OPEN INVOKE("a", TEXT("x", "/" D "parameter")) CLOSE EOS, false, -1},
        {OPEN INVOKE("a", "<" D "parameter name=\"x\">1</" D "parameter>\n") CLOSE EOS, false, -1},
        {OPEN INVOKE("a", JSON("x", "not json")) CLOSE EOS, false, 1}, /* not looked at */
    };

    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        struct chat_message m = {0};
        int r = completion_parse(cases[i].text, strlen(cases[i].text), cases[i].thinking, &m, NULL);
        assert_int_equal(r < 0 ? -1 : (int)m.n_tool_calls, cases[i].calls);
        chat_message_deinit(&m);
    }
}

/* ---------------------------------------------------------------- repairs */

static void repairs(void **unused)
{
    (void)unused;
    static const struct {
        const char *text, *reasoning, *content, *calls;
        bool thinking;
        int repaired;
    } cases[] = {
        {"hm", "hm", "", "", true, 1},
        {"a<b\n\n", "", "a<b\n\n", "", false, 0},
        {"a" OPEN INVOKE("f", TEXT("x", "1") JSON("y", "[1,2]")) CLOSE, "", "a", "f {\"x\": \"1\", \"y\": [1,2]}\n", false, 0},
        {"hm" OPEN INVOKE("f", "") CLOSE, "hm", "", "f {}\n", true, 1},
        {"a<" D "tool_calls>\n" INVOKE("f", "") CLOSE, "", "a", "f {}\n", false, 1},
        {OPEN INVOKE("f", "") CLOSE "tail", "", "tail", "f {}\n", false, 1},
        {OPEN INVOKE("f", "") "between" INVOKE("g", "") CLOSE, "", "between", "f {}\ng {}\n", false, 1},
        {OPEN INVOKE("f", "") CLOSE OPEN INVOKE("g", "") CLOSE, "", "", "f {}\ng {}\n", false, 1},
        {OPEN INVOKE("f", TEXT("x", "1") TEXT("x", "2") TEXT("y", "3")) CLOSE, "", "", "f {\"x\": \"1\", \"y\": \"3\"}\n", false, 1},
        {OPEN INVOKE("f", JSON("x", "no \"json\"")) CLOSE, "", "", "f {\"x\": \"no \\\"json\\\"\"}\n", false, 1},
        {OPEN INVOKE("f", JSON("x", "")) CLOSE, "", "", "f {\"x\": \"\"}\n", false, 1},
        {OPEN INVOKE("f", JSON("x", "NaN")) CLOSE, "", "", "f {\"x\": \"NaN\"}\n", false, 1},
        {OPEN INVOKE("f", "<" D "parameter name=\"x\">1</" D "parameter>\n") CLOSE, "", "", "f {\"x\": \"1\"}\n", false, 1},
        {OPEN INVOKE("f", "<" D "parameter>1</" D "parameter>\n") CLOSE, "", "", "f {}\n", false, 1},
        {OPEN "<" D "invoke name=\"f\"><" D "parameter name=\"x\" string=\"true\">1</" D "parameter></" D "invoke>" CLOSE, "",
         "", "f {\"x\": \"1\"}\n", false, 1},
        {OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x\" string=\"true\">1\n2", "", "", "f {\"x\": \"1\\n2\"}\n", false, 1},
        {OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x\" string=\"false\">[1", "", "", "f {\"x\": \"[1\"}\n", false, 1},
        {OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x", "", "", "f {}\n", false, 1},
        {OPEN "<" D "invoke name=\"f", "", "", "f {}\n", false, 1},
        {OPEN "<" D "invoke", "", "", " {}\n", false, 1},
        {OPEN, "", "", "", false, 1},
        {OPEN INVOKE("f", "") "<" D "invoke name=\"g\">\n" CLOSE, "", "", "f {}\ng {}\n", false, 1},
        {"\n\n<" D "tool_cal", "", "\n\n<" D "tool_cal", "", false, 0},
    };

    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        struct gathered g = {.whole_text = true};
        size_t n = strlen(cases[i].text);
        int r = stream(cases[i].text, n, cases[i].thinking, WHOLE, &g);
        if (r != cases[i].repaired)
            print_error("case %zu\n", i);
        assert_int_equal(r, cases[i].repaired);
        same_text(&g.reasoning, cases[i].reasoning);
        same_text(&g.content, cases[i].content);
        same_text(&g.calls, cases[i].calls);
        gathered_deinit(&g);
        assert_int_equal(check(cases[i].text, n, cases[i].thinking, true), r);
    }
}

static void holds_back_only_marks(void **unused)
{
    (void)unused;
    struct gathered g = {.whole_text = true};
    struct completion *c = NULL;
    static const struct {
        const char *piece, *content;
    } steps[] = {
        {"abc", "abc"}, {"\n", "abc"}, {"\n", "abc"}, {"\n", "abc\n"}, {"d", "abc\n\n\nd"}, {"<", "abc\n\n\nd"},
        {"b>", "abc\n\n\nd<b>"}, {"\xe2\x82", "abc\n\n\nd<b>"}, {"\xac", "abc\n\n\nd<b>€"}, {"<\xef\xbd\x9c", "abc\n\n\nd<b>€"},
        {"x", "abc\n\n\nd<b>€<｜x"},
    };

    assert_int_equal(completion_new(true, true, &events, &g, &c), 0);
    assert_true(completion_in_reasoning(c));
    assert_int_equal(completion_feed(c, "r</thin", 7, NULL), 0);
    same_text(&g.reasoning, "r");
    assert_int_equal(completion_feed(c, "k>", 2, NULL), 0);
    assert_false(completion_in_reasoning(c));
    for (size_t i = 0; i < ELEMENTS(steps); i++) {
        assert_int_equal(completion_feed(c, steps[i].piece, strlen(steps[i].piece), NULL), 0);
        same_text(&g.content, steps[i].content);
    }
    static const char call[] = OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x\" string=\"true\">v\"";
    assert_int_equal(completion_feed(c, call, strlen(call), NULL), 0);
    same_text(&g.arguments, "{\"x\": \"v\\\"");
    g.stop = -ECANCELED;
    assert_int_equal(completion_feed(c, "</" D "parameter>!", strlen("</" D "parameter>!"), NULL), -ECANCELED);
    completion_free(c);
    gathered_deinit(&g);

    struct gathered plain = {.whole_text = true};
    assert_int_equal(completion_new(false, false, &events, &plain, &c), 0);
    assert_int_equal(completion_feed(c, OPEN, strlen(OPEN), NULL), 0);
    same_text(&plain.content, OPEN);
    assert_int_equal(completion_finish(c, NULL), 0);
    completion_free(c);
    gathered_deinit(&plain);
}

/* ---------------------------------------------------------------- generated */

static const char *any_words(bool tame)
{
    static const char *const words[] = {"", "a", "x y", "é", "日本\n", "\"q\"", "\\", "<b>", "\n\n", "\t", "{", "😀", "a<", "</", "<" "｜",
                                        "</" D "invoke", "<" D "tool_calls>", "\x1f", "\">", "string=\"true\">"};
    return words[any(tame ? 6 : ELEMENTS(words))];
}

static void add_words(struct buf *b, uint32_t n, bool tame)
{
    while (n-- > 0)
        assert_int_equal(buf_append_str(b, any_words(tame)), 0);
}

static void add_call(struct buf *b, int number)
{
    static const char *const values[] = {"1", "true", "[1, {\"a\": null}]", "\"s\\n\"", " 2.5e3 ", "123456789012345678901234567890"};

    buf_printf(b, "<" D "invoke name=\"f%d", number);
    add_words(b, any(2), true);
    buf_append_str(b, "\">\n");
    for (uint32_t i = 0, n = any(4); i < n; i++) {
        buf_printf(b, "<" D "parameter name=\"k%u", i);
        add_words(b, any(3), true);
        bool string = any(2);
        buf_printf(b, "\" string=\"%s\">", string ? "true" : "false");
        if (string)
            add_words(b, any(6), false);
        else
            buf_append_str(b, values[any(ELEMENTS(values))]);
        buf_append_str(b, "</" D "parameter>\n");
    }
    buf_append_str(b, "</" D "invoke>\n");
}

/* A well-formed completion; content without DSML, which ends it. */
static void generate(struct buf *b, bool thinking)
{
    static const char *const content[] = {"a", "é", "\n", "<", "😀", "</b", " "};

    buf_clear(b);
    for (uint32_t i = 0, n = any(8); i < n; i++)
        buf_append_str(b, content[any(ELEMENTS(content))]);
    if (thinking)
        buf_append_str(b, "</think>");
    for (uint32_t i = 0, n = any(8); i < n; i++)
        buf_append_str(b, content[any(ELEMENTS(content))]);
    if (any(3) == 0)
        return;
    buf_append_str(b, OPEN);
    for (int i = 0, n = (int)any(4); i < n; i++)
        add_call(b, i);
    buf_append_str(b, CLOSE);
}

static void well_formed_needs_no_repair(void **unused)
{
    (void)unused;
    _cleanup_buf_ struct buf b = BUF_INIT;
    int calls = 0;

    for (int i = 0; i < 3000; i++) {
        bool thinking = any(2);
        struct chat_message m = {0};
        generate(&b, thinking);
        assert_int_equal(check(b.data ? b.data : "", b.size, thinking, true), 0);
        buf_append_str(&b, EOS);
        assert_int_equal(completion_parse(b.data, b.size, thinking, &m, NULL), 0);
        calls += (int)m.n_tool_calls;
        chat_message_deinit(&m);
    }
    assert_true(calls > 1000);
}

static void mangled_never_breaks(void **unused)
{
    (void)unused;
    _cleanup_buf_ struct buf b = BUF_INIT, mangled = BUF_INIT;
    int repaired = 0;

    for (int i = 0; i < 3000; i++) {
        bool thinking = any(2), bytes = any(4) == 0;
        generate(&b, thinking);
        buf_clear(&mangled);
        for (size_t at = 0; at < b.size;) { /* drop, repeat and insert characters, or damage bytes */
            uint32_t c;
            int n = utf8_decode(b.data + at, b.size - at, &c);
            n = MAX(n, 1);
            uint32_t dice = any(60);
            if (dice == 1)
                add_words(&mangled, 1, false);
            if (dice > 2)
                buf_append(&mangled, b.data + at, (size_t)n);
            if (bytes && dice == 4)
                mangled.data[mangled.size - 1] = (char)(1 + any(255));
            at += (size_t)n;
        }
        repaired += check(mangled.data ? mangled.data : "", mangled.size, thinking, !bytes);
    }
    assert_true(repaired > 500);
}

static void raw_is_what_was_written(void **unused)
{
    (void)unused;
    static const char call[] = "<" D "invoke name=\"f\">\n" TEXT("x", "1") "</" D "invoke>";
    struct gathered g = {.whole_text = true};
    _cleanup_buf_ struct buf b = BUF_INIT;

    buf_printf(&b, OPEN "%s\n" CLOSE, call);
    assert_int_equal(stream(b.data, b.size, false, RANDOM, &g), 0);
    same_text(&g.raw, call);
    gathered_deinit(&g);

    struct gathered broken = {.whole_text = true};
    buf_clear(&b);
    buf_printf(&b, OPEN "<" D "invoke name=\"f\">\n" JSON("x", "?") "</" D "invoke>\n" CLOSE);
    assert_int_equal(stream(b.data, b.size, false, RANDOM, &broken), 1);
    same_text(&broken.raw, "");
    gathered_deinit(&broken);
}

static void long_texts_take_linear_time(void **unused)
{
    (void)unused;
    static const char *const before[] = {"", OPEN, OPEN "<" D "invoke name=\"",
                                         OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x\" string=\"false\">",
                                         OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\""};
    static const char *const repeated[] = {"a", "<", "\n", "\"", "<" D, "</" D "para", "\">", "［"};
    _cleanup_buf_ struct buf b = BUF_INIT;

    for (size_t i = 0; i < ELEMENTS(before); i++)
        for (size_t k = 0; k < ELEMENTS(repeated); k++) {
            struct gathered g = {0}, bytes = {0};
            buf_clear(&b);
            buf_append_str(&b, before[i]);
            while (b.size < 200000)
                buf_append_str(&b, repeated[k]);
            assert_int_equal(stream(b.data, b.size, false, BYTES, &bytes), stream(b.data, b.size, false, WHOLE, &g));
            same_text(&g.content, bytes.content.data);
            same_text(&g.calls, bytes.calls.data);
            gathered_deinit(&g);
            gathered_deinit(&bytes);
        }
}

static void huge_values_stay_bounded(void **unused)
{
    (void)unused;
    _cleanup_buf_ struct buf b = BUF_INIT;
    struct gathered g = {0};

    buf_append_str(&b, OPEN "<" D "invoke name=\"f\">\n<" D "parameter name=\"x\" string=\"false\">[");
    while (b.size < (5u << 20))
        buf_append_str(&b, "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,");
    buf_append_str(&b, "0]</" D "parameter>\n</" D "invoke>\n" CLOSE);
    assert_int_equal(stream(b.data, b.size, false, RANDOM, &g), 1); /* given as a string, and not kept */
    assert_int_equal(g.raw.size, 0);
    assert_true(strncmp(g.calls.data, "f {\"x\": \"[0,0", 13) == 0);
    gathered_deinit(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_released_parser), cmocka_unit_test(strict_edges), cmocka_unit_test(repairs),
        cmocka_unit_test(holds_back_only_marks), cmocka_unit_test(well_formed_needs_no_repair),
        cmocka_unit_test(mangled_never_breaks), cmocka_unit_test(raw_is_what_was_written),
        cmocka_unit_test(long_texts_take_linear_time), cmocka_unit_test(huge_values_stay_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
