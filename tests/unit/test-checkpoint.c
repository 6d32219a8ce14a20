/* SPDX-License-Identifier: MIT */
/*
 * Whole checkpoint directories: copies of models/nano, changed in one way each. Every truncation and header bit flip that
 * is tried must end in an error or in a checkpoint that opens and loads; a signal fails the test by itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "engine/json.h"
#include "engine/weights.h"
#include "tests/unit/fake-backend.h"

#define SHARD "model-00001-of-00001.safetensors"
#define INDEX "model.safetensors.index.json"
#define FILE_MAX (64u << 20)

struct copy {
    char path[256];
    int dir_fd;
    char *shard;         /* the good bytes */
    size_t shard_bytes;
    uint64_t header;     /* its length */
};

static const char *const files[] = {"config.json", "generation_config.json", INDEX, "tokenizer.json", SHARD};

static void write_file(int dir_fd, const char *name, const void *data, size_t n)
{
    _cleanup_close_ int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(fd_write_full(fd, data, n), 0);
}

static int setup(void **state)
{
    char nano[4096];
    struct copy *c = calloc(1, sizeof(*c));
    const char *tmp = getenv("TMPDIR");

    assert_non_null(c);
    umask(022);
    snprintf(nano, sizeof(nano), "%s/models/nano", getenv("top_srcdir"));
    _cleanup_close_ int from = open(nano, O_RDONLY | O_DIRECTORY);
    assert_true(from >= 0);
    snprintf(c->path, sizeof(c->path), "%s/dsv4-checkpoint.XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(c->path));
    c->dir_fd = open(c->path, O_RDONLY | O_DIRECTORY);
    for (size_t i = 0; i < ELEMENTS(files); i++) {
        free(c->shard); /* the last one stays */
        assert_int_equal(fd_read_file(from, files[i], FILE_MAX, &c->shard, &c->shard_bytes, NULL), 0);
        write_file(c->dir_fd, files[i], c->shard, c->shard_bytes);
    }
    memcpy(&c->header, c->shard, 8);
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct copy *c = *state;

    for (size_t i = 0; i < ELEMENTS(files); i++)
        unlinkat(c->dir_fd, files[i], 0);
    unlinkat(c->dir_fd, "blob", 0);
    assert_int_equal(rmdir(c->path), 0);
    close(c->dir_fd);
    free(c->shard);
    free(c);
    return 0;
}

static void assert_refused(const struct copy *c, const char *code, const char *says)
{
    struct checkpoint *k = NULL;
    struct fail f = FAIL_INIT;

    int r = checkpoint_open(c->path, &k, &f);
    if (r >= 0)
        fail_msg("accepted, expected %s", code);
    assert_int_equal(r, -f.err);
    if (strcmp(f.code, code) != 0 || !strstr(f.message, says))
        fail_msg("'%s: %s', expected %s saying '%s'", f.code, f.message, code, says);
}

static void assert_opens(const struct copy *c)
{
    struct checkpoint *k = NULL;
    struct fail f = FAIL_INIT;

    if (checkpoint_open(c->path, &k, &f) < 0)
        fail_msg("%s: %s", f.code, f.message);
    checkpoint_free(k);
}

/* The shard with another header; `pad` bytes more of data. */
static void write_shard(const struct copy *c, const char *header, size_t n, size_t pad)
{
    _cleanup_close_ int fd = openat(c->dir_fd, SHARD, O_WRONLY | O_TRUNC | O_CLOEXEC);
    const uint64_t length = n;
    char *zero = calloc(pad + 1, 1);

    assert_int_equal(fd_write_full(fd, &length, 8), 0);
    assert_int_equal(fd_write_full(fd, header, n), 0);
    assert_int_equal(fd_write_full(fd, c->shard + 8 + c->header, c->shard_bytes - 8 - c->header), 0);
    assert_int_equal(fd_write_full(fd, zero, pad), 0);
    free(zero);
}

static int truncate_shard(const struct copy *c, size_t n)
{
    _cleanup_close_ int fd = openat(c->dir_fd, SHARD, O_WRONLY | O_CLOEXEC);
    return ftruncate(fd, (off_t)n);
}

static void put_back(const struct copy *c)
{
    write_file(c->dir_fd, SHARD, c->shard, c->shard_bytes);
}

static json_t *header_json(const struct copy *c)
{
    json_t *j = json_loadb(c->shard + 8, c->header, 0, NULL);
    assert_non_null(j);
    return j;
}

static void write_header_json(const struct copy *c, json_t *j, size_t pad)
{
    char *text = json_dumps(j, JSON_COMPACT);
    assert_non_null(text);
    write_shard(c, text, strlen(text), pad);
    free(text);
}

static void write_json(const struct copy *c, const char *name, json_t *j)
{
    char *text = json_dumps(j, 0);
    assert_non_null(text);
    write_file(c->dir_fd, name, text, strlen(text));
    free(text);
}

static json_t *read_json(const struct copy *c, const char *name)
{
    char *text;
    size_t n;

    assert_int_equal(fd_read_file(c->dir_fd, name, FILE_MAX, &text, &n, NULL), 0);
    json_t *j = json_loadb(text, n, 0, NULL);
    assert_non_null(j);
    free(text);
    return j;
}

/* ---------------------------------------------------------------- good ones */

static void nano_opens(void **state)
{
    const struct copy *c = *state;
    struct checkpoint *k = NULL, *again = NULL;

    assert_int_equal(checkpoint_open(c->path, &k, NULL), 0);
    assert_int_equal(checkpoint_open(c->path, &again, NULL), 0);
    assert_int_equal(k->n_shards, 1);
    assert_int_equal(k->tensor_bytes, 4816254);
    assert_memory_equal(k->digest, again->digest, sizeof(k->digest));
    const struct tensor *t = checkpoint_find(k, "layers.2.ffn.experts.3.w2.weight");
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_I8);
    assert_int_equal(t->dim[1], 64);
    assert_null(checkpoint_find(k, "layers.2.ffn.experts.8.w2.weight"));
    assert_null(checkpoint_find(k, ""));
    checkpoint_free(again);

    json_t *config = read_json(c, "config.json");
    json_object_set_new(config, "swiglu_limit", json_real(9));
    write_json(c, "config.json", config);
    json_decref(config);
    assert_int_equal(checkpoint_open(c->path, &again, NULL), 0);
    assert_memory_not_equal(k->digest, again->digest, sizeof(k->digest));
    checkpoint_free(again);
    checkpoint_free(k);
}

