/* SPDX-License-Identifier: MIT */
/* See loader.h. What both ways share: which runs to read, what to do with their bytes, failure and progress. */
#include "engine/loader.h"

#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/size.h"

#define THREADS_MAX 64u
#define PACK_BYTES (256u << 10)   /* of a piece to check and pack */
#define POPULATE_MIN (64u << 10)  /* less is not worth a system call */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static uint64_t now_usec(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---------------------------------------------------------------- failure and progress */

int loader_fail(struct loader *l, int err, const char *code, const char *fmt, ...)
{
    va_list ap;

    pthread_mutex_lock(&l->lock);
    if (l->fail.err == 0) {
        va_start(ap, fmt);
        fail_setv(&l->fail, err, code, fmt, ap);
        va_end(ap);
    }
    pthread_mutex_unlock(&l->lock);
    atomic_store(&l->stop, true);
    return -err;
}

int loader_read_failed(struct loader *l, const struct load_read *r, int err)
{
    const char *name = l->c->shards[r->shard].name;
    unsigned long long from = r->offset, to = r->offset + r->bytes;

    if (err == ENODATA)
        return loader_fail(l, EIO, "IO_ERROR", "%s: bytes %llu to %llu: the file ends before; it was %llu bytes long", name,
                           from, to, (unsigned long long)l->c->shards[r->shard].file_bytes);
    return loader_fail(l, err, "IO_ERROR", "%s: bytes %llu to %llu: cannot be read: %s", name, from, to, strerror(err));
}

void loader_progress(struct loader *l, bool last)
{
    struct load_progress p = {.done_bytes = atomic_load(&l->done_bytes), .total_bytes = l->plan->source_bytes};
    uint64_t now = now_usec();

    if (!l->options->progress || (!last && now - l->reported_usec < LOADER_PROGRESS_USEC))
        return;
    l->reported_usec = now;
    p.elapsed_usec = now - l->start_usec;
    if (l->options->progress(&p, l->options->userdata) != 0 && !last)
        loader_fail(l, ECANCELED, "CANCELLED", "loading was cancelled after %llu of %llu bytes",
                    (unsigned long long)p.done_bytes, (unsigned long long)p.total_bytes);
}

/* ---------------------------------------------------------------- bytes to the arena */

static float bf16_to_f32(const uint8_t *s)
{
    uint32_t u = (uint32_t)s[0] << 16 | (uint32_t)s[1] << 24;
    float v;

    memcpy(&v, &u, sizeof(v));
    return v;
}

/* Is there a value among these n bytes that has all bits of the mask? Sixteen bytes at a time. */
#define DEFINE_ANY_HAS(type)                                                                       \
    static bool any_has_##type(const uint8_t *s, size_t n, type mask)                              \
    {                                                                                              \
        typedef type vec __attribute__((vector_size(16), aligned(1), may_alias));                  \
        vec all = mask - (vec){0}, bad = {0};                                                      \
        uint64_t half[2];                                                                          \
        size_t i = 0;                                                                              \
        for (; i + sizeof(vec) <= n; i += sizeof(vec))                                             \
            bad |= (vec)((*(const vec *)(const void *)(s + i) & all) == all);                      \
        memcpy(half, &bad, sizeof(half));                                                          \
        for (; i + sizeof(type) <= n; i += sizeof(type)) {                                         \
            type v;                                                                                \
            memcpy(&v, s + i, sizeof(v));                                                          \
            half[0] |= (v & mask) == mask;                                                         \
        }                                                                                          \
        return half[0] || half[1];                                                                 \
    }
DEFINE_ANY_HAS(uint8_t)
DEFINE_ANY_HAS(uint16_t)
DEFINE_ANY_HAS(uint32_t)

/* Values that are no numbers would spread through every sum. n: bytes. */
static bool all_finite(enum weight_type type, enum weight_part part, const uint8_t *s, size_t n)
{
    if (part == WEIGHT_SCALE)
        return !any_has_uint8_t(s, n, 0xff); /* ue8m0's NaN */
    switch (type) {
    case WEIGHT_FP8:
        return !any_has_uint8_t(s, n, 0x7f); /* e4m3 has NaN, no infinity */
    case WEIGHT_BF16:
        return !any_has_uint16_t(s, n, htole16(0x7f80));
    case WEIGHT_F32:
        return !any_has_uint32_t(s, n, htole32(0x7f800000));
    case WEIGHT_FP4:
        return true;
    }
    return false;
}

