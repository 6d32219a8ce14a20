/* SPDX-License-Identifier: MIT */
/* The tokenizer against recorded ids, its spans, its limits and what it refuses; bpe and pattern by themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/fd.h"
#include "engine/bpe.h"
#include "engine/pattern.h"
#include "engine/tokenizer.h"

#define ASSISTANT "<｜Assistant｜>"

static struct tokenizer *nano;
static char *nano_json;
static size_t nano_size;

static char *read_top(const char *name, size_t *ret_size)
{
    const char *top = getenv("top_srcdir");
    char path[4096], *data = NULL;

    snprintf(path, sizeof(path), "%s/%s", top ? top : ".", name);
    assert_int_equal(fd_read_file(AT_FDCWD, path, 64 << 20, &data, ret_size, NULL), 0);
    return data;
}

static int load(void **state)
{
    (void)state;
    nano_json = read_top("models/nano/tokenizer.json", &nano_size);
    return tokenizer_parse(nano_json, nano_size, &nano, NULL);
}

static int unload(void **state)
{
    (void)state;
    nano = tokenizer_free(nano);
    free(nano_json);
    return 0;
}

/* ---- equality */

static void expect_ids(const struct tokenizer *t, const struct text_span *span, size_t n_spans, const json_t *ids)
{
    _cleanup_tokens_ struct tokens out = TOKENS_INIT;

    assert_int_equal(tokenizer_encode(t, span, n_spans, &out, NULL), 0);
    assert_int_equal(out.n, json_array_size(ids));
    for (size_t i = 0; i < out.n; i++)
        assert_int_equal(out.id[i], json_integer_value(json_array_get(ids, i)));
}

static void equals_recorded_ids(void **state)
{
    (void)state;
    size_t size, i;
    _cleanup_free_ char *data = read_top("tests/golden/tokenizer/nano.json", &size);
    json_auto_t *rows = json_loadb(data, size, JSON_ALLOW_NUL, NULL);
    json_t *row;

    assert_true(json_array_size(rows) > 300);
    json_array_foreach(rows, i, row) {
        const json_t *text = json_object_get(row, "text");
        struct text_span span = {.text = json_string_value(text), .n = json_string_length(text), .control = true};
        expect_ids(nano, &span, 1, json_object_get(row, "control"));
        span.control = false;
        expect_ids(nano, &span, 1, json_object_get(row, "plain"));
        /* the same in small spans: borders inside words and characters make no difference */
        struct text_span parts[64];
        size_t n = 0;
        for (size_t at = 0; at < span.n && n < ELEMENTS(parts); n++) {
            size_t length = n + 1 == ELEMENTS(parts) ? span.n - at : MIN(span.n - at, 1 + (i + n) % 5);
            parts[n] = (struct text_span){.text = span.text + at, .n = length};
            at += length;
        }
        expect_ids(nano, parts, n, json_object_get(row, "plain"));
    }
}

static size_t count_id(const struct text_span *span, size_t n_spans, uint32_t id)
{
    _cleanup_tokens_ struct tokens out = TOKENS_INIT;
    _cleanup_buf_ struct buf back = BUF_INIT, text = BUF_INIT;
    const char *bytes;
    size_t count = 0, n;

    assert_int_equal(tokenizer_encode(nano, span, n_spans, &out, NULL), 0);
    for (size_t i = 0; i < out.n; i++) {
        count += out.id[i] == id;
        assert_int_equal(tokenizer_bytes(nano, out.id[i], &bytes, &n), 0);
        assert_int_equal(buf_append(&back, bytes, n), 0);
    }
    for (size_t i = 0; i < n_spans; i++)
        assert_int_equal(buf_append(&text, span[i].text, span[i].n), 0);
    assert_int_equal(back.size, text.size);
    assert_memory_equal(back.data, text.data, text.size);
    return count;
}

#define SPAN(s, is_control) ((struct text_span){.text = (s), .n = sizeof(s) - 1, .control = (is_control)})

