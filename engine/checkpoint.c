/* SPDX-License-Identifier: MIT */
/* See checkpoint.h. Shards are opened once, here; who reads data later uses these fds or compares inodes with them. */
#include "engine/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <openssl/evp.h>

#include "base/fd.h"
#include "base/map.h"
#include "base/owner.h"
#include "base/size.h"
#include "engine/json.h"
#include "engine/safetensors.h"
#include "engine/tensors.h"

#define INDEX_FILE "model.safetensors.index.json"
#define SINGLE_FILE "model.safetensors"
#define INDEX_BYTES_MAX (64u << 20)
#define CONFIG_BYTES_MAX (4u << 20)
#define PREFIX "model."

/* The public part first; the rest is for this file only. */
struct opened {
    struct checkpoint public;
    struct map *by_name;      /* of struct tensor */
    EVP_MD_CTX *sha;          /* while opening */
    json_t *weight_map;       /* while opening; NULL: a single file */
    uid_t owner;              /* of the directory */
};

/* ---------------------------------------------------------------- files */

static int open_checked(const struct opened *o, const char *name, int *ret_fd, uint64_t *ret_size, struct fail *f)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    int r = fd_open_regular(o->public.dir_fd, name, 0, &fd, ret_size, f);
    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: %s", name, strerror(errno));
    r = owner_check(&st, o->owner, name, f);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int read_checked(const struct opened *o, const char *name, size_t max, char **ret, size_t *ret_size,
                        struct fail *f)
{
    _cleanup_close_ int fd = -1;
    uint64_t size;

    int r = open_checked(o, name, &fd, &size, f);
    if (r < 0)
        return r;
    if (size > max) {
        fail_set(f, EFBIG, "FILE_TOO_LARGE", "%s: %llu bytes, at most %zu are accepted", name,
                 (unsigned long long)size, max);
        fail_limit(f, (int64_t)max, (int64_t)size);
        return -EFBIG;
    }
    _cleanup_free_ char *data = malloc((size_t)size + 1);
    if (!data)
        return fail_oom(f);
    r = fd_pread_full(fd, data, (size_t)size, 0);
    if (r < 0)
        return fail_set(f, -r, "IO_ERROR", "%s: cannot be read: %s", name, strerror(-r));
    data[size] = '\0';
    *ret = TAKE_PTR(data);
    *ret_size = (size_t)size;
    return 0;
}

static int open_directory(struct opened *o, const char *directory, struct fail *f)
{
    struct stat st;
    char shown[200];

    text_show(directory, strlen(directory), shown, sizeof(shown));
    o->public.dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->public.dir_fd < 0)
        return fail_set(f, errno, errno == ENOENT ? "NOT_FOUND" : errno == EACCES ? "DENIED" : "IO_ERROR",
                        "%s: cannot be opened: %s", shown, strerror(errno));
    if (fstat(o->public.dir_fd, &st) < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: %s", shown, strerror(errno));
    o->owner = st.st_uid;
    return owner_check(&st, st.st_uid, shown, f);
}

/* Files that others read by name later must be trustworthy too; they need not be there. */
static int check_optional(const struct opened *o, const char *name, struct fail *f)
{
    _cleanup_close_ int fd = -1;
    uint64_t size;

    int r = open_checked(o, name, &fd, &size, f);
    return r == -ENOENT ? 0 : r;
}

static int digest(struct opened *o, const void *data, size_t n, struct fail *f)
{
    uint64_t length = n; /* so that borders between parts count */

    if (EVP_DigestUpdate(o->sha, &length, sizeof(length)) == 1 && EVP_DigestUpdate(o->sha, data, n) == 1)
        return 0;
    return fail_set(f, EIO, "INTERNAL", "SHA-256 is not available");
}

static int read_config(struct opened *o, struct fail *f)
{
    _cleanup_free_ char *json = NULL, *generation = NULL;
    size_t size, generation_size = 0;
    int r;

    if ((r = read_checked(o, "config.json", CONFIG_BYTES_MAX, &json, &size, f)) < 0)
        return r;
    r = read_checked(o, "generation_config.json", CONFIG_BYTES_MAX, &generation, &generation_size, f);
    if (r < 0 && r != -ENOENT)
        return r;
    if ((r = model_config_parse(json, size, generation, generation_size, &o->public.config, f)) < 0)
        return r;
    if ((r = check_optional(o, "tokenizer.json", f)) < 0 || (r = check_optional(o, "tokenizer_config.json", f)) < 0)
        return r;
    return digest(o, json, size, f);
}