static bool unpack_table(const uint8_t *src, size_t n, uint32_t limit, uint32_t *dst)
{
    bool ok = true;

    for (size_t i = 0; i < n; i++) {
        uint64_t v;
        memcpy(&v, src + i * sizeof(v), sizeof(v));
        v = le64toh(v); /* negative ones are huge */
        ok = ok && v < limit;
        dst[i] = (uint32_t)v;
    }
    return ok;
}

/* Pages of the arena at once instead of one fault after the other; only faster (Linux 5.14). What of the part the rows
 * fill is an estimate. */
static void populate(const struct loader *l, const struct weights_part *p, uint32_t row, uint32_t n)
{
    const uintptr_t dst = (uintptr_t)l->arena + p->dst, page = LOADER_ALIGN;
    const uintptr_t from = dst + (uintptr_t)((double)p->dst_bytes * row / p->stored_rows);
    const uintptr_t to = dst + (uintptr_t)((double)p->dst_bytes * (row + n) / p->stored_rows);

    if (to - from >= POPULATE_MIN)
        (void)madvise((void *)(from / page * page), to / page * page - from / page * page, MADV_POPULATE_WRITE);
}

/* Checks and packs a piece at a time, so that it is in the cache for both. */
static bool pack_rows(struct loader *l, const struct weights_part *p, uint32_t row, uint32_t n, const uint8_t *src)
{
    const uint32_t piece = (uint32_t)MAX(PACK_BYTES / p->row_bytes / p->group, (size_t)1) * p->group;

    populate(l, p, row, n);
    while (n > 0) {
        const uint32_t now = MIN(n, piece);
        if (!all_finite(p->type, p->part, src, now * p->row_bytes))
            return false;
        l->ops->pack(l->b, p->type, p->rows, p->cols, p->part, row, now, src, l->arena + p->dst);
        src += now * p->row_bytes;
        row += now;
        n -= now;
    }
    return true;
}

/* Rows row .. row + n - 1 of one stored tensor. False: they hold what they may not. */
static bool unpack_rows(struct loader *l, const struct weights_part *p, uint32_t row, uint32_t n, const uint8_t *src)
{
    const size_t bytes = n * p->row_bytes;
    uint8_t *dst = l->arena + p->dst;

    switch (p->how) {
    case PART_PACK:
        return pack_rows(l, p, row, n, src);
    case PART_BF16: {
        float *out = (float *)(void *)(dst + row * p->row_out_bytes);
        for (size_t i = 0; i < bytes / 2; i++)
            out[i] = bf16_to_f32(src + 2 * i);
        return all_finite(WEIGHT_BF16, WEIGHT_DATA, src, bytes);
    }
    case PART_F32:
        memcpy(dst + row * p->row_out_bytes, src, bytes);
        return all_finite(WEIGHT_F32, WEIGHT_DATA, src, bytes);
    case PART_TABLE:
        return unpack_table(src, bytes / 8, p->limit, (uint32_t *)(void *)(dst + row * p->row_out_bytes));
    default:
        return true;
    }
}

static void bad_contents(struct loader *l, size_t tensor)
{
    const struct tensor *t = &l->c->tensors[tensor];
    const struct weights_part *p = &l->plan->part[tensor];

    if (p->how == PART_TABLE)
        loader_fail(l, EINVAL, "BAD_TENSOR", "%s: tensor %s: an expert's number is out of range, expected 0 to %u",
                    l->c->shards[t->shard].name, t->name, p->limit - 1);
    else
        loader_fail(l, EINVAL, "BAD_TENSOR", "%s: tensor %s: holds NaN or infinity, expected finite numbers",
                    l->c->shards[t->shard].name, t->name);
}