static void prefix_and_copies_are_accepted(void **state)
{
    const struct copy *c = *state;
    json_t *old = header_json(c), *new = json_object(), *index = json_object(), *map = json_object(), *v, *copy;
    json_int_t end = (json_int_t)(c->shard_bytes - 8 - c->header);
    const char *name;
    char with[300];

    json_object_foreach(old, name, v) {
        snprintf(with, sizeof(with), "%s%s", strcmp(name, "__metadata__") == 0 ? "" : "model.", name);
        json_object_set(new, with, v);
        json_object_set_new(map, with, json_string(SHARD));
    }
    json_object_del(map, "__metadata__");
    copy = json_pack("{s:s, s:[i,i], s:[I,I]}", "dtype", "I8", "shape", 2, 5, "data_offsets", end, end + 10);
    json_object_set_new(new, "model.mtp.0.emb.tok_emb.weight", copy);
    json_object_set_new(map, "model.mtp.0.emb.tok_emb.weight", json_string(SHARD));
    json_object_set_new(index, "weight_map", map);
    write_json(c, INDEX, index);
    write_header_json(c, new, 10);
    assert_opens(c);

    struct checkpoint *k = NULL;
    struct model_weights *w = NULL;
    struct load_options o = {.threads = 1};
    assert_int_equal(checkpoint_open(c->path, &k, NULL), 0);
    assert_non_null(checkpoint_find(k, "embed.weight"));
    assert_int_equal(weights_load(k, &fake_ops, NULL, &o, &w, NULL), 0);
    weights_free(w);
    checkpoint_free(k);

    json_object_set(new, "embed.weight", json_object_get(new, "model.embed.weight"));
    write_header_json(c, new, 10);
    assert_refused(c, "BAD_OFFSETS", "overlap");
    json_decref(old), json_decref(new), json_decref(index);
}