/* ---------------------------------------------------------------- which shards there are */

static int check_shard_name(const char *s, struct fail *f)
{
    char shown[JSON_SHOWN];
    size_t n = strlen(s);
    bool ok = n > 0 && n < 256 && s[0] != '.' && !strstr(s, "..");

    for (size_t i = 0; i < n && ok; i++)
        ok = s[i] > 0x20 && s[i] <= 0x7e && s[i] != '/';
    if (ok)
        return 0;
    return fail_set(f, EINVAL, "CONFIG", INDEX_FILE ": weight_map: shard '%s': expected a file name in the same directory",
                    text_show(s, n, shown, sizeof(shown)));
}

static int add_shard(struct opened *o, struct map *seen, const char *name, struct fail *f)
{
    struct checkpoint *c = &o->public;

    if (map_get(seen, name, strlen(name)))
        return 0;
    int r = check_shard_name(name, f);
    if (r < 0)
        return r;
    if (c->n_shards == CHECKPOINT_SHARDS_MAX) {
        fail_set(f, E2BIG, "CONFIG", INDEX_FILE ": more than %d shards", CHECKPOINT_SHARDS_MAX);
        return -E2BIG;
    }
    if ((c->n_shards & (c->n_shards - 1)) == 0) { /* grow at powers of two */
        struct shard *more = realloc(c->shards, sizeof(*more) * (c->n_shards ? c->n_shards * 2 : 1));
        if (!more)
            return fail_oom(f);
        c->shards = more;
    }
    struct shard *s = &c->shards[c->n_shards];
    *s = (struct shard){.name = strdup(name), .fd = -1};
    if (!s->name)
        return fail_oom(f);
    c->n_shards++;
    return map_put(seen, name, strlen(name), c) < 0 ? fail_oom(f) : 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct shard *)a)->name, ((const struct shard *)b)->name);
}

static int read_index(struct opened *o, struct fail *f)
{
    _cleanup_free_ char *text = NULL;
    _cleanup_json_ json_t *root = NULL;
    _cleanup_map_ struct map *seen = NULL;
    size_t size;
    const char *tensor;
    json_t *shard;

    int r = map_new(&seen);
    if (r < 0)
        return fail_oom(f);
    r = read_checked(o, INDEX_FILE, INDEX_BYTES_MAX, &text, &size, f);
    if (r == -ENOENT)
        return add_shard(o, seen, SINGLE_FILE, f);
    if (r < 0 || (r = json_parse_object(text, size, INDEX_FILE, &root, f)) < 0)
        return r;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        return fail_set(f, EINVAL, "CONFIG", INDEX_FILE ": key weight_map: expected an object of tensors and their shards");
    json_object_foreach(map, tensor, shard) {
        if (!json_is_string(shard))
            return fail_set(f, EINVAL, "CONFIG", INDEX_FILE ": key weight_map: expected only strings as values");
        if ((r = add_shard(o, seen, json_string_value(shard), f)) < 0)
            return r;
    }
    o->weight_map = json_incref(map);
    qsort(o->public.shards, o->public.n_shards, sizeof(*o->public.shards), by_name);
    return 0;
}

/* ---------------------------------------------------------------- what is in them */

/* The index must say that this tensor is in this shard. */
static int check_indexed(const struct opened *o, const struct tensor *t, const char *shard, struct fail *f)
{
    if (!o->weight_map)
        return 0;
    const char *said = json_string_value(json_object_get(o->weight_map, t->name));
    if (said && strcmp(said, shard) == 0)
        return 0;
    fail_set(f, EINVAL, "UNKNOWN_TENSOR", "%s: tensor %s: " INDEX_FILE " says it is in %s", shard, t->name,
             said ? said : "no shard");
    fail_field(f, t->name);
    return -EINVAL;
}