void loader_unpack(struct loader *l, const struct load_read *r, const uint8_t *data)
{
    size_t tensor = r->tensor, left = r->bytes;
    uint32_t row = r->row;

    while (left > 0 && !atomic_load_explicit(&l->stop, memory_order_relaxed)) {
        const struct weights_part *p = &l->plan->part[tensor];
        uint32_t n = (uint32_t)MIN(left / p->row_bytes, (size_t)(p->stored_rows - row));
        if (!unpack_rows(l, p, row, n, data)) {
            bad_contents(l, tensor);
            return;
        }
        data += n * p->row_bytes;
        left -= n * p->row_bytes;
        tensor++;
        row = 0;
    }
    atomic_fetch_add(&l->done_bytes, r->bytes);
}

/* ---------------------------------------------------------------- which runs to read */

/* The next run, from tensor *tensor and its row *row on (a PART_SKIP tensor is never first); moves both past it. */
static struct load_read next_read(const struct loader *l, size_t *tensor, uint32_t *row, size_t limit)
{
    const struct tensor *first = &l->c->tensors[*tensor];
    struct load_read r = {.tensor = *tensor, .row = *row, .shard = first->shard,
                          .offset = first->offset + *row * l->plan->part[*tensor].row_bytes};

    while (*tensor < l->c->n_tensors) {
        const struct weights_part *p = &l->plan->part[*tensor];
        if (p->how == PART_SKIP || l->c->tensors[*tensor].shard != r.shard)
            break;
        size_t fit = (limit - r.bytes) / p->row_bytes, rest = p->stored_rows - *row;
        if (fit < rest) {
            fit = fit / p->group * p->group;
            r.bytes += fit * p->row_bytes;
            *row += (uint32_t)fit;
            break;
        }
        r.bytes += rest * p->row_bytes;
        ++*tensor;
        *row = 0;
    }
    return r;
}

static int list_reads(struct loader *l, size_t limit)
{
    size_t capacity = 0, tensor = 0;
    uint32_t row = 0;

    while (tensor < l->c->n_tensors) {
        if (l->plan->part[tensor].how == PART_SKIP) {
            tensor++;
            continue;
        }
        if (l->n_reads == capacity) {
            capacity = capacity ? capacity * 2 : 64;
            struct load_read *more = reallocarray(l->reads, capacity, sizeof(*more));
            if (!more)
                return -ENOMEM;
            l->reads = more;
        }
        l->reads[l->n_reads++] = next_read(l, &tensor, &row, limit);
    }
    return 0;
}

/* ---------------------------------------------------------------- the whole */

static uint32_t thread_count(uint32_t asked)
{
    cpu_set_t set;

    if (asked == 0)
        asked = sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    return MIN(MAX(asked, 1u), THREADS_MAX);
}

static int run_one_way(struct loader *l)
{
    struct load_options *o = l->options;
    int r = 1;

    if (!o->no_uring) {
        o->used_uring = o->used_direct = true;
        r = loader_uring(l, true);
        if (r == 1) {
            o->used_direct = false;
            r = loader_uring(l, false);
        }
    }
    if (r == 1) {
        o->used_uring = false;
        r = loader_pread(l);
    }
    return r;
}

int loader_run(const struct checkpoint *c, const struct weights_plan *plan, const struct backend_ops *ops,
               struct backend *b, uint8_t *arena, struct load_options *options, struct fail *f)
{
    struct loader l = {.c = c, .plan = plan, .ops = ops, .b = b, .arena = arena, .options = options,
                       .lock = PTHREAD_MUTEX_INITIALIZER, .threads = thread_count(options->threads)};
    const size_t limit = MAX((size_t)LOADER_READ_BYTES, plan->group_bytes_max);

    options->used_uring = options->used_direct = false;
    l.start_usec = l.reported_usec = now_usec();
    if (!size_align(limit, LOADER_ALIGN, &l.buffer_bytes) || !size_add(l.buffer_bytes, 2 * LOADER_ALIGN, &l.buffer_bytes))
        return fail_oom(f);
    int r = list_reads(&l, limit) < 0 ? fail_oom(f) : run_one_way(&l);
    if (r == 0)
        loader_progress(&l, true);
    else if (l.fail.err && f)
        *f = l.fail;
    free(l.reads);
    return r;
}
