/* SPDX-License-Identifier: MIT */
/*
 * Reads tokenizer.json. Whatever in the file would change the result and is not done here is refused by name: a
 * tokenizer that is nearly right gives wrong answers that nobody notices.
 */
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/fd.h"
#include "base/map.h"
#include "base/utf8.h"
#include "engine/tokenizer-private.h"

#define FILE_BYTES_MAX ((size_t)64 << 20)

struct reader {
    struct tokenizer *t;
    struct map *ids;          /* vocabulary entry, as written, to id + 1 */
    uint32_t byte_token[256];
    struct fail *f;
};

static void reader_deinit(struct reader *r)
{
    map_free(r->ids);
    tokenizer_free(r->t);
}

static int bad(struct reader *r, const char *fmt, ...) PRINTF(2, 3);

static int bad(struct reader *r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    int e = fail_setv(r->f, EINVAL, "BAD_TOKENIZER", fmt, ap);
    va_end(ap);
    return e;
}

/* ---- small pieces of JSON */

static const char *string_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "(none)";
}

/* NULL, null and "" are nothing; so is an empty list. */
static bool is_nothing(const json_t *j)
{
    return !j || json_is_null(j) || (json_is_string(j) && json_string_length(j) == 0) ||
           (json_is_array(j) && json_array_size(j) == 0);
}

/* Keys of the object are among `known` (NULL at the end). */
static int check_keys(struct reader *r, json_t *object, const char *what, const char *const *known)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return bad(r, "%s has the key '%.60s', which is not known", what, key);
    }
    return 0;
}

/* A key that must be missing, null, "" or false. */
static int check_off(struct reader *r, const json_t *object, const char *what, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return is_nothing(value) || json_is_false(value) ? 0 : bad(r, "%s: '%s' is set, which is not supported", what, key);
}

static int get_bool(struct reader *r, const json_t *object, const char *what, const char *key, bool missing, bool *ret)
{
    const json_t *value = json_object_get(object, key);

    if (value && !json_is_boolean(value))
        return bad(r, "%s: '%s' is not true or false", what, key);
    *ret = value ? json_is_true(value) : missing;
    return 0;
}

static int get_id(struct reader *r, const json_t *value, const char *what, uint32_t *ret)
{
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;

    if (id < 0 || id >= TOKEN_IDS_MAX)
        return bad(r, "%s: an id is not a whole number from 0 to %u", what, TOKEN_IDS_MAX - 1);
    *ret = (uint32_t)id;
    return 0;
}

/* ---- bytes as characters */

/* Bytes that are printable in Latin-1 are written as that character; the others, in order, as U+0100, U+0101, ... */
static bool is_plain_byte(unsigned b)
{
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

int byte_of_character(uint32_t c)
{
    if (c < 0x100)
        return is_plain_byte(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100); /* 0x00 .. 0x20 */
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7f); /* 0x7f .. 0xa0 */
    return c == 0x143 ? 0xad : -1;
}

int append_token_bytes(struct buf *out, const char *text, size_t n)
{
    size_t start = out->size;
    uint32_t c = 0;
    int length;

    for (size_t i = 0; i < n; i += (size_t)length) {
        length = utf8_decode(text + i, n - i, &c);
        int byte = length <= 0 ? -1 : byte_of_character(c);
        if (byte < 0) {
            out->size = start;
            return buf_append(out, text, n);
        }
        char one = (char)byte;
        int r = buf_append(out, &one, 1);
        if (r < 0)
            return r;
    }
    return 0;
}

static int add_token(struct reader *r, uint32_t id, const char *text, size_t n, unsigned flags)
{
    struct tokenizer *t = r->t;
    size_t at = t->bytes.size;

    if (append_token_bytes(&t->bytes, text, n) < 0)
        return fail_oom(r->f);
    t->token[id] = (struct token){
        .at = (uint32_t)at, .n = (uint32_t)(t->bytes.size - at), .flags = (uint8_t)(flags | TOKEN_EXISTS)};
    return 0;
}