static void control_only_in_control_spans(void **state)
{
    (void)state;
    uint32_t id = 0;

    assert_int_equal(tokenizer_find_added(nano, ASSISTANT, &id), 0);
    assert_int_equal(tokenizer_find_added(nano, ASSISTANT "x", &id), -ENOENT);
    assert_int_equal(tokenizer_find_added(nano, "x" ASSISTANT, &id), -ENOENT);
    assert_int_equal(tokenizer_find_added(nano, "", &id), -ENOENT);
    assert_true(tokenizer_is_special(nano, id));
    assert_false(tokenizer_is_special(nano, 100));
    assert_false(tokenizer_is_special(nano, UINT32_MAX));

    struct text_span user[] = {SPAN("hi " ASSISTANT, false)};
    assert_int_equal(count_id(user, 1, id), 0);
    struct text_span both[] = {SPAN(ASSISTANT, true), SPAN("a" ASSISTANT "b", false), SPAN(ASSISTANT, true)};
    assert_int_equal(count_id(both, 3, id), 2);
    struct text_span torn[] = {SPAN("<｜Assis", true), SPAN("tant｜>", true)};
    assert_int_equal(count_id(torn, 2, id), 0);
    struct text_span mixed[] = {SPAN("<｜Assis", true), SPAN("tant｜>", false)};
    assert_int_equal(count_id(mixed, 2, id), 0);
    struct text_span empty[] = {{.text = NULL, .n = 0}, SPAN(ASSISTANT, true), {.text = NULL, .n = 0, .control = true}};
    assert_int_equal(count_id(empty + 1, 1, id), 1);
    _cleanup_tokens_ struct tokens out = TOKENS_INIT;
    assert_int_equal(tokenizer_encode(nano, empty, 3, &out, NULL), 0);
    assert_int_equal(out.n, 1);
    assert_int_equal(tokenizer_encode(nano, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.n, 1);
}

static void says_where_text_is_not_utf8(void **state)
{
    (void)state;
    _cleanup_tokens_ struct tokens out = TOKENS_INIT;
    struct fail f = FAIL_INIT;
    struct text_span span[] = {SPAN("good ", false), SPAN("ba\xc3", false), SPAN("d", true)};

    assert_int_equal(tokens_append(&out, (const uint32_t[]){5}, 1), 0);
    assert_int_equal(tokenizer_encode(nano, span, 3, &out, &f), -EILSEQ);
    assert_string_equal(f.code, "BAD_UTF8");
    assert_true(f.has_value && f.value == 7);
    assert_int_equal(out.n, 1);
    /* a character may lie across spans */
    span[2] = SPAN("\xa9", true);
    assert_int_equal(tokenizer_encode(nano, span, 3, &out, &f), 0);

    struct text_span huge = {.text = "", .n = (size_t)INT32_MAX + 1};
    assert_int_equal(tokenizer_encode(nano, &huge, 1, &out, &f), -ERANGE);
    assert_string_equal(f.code, "RANGE");
}

static void hostile_text_takes_little_time(void **state)
{
    (void)state;
    static const char *const unit[] = {"a", " ", "\u0301", "\r\n", "中", "7", "ab", "th", "<｜", " \n a", "\u00a0", "\r ", "!"};
    time_t start = time(NULL);

    for (size_t i = 0; i < ELEMENTS(unit); i++) {
        _cleanup_buf_ struct buf text = BUF_INIT;
        _cleanup_tokens_ struct tokens out = TOKENS_INIT;
        while (text.size < 1000000)
            assert_int_equal(buf_append_str(&text, unit[i]), 0);
        struct text_span span = {.text = text.data, .n = text.size, .control = true};
        assert_int_equal(tokenizer_encode(nano, &span, 1, &out, NULL), 0);
        assert_true(out.n > 1000 && out.n <= text.size);
    }
    assert_true(time(NULL) - start < 30); /* quadratic work would take hours */
}

/* ---- what the file may not say */

struct change {
    const char *path;     /* keys and indices, separated by / */
    const char *value;    /* JSON; NULL: remove */
    const char *expected; /* in the message; NULL: accepted */
};

static void apply(json_t *top, const struct change *c)
{
    char path[128], *save = NULL, *key, *next;
    json_t *at = top, *value = c->value ? json_loads(c->value, JSON_DECODE_ANY, NULL) : NULL;

    assert_true(!c->value || value);
    snprintf(path, sizeof(path), "%s", c->path);
    for (key = strtok_r(path, "/", &save); (next = strtok_r(NULL, "/", &save)); key = next)
        at = json_is_array(at) ? json_array_get(at, strtoul(key, NULL, 10)) : json_object_get(at, key);
    assert_non_null(at);
    if (json_is_array(at) && strtoul(key, NULL, 10) == json_array_size(at))
        assert_int_equal(json_array_append_new(at, value), 0);
    else if (json_is_array(at))
        assert_int_equal(json_array_set_new(at, strtoul(key, NULL, 10), value), 0);
    else
        assert_int_equal(value ? json_object_set_new(at, key, value) : json_object_del(at, key), 0);
}

static void refuses_what_it_does_not_do(void **state)
{
    (void)state;
#define ADDED(id, text, more) "{\"id\":" id ",\"content\":\"" text "\"" more "}"
    static const struct change changes[] = {
        {"version", "\"1.0\"", NULL},
        {"normalizer", "null", NULL},
        {"normalizer", "{\"type\":\"NFC\"}", "normalizer of the type 'NFC'"},
        {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}", "normalizer"},
        {"truncation", "{\"max_length\":5}", "'truncation'"},
        {"padding", "{\"pad_id\":0}", "'padding'"},
        {"surprise", "1", "'surprise'"},
        {"decoder", "{\"type\":\"WordPiece\"}", "decoder's type is 'WordPiece'"},
        {"decoder", NULL, "decoder"},
        {"post_processor", NULL, NULL},
        {"post_processor", "{\"type\":\"BertProcessing\"}", "BertProcessing"},
        {"pre_tokenizer", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", NULL},
        {"pre_tokenizer", "{\"type\":\"ByteLevel\"}", "add_prefix_space"},
        {"pre_tokenizer", "{\"type\":\"Whitespace\"}", "Whitespace"},
        {"pre_tokenizer", "null", "pre-tokenizer"},
        {"pre_tokenizer/pretokenizers", "[]", "pre-tokenizer"},
        {"pre_tokenizer/pretokenizers/3", "{\"type\":\"Digits\"}", "Digits"},
        {"pre_tokenizer/pretokenizers/0", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "ByteLevel"},
        {"pre_tokenizer/pretokenizers/0/behavior", "\"Removed\"", "behavior 'Removed'"},
        {"pre_tokenizer/pretokenizers/0/invert", "true", NULL},
        {"pre_tokenizer/pretokenizers/0/more", "true", "'more'"},
        {"pre_tokenizer/pretokenizers/0/pattern", "{\"Regex\":\"(\"}", "pre-tokenizer 0: the pattern has"},
        {"pre_tokenizer/pretokenizers/0/pattern", "{\"String\":\"a.b \"}", NULL},
        {"pre_tokenizer/pretokenizers/0/pattern", "\"a\"", "pattern"},
        {"model/type", "\"Unigram\"", "Unigram"},
        {"model/type", NULL, "(none)"},
        {"model/dropout", "0.1", "'dropout'"},
        {"model/unk_token", "\"a\"", "'unk_token'"},
        {"model/byte_fallback", "true", "'byte_fallback'"},
        {"model/ignore_merges", "true", "'ignore_merges'"},
        {"model/ignore_merges", "false", NULL},
        {"model/end_of_word_suffix", "\"</w>\"", "'end_of_word_suffix'"},
        {"model/continuing_subword_prefix", "\"\"", NULL},
        {"model/more", "0", "'more'"},
        {"model/vocab", "{}", "'vocab'"},
        {"model/vocab", "[1]", "'vocab'"},
        {"model/vocab/a", "-1", "id"},
        {"model/vocab/a", "1.5", "id"},
        {"model/vocab/a", "16777216", "id"},
        {"model/vocab/a", "200", "twice"},
        {"model/vocab/0", NULL, "byte 0x30"},
        {"model/merges", "{}", "'merges'"},
        {"model/merges/0", "\"th\"", "merge 0"},
        {"model/merges/0", "\"t h e\"", "merge 0"},
        {"model/merges/0", "\"t 中\"", "merge 0"},
        {"model/merges/0", "[\"t\"]", "merge 0"},
        {"model/merges/0", "[\"t\",5]", "merge 0"},
        {"model/merges/0", "[\"t\",\"h\"]", NULL},
        {"model/merges/1", "\"t h\"", "merge 1 is there twice"},
        {"added_tokens", "{}", "'added_tokens'"},
        {"added_tokens", "null", NULL},
        {"added_tokens/3/lstrip", "true", "'lstrip'"},
        {"added_tokens/3/rstrip", "true", "'rstrip'"},
        {"added_tokens/3/single_word", "true", "'single_word'"},
        {"added_tokens/3/special", "1", "'special'"},
        {"added_tokens/3/id", "600", "id 600, expected 498"},
        {"added_tokens/3/content", "\"\"", "'content'"},
        {"added_tokens/3/content", "7", "'content'"},
        {"added_tokens/16", ADDED("511", "<new>", ""), NULL},
        {"added_tokens/16", ADDED("511", "<new>", ",\"more\":1"), "'more'"},
        {"added_tokens/16", ADDED("512", "<new>", ""), "expected 511"},
        {"added_tokens/16", ADDED("511", "<think>", ",\"normalized\":false"), "twice"},
    };
    for (size_t i = 0; i < ELEMENTS(changes); i++) {
        json_auto_t *top = json_loadb(nano_json, nano_size, 0, NULL);
        _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
        struct fail f = FAIL_INIT;
        apply(top, &changes[i]);
        char *text = json_dumps(top, 0);
        int r = tokenizer_parse(text, strlen(text), &t, &f);
        free(text);
        if (r != (changes[i].expected ? -EINVAL : 0) ||
            (changes[i].expected && (!strstr(f.message, changes[i].expected) || strcmp(f.code, "BAD_TOKENIZER") != 0)))
            fail_msg("%s = %s: %d %s", changes[i].path, changes[i].value, r, f.message);
    }
}

static void refuses_what_is_no_json(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "{", "[]", "7", "{\"model\":{},\"model\":{}}", "{}", "\xff"};
    struct tokenizer *t = NULL;
    struct fail f;

    for (size_t i = 0; i < ELEMENTS(bad); i++) {
        assert_int_equal(tokenizer_parse(bad[i], strlen(bad[i]), &t, &f), -EINVAL);
        assert_string_equal(f.code, "BAD_TOKENIZER");
    }
    for (size_t n = 0; n < nano_size - 1; n += 97)
        assert_int_equal(tokenizer_parse(nano_json, n, &t, NULL), -EINVAL);
    assert_null(t);
}

/* ---- added tokens that overlap */

static void longest_added_token_first(void **state)
{
    (void)state;
    static const struct change changes[] = {
        {"added_tokens/16", ADDED("511", "<x", ",\"normalized\":false"), NULL},
        {"added_tokens/17", ADDED("512", "<xyz>", ",\"normalized\":false"), NULL},
        {"added_tokens/18", ADDED("513", "z><", ",\"normalized\":false"), NULL},
        {"added_tokens/19", ADDED("514", "q<xyz>", ",\"normalized\":true"), NULL},
        {"added_tokens/20", ADDED("515", "q<", ",\"normalized\":true"), NULL},
    };
    static const struct {
        const char *text, *ids;
    } expected[] = {
        {"<xyz>", "[512]"},         {"<xyz><xyz", "[512, 511, 124, 125]"},
        {"q<xyz>", "[116, 512]"},   {"<xz><x", "[511, 513, 123]"},
        {"q<", "[515]"},            {"q<q<x", "[515, 116, 511]"},
    };
    json_auto_t *top = json_loadb(nano_json, nano_size, 0, NULL);
    _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;

    for (size_t i = 0; i < ELEMENTS(changes); i++)
        apply(top, &changes[i]);
    char *text = json_dumps(top, 0);
    assert_int_equal(tokenizer_parse(text, strlen(text), &t, NULL), 0);
    free(text);
    for (size_t i = 0; i < ELEMENTS(expected); i++) {
        json_auto_t *ids = json_loads(expected[i].ids, 0, NULL);
        struct text_span span = {.text = expected[i].text, .n = strlen(expected[i].text), .control = true};
        expect_ids(t, &span, 1, ids);
    }
}

/* ---- bpe against looking at all pairs each time */

#define LETTERS 3
#define TOKENS 40

static size_t merge_plainly(const struct bpe_merge *merge, uint32_t n_merges, uint32_t *id, size_t n)
{
    for (uint32_t rank = 0; rank < n_merges; rank++)
        for (size_t i = 0; i + 1 < n; i++) {
            if (id[i] != merge[rank].left || id[i + 1] != merge[rank].right)
                continue;
            id[i] = merge[rank].result;
            memmove(id + i + 1, id + i + 2, (n - i - 2) * sizeof(*id));
            n--;
            rank = UINT32_MAX; /* from the lowest rank again */
            break;
        }
    return n;
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void bpe_equals_the_plain_way(void **state)
{
    (void)state;
    uint32_t byte_token[256], seed = 1, at;

    for (uint32_t i = 0; i < 256; i++)
        byte_token[i] = i < LETTERS ? i : BPE_NO_TOKEN;
    for (int round = 0; round < 300; round++) {
        _cleanup_(bpe_freep) struct bpe *b = NULL;
        _cleanup_bpe_work_ struct bpe_work w = BPE_WORK_INIT;
        struct bpe_merge merge[TOKENS];
        uint32_t n_merges = 0;
        /* every merge makes a new token of older ones, as in a real file */
        while (n_merges < TOKENS - LETTERS) {
            uint32_t have = LETTERS + n_merges;
            struct bpe_merge m = {next_random(&seed) % have, next_random(&seed) % have, have};
            bool again = false;
            for (uint32_t i = 0; i < n_merges; i++)
                again = again || (merge[i].left == m.left && merge[i].right == m.right);
            if (!again)
                merge[n_merges++] = m;
        }
        for (uint32_t i = n_merges; i-- > 1;) { /* the order of ranks is any */
            uint32_t j = next_random(&seed) % (i + 1);
            struct bpe_merge m = merge[i];
            merge[i] = merge[j];
            merge[j] = m;
        }
        assert_int_equal(bpe_new(byte_token, merge, n_merges, &b, &at), 0);
        for (int word = 0; word < 20; word++) {
            _cleanup_tokens_ struct tokens out = TOKENS_INIT;
            char text[200];
            uint32_t id[200];
            size_t n = next_random(&seed) % sizeof(text);
            for (size_t i = 0; i < n; i++)
                id[i] = (unsigned char)(text[i] = (char)(next_random(&seed) % LETTERS));
            assert_int_equal(bpe_encode(b, &w, text, n, &out), 0);
            n = merge_plainly(merge, n_merges, id, n);
            assert_int_equal(out.n, n);
            if (n > 0)
                assert_memory_equal(out.id, id, n * sizeof(*id));
        }
        merge[5] = merge[2];
        struct bpe *twice = NULL;
        assert_int_equal(bpe_new(byte_token, merge, n_merges, &twice, &at), -EEXIST);
        assert_int_equal(at, 5);
    }
}

/* ---- patterns */

static void split(const struct pattern *p, const char *text, char *ret)
{
    size_t n = strlen(text);
    uint8_t cut[64] = {0};
    uint16_t scratch[65];

    pattern_split(p, text, n, scratch, cut);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && cut[i])
            *ret++ = '^';
        *ret++ = text[i];
    }
    *ret = '\0';
}