static void a_single_file_needs_no_index(void **state)
{
    const struct copy *c = *state;

    assert_int_equal(unlinkat(c->dir_fd, INDEX, 0), 0);
    assert_refused(c, "NOT_FOUND", "model.safetensors");
    assert_int_equal(renameat(c->dir_fd, SHARD, c->dir_fd, "model.safetensors"), 0);
    assert_opens(c);
    assert_int_equal(renameat(c->dir_fd, "model.safetensors", c->dir_fd, SHARD), 0);
}

/* ---------------------------------------------------------------- tensors and the index */

static void tensors_must_be_those_of_the_config(void **state)
{
    const struct copy *c = *state;
    static const struct {
        const char *key;
        int value;
        const char *code, *says;
    } cases[] = {
        {"n_routed_experts", 9, "BAD_TENSOR", "found BF16 [8, 128], expected BF16 [9, 128]"},
        {"num_hidden_layers", 5, "UNKNOWN_TENSOR", "layers.5."},
        {"num_nextn_predict_layers", 0, "UNKNOWN_TENSOR", "mtp.0."},
        {"num_nextn_predict_layers", 2, "MISSING_TENSOR", "tensor mtp.1."},
        {"num_hash_layers", 3, "MISSING_TENSOR", "layers.2.ffn.gate.tid2eid"},
        {"q_lora_rank", 96, "BAD_TENSOR", "layers.0.attn.wq_a.weight: found F8_E4M3 [128, 128], expected F8_E4M3 [96, 128]"},
        {"vocab_size", 16777216, "BAD_TENSOR", "embed.weight"},
        {"index_n_heads", 8, "BAD_TENSOR", "indexer.wq_b.weight"},
    };

    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        json_t *good = read_json(c, "config.json"), *config = json_deep_copy(good);
        json_object_set_new(config, cases[i].key, json_integer(cases[i].value));
        if (strcmp(cases[i].key, "num_hidden_layers") == 0)
            json_array_remove(json_object_get(config, "compress_ratios"), (size_t)cases[i].value);
        write_json(c, "config.json", config);
        assert_refused(c, cases[i].code, cases[i].says);
        write_json(c, "config.json", good);
        json_decref(config), json_decref(good);
    }
    json_t *config = read_json(c, "config.json");
    json_object_del(config, "expert_dtype"); /* then experts are FP8 */
    write_json(c, "config.json", config);
    assert_refused(c, "BAD_TENSOR", "found I8 [128, 64], expected F8_E4M3 [128, 128]");
    json_decref(config);
}

static void index_and_shards_must_agree(void **state)
{
    const struct copy *c = *state;
    json_t *good = read_json(c, INDEX), *index = json_deep_copy(good), *map = json_object_get(index, "weight_map");
    static const char *const names[] = {("../" SHARD), "/etc/passwd", "a/b", "..", "", ".hidden", "a\nb"};

    json_object_set_new(map, "one.more", json_string(SHARD));
    write_json(c, INDEX, index);
    assert_refused(c, "MISSING_TENSOR", "one.more");
    json_object_del(map, "one.more");
    json_object_del(map, "head.weight");
    write_json(c, INDEX, index);
    assert_refused(c, "UNKNOWN_TENSOR", "head.weight");
    for (size_t i = 0; i < ELEMENTS(names); i++) {
        json_object_set_new(map, "head.weight", json_string(names[i]));
        write_json(c, INDEX, index);
        assert_refused(c, "CONFIG", "same directory");
    }
    json_object_set_new(map, "head.weight", json_string("missing.safetensors"));
    write_json(c, INDEX, index);
    assert_refused(c, "NOT_FOUND", "missing.safetensors");
    json_object_set_new(map, "head.weight", json_integer(7));
    write_json(c, INDEX, index);
    assert_refused(c, "CONFIG", "strings");
    json_object_del(index, "weight_map");
    write_json(c, INDEX, index);
    assert_refused(c, "CONFIG", "weight_map");
    write_file(c->dir_fd, INDEX, "{\"weight_map\":{},\"weight_map\":{}}", 33);
    assert_refused(c, "CONFIG", "line 1");
    json_decref(index), json_decref(good);
}