/* ---- model */

static int read_vocab(struct reader *r, json_t *vocab, size_t n_added)
{
    uint32_t largest = 0, id = 0;
    const char *text;
    json_t *value;

    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return bad(r, "model: 'vocab' is not an object with entries");
    json_object_foreach(vocab, text, value) {
        int e = get_id(r, value, "model: 'vocab'", &id);
        if (e < 0)
            return e;
        largest = MAX(largest, id);
    }
    /* Room for the added tokens too; their ids follow at most the largest here or the number of entries. */
    size_t room = (size_t)largest + 1 + n_added;
    r->t->token = calloc(room, sizeof(*r->t->token));
    r->t->size = largest + 1;
    if (!r->t->token)
        return fail_oom(r->f);
    json_object_foreach(vocab, text, value) {
        id = (uint32_t)json_integer_value(value);
        if (r->t->token[id].flags)
            return bad(r, "model: 'vocab' has the id %u twice", id);
        int e = add_token(r, id, text, strlen(text), 0);
        if (e < 0)
            return e;
        if (map_put(r->ids, text, strlen(text), (void *)((uintptr_t)id + 1)) < 0)
            return fail_oom(r->f);
    }
    return 0;
}

static bool find_id(const struct reader *r, const char *text, size_t n, uint32_t *ret)
{
    uintptr_t id = (uintptr_t)map_get(r->ids, text, n);

    if (id == 0)
        return false;
    *ret = (uint32_t)(id - 1);
    return true;
}

/* Every byte that valid UTF-8 can contain needs a token: text would be lost without a word otherwise. */
static int find_byte_tokens(struct reader *r)
{
    for (unsigned b = 0; b < 256; b++)
        r->byte_token[b] = BPE_NO_TOKEN;
    for (uint32_t c = 0; c < 0x200; c++) {
        char text[4];
        int byte = byte_of_character(c);
        if (byte >= 0 && !find_id(r, text, utf8_encode(c, text), &r->byte_token[byte]) && byte != 0xc0 && byte != 0xc1 &&
            byte < 0xf5)
            return bad(r, "model: 'vocab' has no entry for the byte 0x%02x", (unsigned)byte);
    }
    return 0;
}

/* The two sides of a merge, written "a b" or ["a", "b"]. */
static bool merge_sides(const json_t *merge, const char *side[2], size_t n[2])
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *s = json_array_get(merge, i);
            if (!json_is_string(s))
                return false;
            side[i] = json_string_value(s);
            n[i] = json_string_length(s);
        }
        return true;
    }
    const char *text = json_string_value(merge), *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' ') || strncmp(text, "#version", 8) == 0)
        return false;
    side[0] = text;
    n[0] = (size_t)(space - text);
    side[1] = space + 1;
    n[1] = strlen(space + 1);
    return true;
}

static int read_merge(struct reader *r, const json_t *json, size_t rank, struct buf *joined, struct bpe_merge *ret)
{
    const char *side[2];
    size_t n[2];

    if (!merge_sides(json, side, n))
        return bad(r, "model: merge %zu is not two entries", rank);
    buf_clear(joined);
    if (buf_append(joined, side[0], n[0]) < 0 || buf_append(joined, side[1], n[1]) < 0)
        return fail_oom(r->f);
    if (!find_id(r, side[0], n[0], &ret->left) || !find_id(r, side[1], n[1], &ret->right) ||
        !find_id(r, joined->data, joined->size, &ret->result))
        return bad(r, "model: merge %zu has a part or a result that is not in 'vocab'", rank);
    return 0;
}