static void patterns_split(void **state)
{
    (void)state;
    static const struct {
        const char *regex, *text, *expected;
    } cases[] = {
        {"a|ab", "xabab", "x^a^b^a^b"},                      /* the first alternative, not the longest */
        {"ab|a", "xabaa", "x^ab^a^a"},
        {"(?:ab|a)b", "abb ab", "abb^ ^ab"},                   /* goes back into the group */
        {"a*b|a", "aaab aaac", "aaab^ ^a^a^a^c"},
        {"\\s+(?!\\S)|\\s+", "a   b  ", "a^  ^ ^b^  "},
        {"\\s+(?=b)", "a  b  c", "a^  ^b  c"},
        {"[^a-c\\s]+", "abxyc z", "ab^xy^c ^z"},
        {"\\p{N}{1,3}", "12345", "123^45"},
        {"\\p{N}{2}", "12345", "12^34^5"},
        {"\\d{2,}", "1 22 333", "1 ^22^ ^333"},
        {".+", "ab\ncd", "ab^\n^cd"},
        {"\\P{L}", "a1b", "a^1^b"},
        {"[\\P{L}b]+", "a1bb", "a^1bb"},
        {"[\\u4e00-\\u9fa5]+", "a中文b", "a^中文^b"},
        {"[-a]+|[b-]", "-a-b", "-a-^b"},
        {"\\.\\-\\]", "a.-]b", "a^.-]^b"},
        {"(a(b|c))+d?", "abacdab", "abacd^ab"},
    };
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        _cleanup_(pattern_freep) struct pattern *p = NULL;
        struct fail f = FAIL_INIT;
        char got[128];
        if (pattern_new(cases[i].regex, strlen(cases[i].regex), &p, &f) < 0)
            fail_msg("%s: %s", cases[i].regex, f.message);
        split(p, cases[i].text, got);
        assert_string_equal(got, cases[i].expected);
    }
    _cleanup_(pattern_freep) struct pattern *literal = NULL;
    char got[128];
    assert_int_equal(pattern_new_literal("a.*", 3, &literal, NULL), 0);
    split(literal, "abca.*b", got);
    assert_string_equal(got, "abc^a.*^b");
}