static int add_tensors(struct opened *o, uint32_t shard, const struct safetensors *s, struct fail *f)
{
    struct checkpoint *c = &o->public;
    int r;

    struct tensor *all = realloc(c->tensors, (c->n_tensors + s->n + 1) * sizeof(*all));
    if (!all)
        return fail_oom(f);
    c->tensors = all;
    for (size_t i = 0; i < s->n; i++) {
        struct tensor *t = &all[c->n_tensors + i];
        *t = s->tensors[i];
        t->shard = shard;
        if ((r = check_indexed(o, t, c->shards[shard].name, f)) < 0)
            return r;
        if (strncmp(t->name, PREFIX, strlen(PREFIX)) == 0)
            t->name += strlen(PREFIX);
        c->tensor_bytes += t->bytes;
    }
    c->n_tensors += s->n;
    return 0;
}

static int read_shard(struct opened *o, uint32_t index, struct fail *f)
{
    struct shard *s = &o->public.shards[index];
    _cleanup_safetensors_ struct safetensors header = SAFETENSORS_NULL;
    _cleanup_free_ char *text = NULL;
    size_t size;
    int r;

    if ((r = open_checked(o, s->name, &s->fd, &s->file_bytes, f)) < 0 ||
        (r = safetensors_read_header(s->fd, s->file_bytes, s->name, &text, &size, f)) < 0)
        return r;
    uint64_t start = sizeof(uint64_t) + size;
    if ((r = safetensors_parse(text, size, start, s->file_bytes - start, s->name, &header, f)) < 0 ||
        (r = add_tensors(o, index, &header, f)) < 0)
        return r;
    s->tensor_names = TAKE_PTR(header.names);
    if ((r = digest(o, s->name, strlen(s->name), f)) < 0 ||
        (r = digest(o, &s->file_bytes, sizeof(s->file_bytes), f)) < 0)
        return r;
    return digest(o, text, size, f);
}

/* Every tensor found, by name; and everything that the index promises was found. */
static int name_tensors(struct opened *o, struct fail *f)
{
    struct checkpoint *c = &o->public;
    const char *key;
    json_t *shard;

    for (size_t i = 0; i < c->n_tensors; i++) {
        struct tensor *t = &c->tensors[i];
        int r = map_put(o->by_name, t->name, strlen(t->name), t);
        if (r == -ENOMEM)
            return fail_oom(f);
        if (r < 0) {
            fail_set(f, EINVAL, "BAD_TENSOR", "%s: tensor %s: is in the checkpoint twice, with and without \"" PREFIX "\"",
                     c->shards[t->shard].name, t->name);
            fail_field(f, t->name);
            return -EINVAL;
        }
    }
    json_object_foreach(o->weight_map, key, shard) {
        const char *name = strncmp(key, PREFIX, strlen(PREFIX)) == 0 ? key + strlen(PREFIX) : key;
        char shown[96];
        if (checkpoint_find(c, name))
            continue;
        text_show(key, strlen(key), shown, sizeof(shown));
        fail_set(f, ENOENT, "MISSING_TENSOR", "%s: tensor %s: " INDEX_FILE " says it is there, but it is not",
                 json_string_value(shard), shown);
        fail_field(f, shown);
        return -ENOENT;
    }
    return 0;
}

/* ---------------------------------------------------------------- against the configuration */

struct expectation {
    const struct checkpoint *c;
    struct fail *f;
    size_t found;
};

static int expect(struct expectation *e, const char *name, const struct stored *s)
{
    const struct tensor *t = checkpoint_find(e->c, name);
    char found[SHAPE_SHOWN], expected[SHAPE_SHOWN];

    if (!t) {
        fail_set(e->f, ENOENT, "MISSING_TENSOR", "tensor %s: in no shard, expected %s %s by config.json", name,
                 dtype_name(s->dtype), shape_show(s->dim, s->n_dims, expected));
        fail_field(e->f, name);
        return -ENOENT;
    }
    e->found++;
    if (t->dtype == s->dtype && t->n_dims == s->n_dims && memcmp(t->dim, s->dim, s->n_dims * sizeof(*s->dim)) == 0)
        return 0;
    fail_set(e->f, EINVAL, "BAD_TENSOR", "%s: tensor %s: found %s %s, expected %s %s by config.json",
             e->c->shards[t->shard].name, name, dtype_name(t->dtype), shape_show(t->dim, t->n_dims, found),
             dtype_name(s->dtype), shape_show(s->dim, s->n_dims, expected));
    fail_field(e->f, name);
    return -EINVAL;
}

static int expect_item(const struct tensor_item *item, void *userdata)
{
    struct stored data = item_stored_data(item);

    int r = expect(userdata, item->name, &data);
    if (r < 0 || !item->scale)
        return r;
    struct stored scale = item_stored_scale(item);
    return expect(userdata, item->scale, &scale);
}