static int read_merges(struct reader *r, const json_t *merges)
{
    size_t n = json_array_size(merges);
    _cleanup_free_ struct bpe_merge *merge = calloc(n + 1, sizeof(*merge));
    _cleanup_buf_ struct buf joined = BUF_INIT;
    uint32_t at = 0;
    int e = merge ? 0 : fail_oom(r->f);

    if (!json_is_array(merges) || n >= TOKEN_IDS_MAX)
        return bad(r, "model: 'merges' is not a list of at most %u", TOKEN_IDS_MAX - 1);
    for (size_t i = 0; e == 0 && i < n; i++)
        e = read_merge(r, json_array_get(merges, i), i, &joined, &merge[i]);
    if (e < 0)
        return e;
    e = bpe_new(r->byte_token, merge, (uint32_t)n, &r->t->bpe, &at);
    return e == -EEXIST ? bad(r, "model: merge %u is there twice", at) : e < 0 ? fail_oom(r->f) : 0;
}

static int read_model(struct reader *r, json_t *model, size_t n_added)
{
    static const char *const keys[] = {"type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix",
                                       "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", NULL};
    static const char *const off[] = {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                      "fuse_unk", "byte_fallback", "ignore_merges"};
    int e = 0;

    if (strcmp(string_of(model, "type"), "BPE") != 0)
        return bad(r, "the model's type is '%.60s', expected 'BPE'", string_of(model, "type"));
    e = check_keys(r, model, "model", keys);
    for (size_t i = 0; e == 0 && i < ELEMENTS(off); i++)
        e = check_off(r, model, "model", off[i]);
    if (e == 0)
        e = read_vocab(r, json_object_get(model, "vocab"), n_added);
    if (e == 0)
        e = find_byte_tokens(r);
    return e < 0 ? e : read_merges(r, json_object_get(model, "merges"));
}

/* ---- added tokens */

static int check_added_flags(struct reader *r, json_t *added, const char *what)
{
    static const char *const keys[] = {"id",     "content",    "single_word", "lstrip",
                                       "rstrip", "normalized", "special",     NULL};
    int e = check_keys(r, added, what, keys);

    if (e == 0)
        e = check_off(r, added, what, "single_word");
    if (e == 0)
        e = check_off(r, added, what, "lstrip");
    return e < 0 ? e : check_off(r, added, what, "rstrip");
}

/* The library ignores the ids of this list: a text that the vocabulary has keeps that id, others are numbered on. A file
 * that says something else would be read differently there and here. */
static int added_id(struct reader *r, const json_t *added, const char *what, uint32_t *next, uint32_t *ret)
{
    const char *text = json_string_value(json_object_get(added, "content"));
    uint32_t expected = *next;
    int e = get_id(r, json_object_get(added, "id"), what, ret);

    if (e < 0)
        return e;
    bool known = find_id(r, text, strlen(text), &expected);
    if (*ret != expected)
        return bad(r, "%s has the id %u, expected %u", what, *ret, expected);
    if (!known && *ret < r->t->size && r->t->token[*ret].flags)
        return bad(r, "%s has the id %u of another entry", what, *ret);
    *next = MAX(*next, *ret + 1);
    return 0;
}

static int read_added_token(struct reader *r, json_t *added, size_t i, uint32_t *next)
{
    const json_t *content = json_object_get(added, "content");
    const char *text = json_string_value(content);
    bool special = false, normalized = false;
    uint32_t id = 0;
    char what[48];

    snprintf(what, sizeof(what), "entry %zu of 'added_tokens'", i);
    if (!text || *text == '\0' || json_string_length(content) > ADDED_BYTES_MAX)
        return bad(r, "%s: 'content' is not a string of 1 to %d bytes", what, ADDED_BYTES_MAX);
    int e = check_added_flags(r, added, what);
    if (e == 0)
        e = get_bool(r, added, what, "special", false, &special);
    if (e == 0)
        e = get_bool(r, added, what, "normalized", !special, &normalized);
    if (e == 0)
        e = added_id(r, added, what, next, &id);
    if (e == 0)
        e = add_token(r, id, text, strlen(text), TOKEN_ADDED | (special ? TOKEN_SPECIAL : 0));
    if (e < 0)
        return e;
    r->t->size = MAX(r->t->size, id + 1);
    e = added_put(r->t->added[normalized], text, strlen(text), id);
    return e == -EEXIST ? bad(r, "%s is there twice", what) : e < 0 ? fail_oom(r->f) : 0;
}