/* ---------------------------------------------------------------- files */

static void only_regular_files_are_read(void **state)
{
    const struct copy *c = *state;

    for (size_t i = 0; i < ELEMENTS(files); i++) {
        assert_int_equal(renameat(c->dir_fd, files[i], c->dir_fd, "blob"), 0);
        assert_int_equal(mkfifoat(c->dir_fd, files[i], 0644), 0);
        assert_refused(c, "NOT_REGULAR_FILE", files[i]);
        assert_int_equal(unlinkat(c->dir_fd, files[i], 0), 0);
        assert_int_equal(mkdirat(c->dir_fd, files[i], 0755), 0);
        assert_refused(c, "NOT_REGULAR_FILE", files[i]);
        assert_int_equal(unlinkat(c->dir_fd, files[i], AT_REMOVEDIR), 0);
        assert_int_equal(symlinkat("/dev/zero", c->dir_fd, files[i]), 0);
        assert_refused(c, "NOT_REGULAR_FILE", files[i]);
        assert_int_equal(unlinkat(c->dir_fd, files[i], 0), 0);
        assert_int_equal(renameat(c->dir_fd, "blob", c->dir_fd, files[i]), 0);
    }
    assert_opens(c);
}

static void files_others_may_write_are_refused(void **state)
{
    const struct copy *c = *state;

    for (size_t i = 0; i < ELEMENTS(files); i++) {
        assert_int_equal(fchmodat(c->dir_fd, files[i], 0646, 0), 0);
        assert_refused(c, "UNSAFE_OWNER", files[i]);
        assert_int_equal(fchmodat(c->dir_fd, files[i], 0644, 0), 0);
    }
    assert_int_equal(fchmod(c->dir_fd, 0777), 0);
    assert_refused(c, "UNSAFE_OWNER", "0777");
    assert_int_equal(fchmod(c->dir_fd, 01777), 0); /* sticky: nobody else can replace a file */
    assert_opens(c);
    assert_int_equal(fchmod(c->dir_fd, 0755), 0);
}

/* Needs root, to give files away. */
static void owners_are_checked(void **state)
{
    const struct copy *c = *state;

    if (geteuid() != 0)
        skip();
    assert_int_equal(fchownat(c->dir_fd, SHARD, 12345, 12345, 0), 0);
    assert_refused(c, "UNSAFE_OWNER", "owned by uid 12345");
    assert_int_equal(fchown(c->dir_fd, 12345, 12345), 0); /* somebody's checkout, as seen by root */
    assert_opens(c);
    assert_int_equal(fchmodat(c->dir_fd, SHARD, 0664, 0), 0); /* umask 002, private group */
    assert_opens(c);
    assert_int_equal(fchownat(c->dir_fd, SHARD, 12345, 54321, 0), 0);
    assert_int_equal(fchmodat(c->dir_fd, SHARD, 0664, 0), 0);
    assert_refused(c, "UNSAFE_OWNER", "group 54321");
    assert_int_equal(fchown(c->dir_fd, 0, 0), 0);
}

static void symlinks_lead_to_files_of_the_same_rule(void **state)
{
    const struct copy *c = *state;

    assert_int_equal(renameat(c->dir_fd, SHARD, c->dir_fd, "blob"), 0);
    assert_int_equal(symlinkat("blob", c->dir_fd, SHARD), 0);
    assert_opens(c);
    assert_int_equal(fchmodat(c->dir_fd, "blob", 0666, 0), 0);
    assert_refused(c, "UNSAFE_OWNER", SHARD);
    assert_int_equal(unlinkat(c->dir_fd, SHARD, 0), 0);
    assert_int_equal(symlinkat("nowhere", c->dir_fd, SHARD), 0);
    assert_refused(c, "NOT_FOUND", SHARD);
}