static int note_item(const struct tensor_item *item, void *userdata)
{
    struct map *m = userdata;
    int r = map_put(m, item->name, strlen(item->name), m);

    if (r == 0 && item->scale)
        r = map_put(m, item->scale, strlen(item->scale), m);
    return r;
}

/* Something is there that is not expected: find out what, for the message. All expected ones exist, so their number is
 * bounded by the files' size. */
static int name_unknown(const struct checkpoint *c, struct fail *f)
{
    _cleanup_map_ struct map *expected = NULL;

    if (map_new(&expected) < 0 || tensors_walk(c->config, NULL, note_item, expected) < 0)
        return fail_oom(f);
    for (size_t i = 0; i < c->n_tensors; i++) {
        const struct tensor *t = &c->tensors[i];
        if (tensor_is_copy(t->name) || map_get(expected, t->name, strlen(t->name)))
            continue;
        fail_set(f, EINVAL, "UNKNOWN_TENSOR", "%s: tensor %s: config.json describes a model without it",
                 c->shards[t->shard].name, t->name);
        fail_field(f, t->name);
        return -EINVAL;
    }
    return fail_set(f, EIO, "INTERNAL", "tensors were miscounted");
}

static int check_tensors(const struct checkpoint *c, struct fail *f)
{
    struct expectation e = {.c = c, .f = f};
    size_t copies = 0;

    int r = tensors_walk(c->config, NULL, expect_item, &e);
    if (r < 0)
        return r;
    for (size_t i = 0; i < c->n_tensors; i++)
        copies += tensor_is_copy(c->tensors[i].name);
    return e.found + copies == c->n_tensors ? 0 : name_unknown(c, f);
}

/* ---------------------------------------------------------------- the whole */

static struct opened *opened_free(struct opened *o)
{
    if (!o)
        return NULL;
    struct checkpoint *c = &o->public;
    for (uint32_t i = 0; i < c->n_shards; i++) {
        closep(&c->shards[i].fd);
        free(c->shards[i].name);
        free(c->shards[i].tensor_names);
    }
    free(c->shards);
    free(c->tensors);
    model_config_free(c->config);
    closep(&c->dir_fd);
    map_free(o->by_name);
    EVP_MD_CTX_free(o->sha);
    json_decref(o->weight_map);
    free(o);
    return NULL;
}
DEFINE_CLEANUP(struct opened *, opened_free)

static struct opened *opened_new(void)
{
    _cleanup_(opened_freep) struct opened *o = calloc(1, sizeof(*o));

    if (!o)
        return NULL;
    o->public.dir_fd = -1;
    o->sha = EVP_MD_CTX_new();
    if (!o->sha || EVP_DigestInit_ex(o->sha, EVP_sha256(), NULL) != 1 || map_new(&o->by_name) < 0)
        return NULL;
    return TAKE_PTR(o);
}

int checkpoint_open(const char *directory, struct checkpoint **ret, struct fail *f)
{
    _cleanup_(opened_freep) struct opened *o = opened_new();
    int r;

    if (!o)
        return fail_oom(f);
    if ((r = open_directory(o, directory, f)) < 0 || (r = read_config(o, f)) < 0 || (r = read_index(o, f)) < 0)
        return r;
    for (uint32_t i = 0; i < o->public.n_shards; i++)
        if ((r = read_shard(o, i, f)) < 0)
            return r;
    if ((r = name_tensors(o, f)) < 0 || (r = check_tensors(&o->public, f)) < 0)
        return r;
    if (EVP_DigestFinal_ex(o->sha, o->public.digest, NULL) != 1)
        return fail_set(f, EIO, "INTERNAL", "SHA-256 is not available");
    EVP_MD_CTX_free(TAKE_PTR(o->sha));
    json_decref(TAKE_PTR(o->weight_map));
    *ret = &TAKE_PTR(o)->public;
    return 0;
}

struct checkpoint *checkpoint_free(struct checkpoint *c)
{
    if (c)
        opened_free(CONTAINER_OF(c, struct opened, public));
    return NULL;
}

const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    const struct opened *o = (const struct opened *)(const void *)c; /* the public part is its first member */

    return map_get(o->by_name, name, strlen(name));
}