static int read_added(struct reader *r, json_t *list)
{
    size_t i;
    json_t *added;
    uint32_t next = (uint32_t)map_size(r->ids);

    if (added_new(&r->t->added[0]) < 0 || added_new(&r->t->added[1]) < 0)
        return fail_oom(r->f);
    json_array_foreach(list, i, added) {
        int e = read_added_token(r, added, i, &next);
        if (e < 0)
            return e;
    }
    return 0;
}

/* ---- the way of the text */

static int check_normalizer(struct reader *r, const json_t *normalizer)
{
    if (is_nothing(normalizer) || (strcmp(string_of(normalizer, "type"), "Sequence") == 0 &&
                                   is_nothing(json_object_get(normalizer, "normalizers"))))
        return 0;
    return bad(r, "a normalizer of the type '%.60s' is not supported", string_of(normalizer, "type"));
}

static int add_split(struct reader *r, const char *regex, size_t n, bool literal)
{
    struct tokenizer *t = r->t;

    if (t->n_splits >= SPLITS_MAX)
        return bad(r, "there are more than %d pre-tokenizers", SPLITS_MAX);
    int e = literal ? pattern_new_literal(regex, n, &t->split[t->n_splits], r->f)
                    : pattern_new(regex, n, &t->split[t->n_splits], r->f);
    if (e < 0) {
        fail_prefix(r->f, "pre-tokenizer %u", t->n_splits);
        return e;
    }
    t->n_splits++;
    return 0;
}