static void patterns_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",      "a*",     "a?",      "a|",     "(?=a)",  "(a*)*b", "(a?)+b", "a+?",      "a++",     "a{2}?",   "a{2,1}",
        "a{,2}", "a{999}", "a{0}b",   "^a",     "a$",     "a)",     "(a",     "[a",       "[]",      "[]a]",    "[b-a]",
        "[a&&b]", "[[a]]", "[a-\\d]", "[\\d-a]", "[a-b-c]", "\\b",   "\\w",    "\\1",      "\\x41",   "\\p{Han}", "\\p",
        "\\pL",  "\\u12",  "\\ud800", "\\",     "(?i:a)", "(?<a>b)", "(?=ab)", "(?!(a))", "*a",      "a**",     "\xff",
        "(((((((((((((((((((((((((((((((((a)))))))))))))))))))))))))))))))))", "a{200}b{200}",
        /* too many states: which of the next 12 characters are a c */
        "[abc]{12}c",
    };
    struct pattern *p = NULL;

    for (size_t i = 0; i < ELEMENTS(bad); i++) {
        struct fail f = FAIL_INIT;
        if (pattern_new(bad[i], strlen(bad[i]), &p, &f) != -EINVAL || strcmp(f.code, "BAD_TOKENIZER") != 0)
            fail_msg("%s was accepted", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_recorded_ids),
        cmocka_unit_test(control_only_in_control_spans),
        cmocka_unit_test(says_where_text_is_not_utf8),
        cmocka_unit_test(hostile_text_takes_little_time),
        cmocka_unit_test(refuses_what_it_does_not_do),
        cmocka_unit_test(refuses_what_is_no_json),
        cmocka_unit_test(longest_added_token_first),
        cmocka_unit_test(bpe_equals_the_plain_way),
        cmocka_unit_test(patterns_split),
        cmocka_unit_test(patterns_refused),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
