/* SPDX-License-Identifier: MIT */
/* See safetensors.h. Everything here comes from a file that nobody has vouched for. */
#include "engine/safetensors.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/size.h"
#include "engine/json.h"

#define LENGTH_BYTES 8 /* a little-endian u64 before the header */
#define NAME_MAX_BYTES 256

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [DTYPE_BF16] = {"BF16", 2}, [DTYPE_F32] = {"F32", 4},         [DTYPE_I64] = {"I64", 8},
    [DTYPE_I8] = {"I8", 1},     [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E8M0] = {"F8_E8M0", 1},
};

const char *dtype_name(enum tensor_dtype t)
{
    return dtypes[t].name;
}

size_t dtype_bytes(enum tensor_dtype t)
{
    return dtypes[t].bytes;
}

const char *shape_show(const uint64_t *dim, uint32_t n_dims, char ret[SHAPE_SHOWN])
{
    size_t n = 0;

    ret[n++] = '[';
    for (uint32_t i = 0; i < n_dims; i++)
        n += (size_t)snprintf(ret + n, SHAPE_SHOWN - n, "%s%llu", i ? ", " : "", (unsigned long long)dim[i]);
    strcpy(ret + n, "]");
    return ret;
}

void safetensors_deinit(struct safetensors *s)
{
    free(s->tensors);
    free(s->names);
    *s = SAFETENSORS_NULL;
}

/* ---------------------------------------------------------------- one tensor */

static int bad(struct fail *f, int err, const char *code, const char *file, const char *tensor, const char *found,
               const char *expected)
{
    fail_set(f, err, code, "%s: tensor %s: found %s, expected %s", file, tensor, found, expected);
    fail_field(f, tensor);
    return -err;
}

static int read_dtype(const json_t *o, const char *file, struct tensor *t, struct fail *f)
{
    const json_t *j = json_object_get(o, "dtype");
    const char *s = json_string_value(j);
    char shown[JSON_SHOWN];

    for (size_t i = 0; s && i < ELEMENTS(dtypes); i++)
        if (strcmp(s, dtypes[i].name) == 0) {
            t->dtype = (enum tensor_dtype)i;
            return 0;
        }
    return bad(f, EINVAL, "BAD_TENSOR", file, t->name, json_show(j, shown),
               "a dtype of BF16, F32, I64, I8, F8_E4M3 and F8_E8M0");
}

static int read_shape(const json_t *o, const char *file, struct tensor *t, struct fail *f)
{
    const json_t *list = json_object_get(o, "shape");
    char shown[MAX(JSON_SHOWN, SHAPE_SHOWN)];
    uint64_t bytes = dtype_bytes(t->dtype);

    if (!json_is_array(list) || json_array_size(list) > ELEMENTS(t->dim))
        return bad(f, EINVAL, "BAD_TENSOR", file, t->name, json_show(list, shown), "a shape of at most 4 numbers");
    t->n_dims = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < t->n_dims; i++) {
        const json_t *j = json_array_get(list, i);
        if (!json_is_integer(j) || json_integer_value(j) < 0)
            return bad(f, EINVAL, "BAD_TENSOR", file, t->name, json_show(j, shown), "a shape of whole numbers");
        t->dim[i] = (uint64_t)json_integer_value(j);
    }
    for (uint32_t i = 0; i < t->n_dims; i++)
        if (__builtin_mul_overflow(bytes, t->dim[i], &bytes) || bytes > INT64_MAX)
            return bad(f, EOVERFLOW, "SHAPE_OVERFLOW", file, t->name, shape_show(t->dim, t->n_dims, shown),
                       "a shape of less than 2^63 bytes");
    t->bytes = bytes;
    return 0;
}

/* data_offsets: [begin, end), from the beginning of the data. */
static int read_offsets(const json_t *o, const char *file, uint64_t data_start, uint64_t data_bytes, struct tensor *t,
                        struct fail *f)
{
    const json_t *list = json_object_get(o, "data_offsets");
    const json_t *b = json_array_get(list, 0), *e = json_array_get(list, 1);
    char found[96], expected[96], shown[JSON_SHOWN];

    if (json_array_size(list) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return bad(f, EINVAL, "BAD_OFFSETS", file, t->name, json_show(list, shown), "two whole numbers as data_offsets");
    json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    snprintf(found, sizeof(found), "data_offsets %lld to %lld", (long long)begin, (long long)end);
    snprintf(expected, sizeof(expected), "0 <= begin <= end <= %llu, where the file ends", (unsigned long long)data_bytes);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
        return bad(f, EINVAL, "BAD_OFFSETS", file, t->name, found, expected);
    if ((uint64_t)(end - begin) != t->bytes) {
        snprintf(expected, sizeof(expected), "%llu bytes, which dtype and shape need", (unsigned long long)t->bytes);
        return bad(f, EINVAL, "BAD_OFFSETS", file, t->name, found, expected);
    }
    t->offset = data_start + (uint64_t)begin;
    return 0;
}

static int check_name(const char *key, const char *file, struct fail *f)
{
    char shown[JSON_SHOWN];
    const size_t n = strlen(key);
    bool ok = n > 0 && n <= NAME_MAX_BYTES;

    for (size_t i = 0; ok && i < n; i++)
        ok = key[i] > 0x20 && key[i] <= 0x7e;
    if (ok)
        return 0;
    return fail_set(f, EINVAL, "BAD_TENSOR", "%s: tensor name '%s': expected 1 to %d printable ASCII characters", file,
                    text_show(key, n, shown, sizeof(shown)), NAME_MAX_BYTES);
}

/* ---------------------------------------------------------------- all of them */

static int by_offset(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;
    uint64_t x_end = x->offset + x->bytes, y_end = y->offset + y->bytes;

    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    return x_end < y_end ? -1 : x_end > y_end; /* empty ones first */
}

static int check_cover(const struct safetensors *s, uint64_t data_start, uint64_t data_bytes, const char *file,
                       struct fail *f)
{
    uint64_t at = data_start;
    char found[96], expected[96];