static void a_directory_is_needed(void **state)
{
    struct copy *c = *state;
    struct copy other = *c;

    assert_true(strlen(c->path) < 200);
    snprintf(other.path, sizeof(other.path), "%.200s/nothing", c->path);
    assert_refused(&other, "NOT_FOUND", "nothing");
    snprintf(other.path, sizeof(other.path), "%.200s/config.json", c->path);
    assert_refused(&other, "IO_ERROR", "config.json");
}

/* ---------------------------------------------------------------- damage */

/* Opens and, if that works, loads. 0: fine; negative: refused with a code and a sentence. */
static int try(const struct copy *c)
{
    _cleanup_(checkpoint_freep) struct checkpoint *k = NULL;
    _cleanup_(weights_freep) struct model_weights *w = NULL;
    struct load_options o = {.threads = 1, .no_uring = true};
    struct fail f = FAIL_INIT;

    int r = checkpoint_open(c->path, &k, &f);
    if (r == 0)
        r = weights_load(k, &fake_ops, NULL, &o, &w, &f);
    if (r < 0 && (f.err != -r || !f.code[0] || !f.message[0]))
        fail_msg("refused with %d, but '%s: %s'", r, f.code, f.message);
    return r;
}

static void every_truncation_is_refused(void **state)
{
    const struct copy *c = *state;
    size_t tried = 0;

    /* Densely where the header is, then in strides; always one byte short. */
    for (size_t n = c->shard_bytes - 1;; n -= MIN(n, n < 64 ? 1u : n < c->header + 64 ? 499u : 40009u)) {
        assert_int_equal(truncate_shard(c, n), 0);
        if (try(c) >= 0)
            fail_msg("accepted when cut at %zu", n);
        tried++;
        if (n == 0)
            break;
    }
    print_message("%zu truncations\n", tried);
}

static void header_bit_flips_do_no_harm(void **state)
{
    const struct copy *c = *state;
    const size_t bits = (size_t)(8 + c->header) * 8, wanted = 2500;
    _cleanup_close_ int fd = openat(c->dir_fd, SHARD, O_WRONLY);
    size_t tried = 0, harmless = 0;

    /* All of the length, then a stride that is odd and so meets each bit of a byte. */
    for (size_t bit = 0; bit < bits; bit += bit < 64 ? 1 : (bits / wanted | 1)) {
        const size_t byte = bit / 8;
        char flipped = (char)(c->shard[byte] ^ (1 << bit % 8));
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)byte), 1);
        harmless += try(c) == 0;
        tried++;
        assert_int_equal(pwrite(fd, &c->shard[byte], 1, (off_t)byte), 1);
    }
    print_message("%zu bit flips, %zu harmless\n", tried, harmless);
    assert_int_equal(try(c), 0);
    assert_true(tried > 2000 && harmless < tried / 20);
}

static void depth_is_limited(void **state)
{
    const struct copy *c = *state;
    const size_t depth = 10000;
    char *text = malloc(2 * depth + 8);

    assert_non_null(text);
    memcpy(text, "{\"a\":", 5);
    memset(text + 5, '[', depth);
    memset(text + 5 + depth, ']', depth);
    text[5 + 2 * depth] = '}';
    write_shard(c, text, 2 * depth + 6, 0);
    assert_refused(c, "CONFIG", "depth");
    write_file(c->dir_fd, "config.json", text, 2 * depth + 6);
    assert_refused(c, "CONFIG", "config.json: line 1");
    free(text);
}

/* ---------------------------------------------------------------- contents */

static void spoil(const struct copy *c, const char *tensor, uint64_t at, const void *bytes, size_t n)
{
    json_t *h = header_json(c);
    json_t *offsets = json_object_get(json_object_get(h, tensor), "data_offsets");
    _cleanup_close_ int fd = openat(c->dir_fd, SHARD, O_WRONLY);
    uint64_t begin = (uint64_t)json_integer_value(json_array_get(offsets, 0));

    assert_int_equal(pwrite(fd, bytes, n, (off_t)(8 + c->header + begin + at)), n);
    json_decref(h);
}