/* With "Isolated" matches and what is between them are pieces alike, so that 'invert' changes nothing. */
static int read_split(struct reader *r, json_t *split)
{
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    json_t *pattern = json_object_get(split, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *literal = json_object_get(pattern, "String");
    int e = check_keys(r, split, "pre-tokenizer Split", keys);

    if (e < 0)
        return e;
    if (strcmp(string_of(split, "behavior"), "Isolated") != 0)
        return bad(r, "pre-tokenizer Split: the behavior '%.60s' is not supported, only 'Isolated'",
                   string_of(split, "behavior"));
    if (json_object_size(pattern) != 1 || !(json_is_string(regex) || json_is_string(literal)))
        return bad(r, "pre-tokenizer Split: 'pattern' is neither one Regex nor one String");
    return regex ? add_split(r, json_string_value(regex), json_string_length(regex), false)
                 : add_split(r, json_string_value(literal), json_string_length(literal), true);
}

/* 'trim_offsets' is about where tokens were in the text, not which. */
static int read_byte_level(struct reader *r, json_t *byte_level)
{
    static const char own_split[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
    const char *what = "pre-tokenizer ByteLevel";
    bool prefix = false, split = false;
    int e = check_keys(r, byte_level, what, keys);

    if (e == 0)
        e = get_bool(r, byte_level, what, "add_prefix_space", true, &prefix);
    if (e == 0)
        e = get_bool(r, byte_level, what, "use_regex", true, &split);
    if (e < 0)
        return e;
    if (prefix)
        return bad(r, "%s: 'add_prefix_space' is set, which is not supported", what);
    return split ? add_split(r, own_split, sizeof(own_split) - 1, false) : 0;
}

/* Splits, then ByteLevel once, as the last. */
static int read_pre_tokenizer(struct reader *r, json_t *pre)
{
    json_t *list = json_object_get(pre, "pretokenizers");
    bool sequence = strcmp(string_of(pre, "type"), "Sequence") == 0;
    size_t n = sequence ? json_array_size(list) : 1;

    for (size_t i = 0; i < n; i++) {
        json_t *one = sequence ? json_array_get(list, i) : pre;
        const char *type = string_of(one, "type");
        bool last = i + 1 == n, byte_level = strcmp(type, "ByteLevel") == 0;
        if (!byte_level && strcmp(type, "Split") != 0)
            return bad(r, "a pre-tokenizer of the type '%.60s' is not supported", type);
        if (byte_level != last)
            return bad(r, "the last pre-tokenizer, and no other, must be ByteLevel");
        int e = byte_level ? read_byte_level(r, one) : read_split(r, one);
        if (e < 0)
            return e;
    }
    return n > 0 ? 0 : bad(r, "there is no pre-tokenizer; expected ByteLevel");
}

/* Post-processors that only add special tokens (which encoding here never does by itself) or shift offsets. */
static int check_post_processor(struct reader *r, const json_t *post)
{
    const char *type = string_of(post, "type");

    if (is_nothing(post) || strcmp(type, "ByteLevel") == 0 || strcmp(type, "TemplateProcessing") == 0)
        return 0;
    return bad(r, "a post-processor of the type '%.60s' is not supported", type);
}

static int check_top(struct reader *r, json_t *top)
{
    static const char *const keys[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                       "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    const char *decoder = string_of(json_object_get(top, "decoder"), "type");
    int e;

    if (!json_is_object(top))
        return bad(r, "it is not a JSON object");
    e = check_keys(r, top, "the file", keys);
    if (e == 0)
        e = check_off(r, top, "the file", "truncation");
    if (e == 0)
        e = check_off(r, top, "the file", "padding");
    if (e == 0)
        e = check_normalizer(r, json_object_get(top, "normalizer"));
    if (e == 0)
        e = check_post_processor(r, json_object_get(top, "post_processor"));
    if (e == 0 && strcmp(decoder, "ByteLevel") != 0)
        e = bad(r, "the decoder's type is '%.60s', expected 'ByteLevel'", decoder);
    return e;
}

static int read_top(struct reader *r, json_t *top)
{
    json_t *added = json_object_get(top, "added_tokens");
    int e = check_top(r, top);

    if (e == 0 && !is_nothing(added) && !json_is_array(added))
        e = bad(r, "'added_tokens' is not a list");
    if (e == 0)
        e = read_pre_tokenizer(r, json_object_get(top, "pre_tokenizer"));
    if (e == 0)
        e = read_model(r, json_object_get(top, "model"), json_array_size(added));
    return e < 0 ? e : read_added(r, added);
}

int tokenizer_parse(const char *json, size_t size, struct tokenizer **ret, struct fail *f)
{
    _cleanup_(reader_deinit) struct reader r = {.f = f};
    json_auto_t *top = NULL;
    json_error_t error;

    r.t = calloc(1, sizeof(*r.t));
    if (!r.t || map_new(&r.ids) < 0)
        return fail_oom(f);
    top = size > FILE_BYTES_MAX ? NULL : json_loadb(json, size, JSON_REJECT_DUPLICATES, &error);
    if (size > FILE_BYTES_MAX)
        return bad(&r, "tokenizer.json is %zu bytes long, at most %zu are accepted", size, FILE_BYTES_MAX);
    if (!top)
        return bad(&r, "tokenizer.json, line %d: %s", error.line, error.text);
    int e = read_top(&r, top);
    if (e < 0) {
        fail_prefix(f, "tokenizer.json");
        return e;
    }
    *ret = TAKE_PTR(r.t);
    return 0;
}

int tokenizer_read(int dir_fd, struct tokenizer **ret, struct fail *f)
{
    _cleanup_free_ char *json = NULL;
    size_t size = 0;
    int r = fd_read_file(dir_fd, "tokenizer.json", FILE_BYTES_MAX, &json, &size, f);

    return r < 0 ? r : tokenizer_parse(json, size, ret, f);
}