    for (size_t i = 0; i < s->n; i++) {
        const struct tensor *t = &s->tensors[i];
        if (t->offset != at) {
            snprintf(found, sizeof(found), "%s: begin %llu", t->offset < at ? "an overlap" : "a gap",
                     (unsigned long long)(t->offset - data_start));
            snprintf(expected, sizeof(expected), "%llu, where the tensor before ends",
                     (unsigned long long)(at - data_start));
            return bad(f, EINVAL, "BAD_OFFSETS", file, t->name, found, expected);
        }
        at += t->bytes;
    }
    if (at != data_start + data_bytes)
        return fail_set(f, EINVAL, "BAD_OFFSETS", "%s: its tensors end at byte %llu, expected %llu, the file's end", file,
                        (unsigned long long)at, (unsigned long long)(data_start + data_bytes));
    return 0;
}

static int allocate(json_t *root, struct safetensors *s, struct fail *f)
{
    size_t n = json_object_size(root), name_bytes = 0;
    const char *key;
    json_t *value;

    json_object_foreach(root, key, value)
        name_bytes += strlen(key) + 1;
    s->tensors = calloc(n ? n : 1, sizeof(*s->tensors));
    s->names = malloc(name_bytes ? name_bytes : 1);
    return s->tensors && s->names ? 0 : fail_oom(f);
}

int safetensors_parse(const char *header, size_t size, uint64_t data_start, uint64_t data_bytes, const char *file,
                      struct safetensors *ret, struct fail *f)
{
    _cleanup_json_ json_t *root = NULL;
    _cleanup_safetensors_ struct safetensors s = SAFETENSORS_NULL;
    const char *key;
    json_t *o;
    char shown[JSON_SHOWN];
    int r;

    if ((r = json_parse_object(header, size, file, &root, f)) < 0 || (r = allocate(root, &s, f)) < 0)
        return r;
    char *name = s.names;
    json_object_foreach(root, key, o) {
        struct tensor *t = &s.tensors[s.n];
        if ((r = check_name(key, file, f)) < 0)
            return r;
        if (!json_is_object(o))
            return fail_set(f, EINVAL, "CONFIG", "%s: key %s: found %s, expected an object", file, key,
                            json_show(o, shown));
        if (strcmp(key, "__metadata__") == 0)
            continue;
        t->name = name;
        name = stpcpy(name, key) + 1;
        if ((r = read_dtype(o, file, t, f)) < 0 || (r = read_shape(o, file, t, f)) < 0 ||
            (r = read_offsets(o, file, data_start, data_bytes, t, f)) < 0)
            return r;
        s.n++;
    }
    qsort(s.tensors, s.n, sizeof(*s.tensors), by_offset);
    r = check_cover(&s, data_start, data_bytes, file, f);
    if (r < 0)
        return r;
    *ret = s;
    s = SAFETENSORS_NULL;
    return 0;
}

int safetensors_read_header(int fd, uint64_t file_bytes, const char *file, char **ret, size_t *ret_size, struct fail *f)
{
    uint64_t n;

    if (file_bytes < LENGTH_BYTES)
        return fail_set(f, EFBIG, "HEADER_TOO_LARGE", "%s: %llu bytes, too short for a safetensors header", file,
                        (unsigned long long)file_bytes);
    int r = fd_pread_full(fd, &n, sizeof(n), 0);
    if (r < 0)
        return fail_set(f, -r, "IO_ERROR", "%s: byte 0: cannot be read: %s", file, strerror(-r));
    n = le64toh(n);
    uint64_t limit = MIN(file_bytes - LENGTH_BYTES, (uint64_t)CHECKPOINT_HEADER_MAX);
    if (n > limit) {
        fail_set(f, EFBIG, "HEADER_TOO_LARGE", "%s: its header says it is %llu bytes long, expected at most %llu", file,
                 (unsigned long long)n, (unsigned long long)limit);
        fail_limit(f, (int64_t)limit, (int64_t)MIN(n, (uint64_t)INT64_MAX));
        return -EFBIG;
    }
    _cleanup_free_ char *text = malloc((size_t)n + 1);
    if (!text)
        return fail_oom(f);
    r = fd_pread_full(fd, text, (size_t)n, LENGTH_BYTES);
    if (r < 0)
        return fail_set(f, -r, "IO_ERROR", "%s: header: cannot be read: %s", file, strerror(-r));
    text[n] = '\0';
    *ret = TAKE_PTR(text);
    *ret_size = (size_t)n;
    return 0;
}