static void bad_contents_are_refused(void **state)
{
    const struct copy *c = *state;
    static const struct {
        const char *tensor, *bytes;
        uint64_t at;
        size_t n;
    } cases[] = {
        {"layers.1.attn.wq_b.scale", "\xff", 2, 1},                      /* ue8m0 NaN */
        {"layers.4.ffn.experts.2.w1.scale", "\xff", 100, 1},
        {"layers.1.attn.wq_b.weight", "\x7f", 70, 1},                    /* e4m3 NaN */
        {"layers.1.attn.wq_b.weight", "\xff", 65535, 1},
        {"layers.0.attn_norm.weight", "\x80\x7f", 0, 2},                 /* BF16 infinity */
        {"embed.weight", "\xc0\xff", 131070, 2},                         /* BF16 NaN */
        {"layers.2.ffn.gate.bias", "\x00\x00\x80\xff", 4, 4},            /* F32 -infinity */
        {"hc_head_fn", "\x01\x00\x80\x7f", 8, 4},                        /* F32 NaN */
        {"layers.1.ffn.gate.tid2eid", "\x08\0\0\0\0\0\0\0", 16, 8},      /* there are 8 experts */
        {"layers.1.ffn.gate.tid2eid", "\xff\xff\xff\xff\xff\xff\xff\xff", 8184, 8},
        {"layers.1.ffn.gate.tid2eid", "\0\0\0\0\x01\0\0\0", 0, 8},
    };

    for (size_t i = 0; i < ELEMENTS(cases); i++)
        for (int no_uring = 0; no_uring < 2; no_uring++) {
            struct checkpoint *k = NULL;
            struct model_weights *w = NULL;
            struct load_options o = {.no_uring = no_uring};
            struct fail f = FAIL_INIT;
            spoil(c, cases[i].tensor, cases[i].at, cases[i].bytes, cases[i].n);
            assert_int_equal(checkpoint_open(c->path, &k, NULL), 0);
            assert_int_equal(weights_load(k, &fake_ops, NULL, &o, &w, &f), -EINVAL);
            assert_string_equal(f.code, "BAD_TENSOR");
            if (!strstr(f.message, cases[i].tensor) || !strstr(f.message, SHARD))
                fail_msg("'%s' does not name %s", f.message, cases[i].tensor);
            checkpoint_free(k);
            put_back(c);
        }
    assert_int_equal(try(c), 0);
}

/* ---------------------------------------------------------------- changes while loading */

static void a_file_that_shrinks_is_an_error(void **state)
{
    const struct copy *c = *state;

    for (int no_uring = 0; no_uring < 2; no_uring++) {
        struct checkpoint *k = NULL;
        struct model_weights *w = NULL;
        struct load_options o = {.no_uring = no_uring};
        struct fail f = FAIL_INIT;
        assert_int_equal(checkpoint_open(c->path, &k, NULL), 0);
        assert_int_equal(truncate_shard(c, c->shard_bytes / 3), 0);
        assert_int_equal(weights_load(k, &fake_ops, NULL, &o, &w, &f), -EIO);
        assert_string_equal(f.code, "IO_ERROR");
        assert_non_null(strstr(f.message, "the file ends before"));
        assert_non_null(strstr(f.message, SHARD));
        checkpoint_free(k);
        put_back(c);
    }
}

int main(void)
{
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(nano_opens),
        TEST(prefix_and_copies_are_accepted),
        TEST(a_single_file_needs_no_index),
        TEST(tensors_must_be_those_of_the_config),
        TEST(index_and_shards_must_agree),
        TEST(only_regular_files_are_read),
        TEST(files_others_may_write_are_refused),
        TEST(owners_are_checked),
        TEST(symlinks_lead_to_files_of_the_same_rule),
        TEST(a_directory_is_needed),
        TEST(every_truncation_is_refused),
        TEST(header_bit_flips_do_no_harm),
        TEST(depth_is_limited),
        TEST(bad_contents_are_refused),
        TEST(a_file_that_shrinks_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
