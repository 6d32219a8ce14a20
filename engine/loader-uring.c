/* SPDX-License-Identifier: MIT */
/*
 * The way through io_uring (see loader.h). The calling thread keeps reads in flight; each finished buffer goes to a
 * worker, which unpacks it and gives the buffer back. Buffers and files are registered where the kernel lets us.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <liburing.h>

#include "base/size.h"
#include "engine/loader.h"

#define BUFFERS_BYTES (64u << 20) /* of all, unless single groups of rows are larger */

struct slot {
    uint8_t *memory;            /* [buffer_bytes], aligned */
    const struct load_read *read;
    uint64_t offset;            /* where the read really begins: aligned under O_DIRECT */
    size_t want, got;           /* bytes from there */
    struct slot *next;          /* in one of the lists */
};

struct ring {
    struct loader *l;
    struct io_uring io;
    bool direct, files_registered;
    unsigned n_slots, n_registered; /* the first so many buffers are registered */
    uint8_t *memory;
    size_t memory_bytes;
    int *fds;                   /* [n_shards] */
    struct slot slots[LOADER_IN_FLIGHT];
    unsigned in_flight;
    size_t next_read;

    /* shared with the workers, under lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot *free_list, *full_list, **full_tail;
    unsigned unpacking;         /* slots in full_list or in a worker's hands */
    bool closing;
};

/* ---------------------------------------------------------------- files */

/* This loader's own O_DIRECT descriptors, of the very files whose headers were read. 1: the file system has none. */
static int open_direct(struct ring *g, uint32_t i)
{
    const struct shard *s = &g->l->c->shards[i];
    struct stat a, b;

    g->fds[i] = openat(g->l->c->dir_fd, s->name, O_RDONLY | O_CLOEXEC | O_DIRECT | O_NONBLOCK);
    if (g->fds[i] < 0 && errno == EINVAL)
        return 1;
    if (g->fds[i] < 0)
        return loader_fail(g->l, errno, "IO_ERROR", "%s: cannot be opened: %s", s->name, strerror(errno));
    if (fstat(g->fds[i], &a) < 0 || fstat(s->fd, &b) < 0 || a.st_dev != b.st_dev || a.st_ino != b.st_ino)
        return loader_fail(g->l, EIO, "HASH_MISMATCH", "%s: was replaced while it was being loaded", s->name);
    return 0;
}

static int open_files(struct ring *g)
{
    const struct checkpoint *c = g->l->c;
    int r = 0;

    g->fds = malloc(c->n_shards * sizeof(*g->fds));
    if (!g->fds)
        return loader_fail(g->l, ENOMEM, "NO_MEMORY", "out of memory for %u shards", c->n_shards);
    for (uint32_t i = 0; i < c->n_shards; i++)
        g->fds[i] = g->direct ? -1 : c->shards[i].fd;
    for (uint32_t i = 0; i < c->n_shards && g->direct && r == 0; i++)
        r = open_direct(g, i);
    if (r == 0)
        g->files_registered = io_uring_register_files(&g->io, g->fds, c->n_shards) == 0;
    return r;
}

/* ---------------------------------------------------------------- buffers */

static int make_buffers(struct ring *g)
{
    struct loader *l = g->l;
    size_t n = MAX(BUFFERS_BYTES / l->buffer_bytes, (size_t)2);

    g->n_slots = (unsigned)MIN(MIN(n, (size_t)LOADER_IN_FLIGHT), l->n_reads);
    if (!size_mul(l->buffer_bytes, g->n_slots, &g->memory_bytes))
        return loader_fail(l, ENOMEM, "NO_MEMORY", "out of memory for buffers");
    void *p = mmap(NULL, g->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return loader_fail(l, ENOMEM, "NO_MEMORY", "out of memory for buffers of %zu bytes", g->memory_bytes);
    g->memory = p;
    for (unsigned i = 0; i < g->n_slots; i++) {
        g->slots[i] = (struct slot){.memory = g->memory + i * l->buffer_bytes, .next = g->free_list};
        g->free_list = &g->slots[i];
    }
    return 0;
}

/* Registered memory counts as locked: where RLIMIT_MEMLOCK is small register fewer, or none. */
static void register_buffers(struct ring *g)
{
    struct iovec v[LOADER_IN_FLIGHT];

    for (unsigned i = 0; i < g->n_slots; i++)
        v[i] = (struct iovec){.iov_base = g->slots[i].memory, .iov_len = g->l->buffer_bytes};
    for (unsigned n = g->n_slots; n > 0 && g->n_registered == 0; n /= 2)
        if (io_uring_register_buffers(&g->io, v, n) == 0)
            g->n_registered = n;
}

/* ---------------------------------------------------------------- workers */

static struct slot *take_full(struct ring *g)
{
    pthread_mutex_lock(&g->lock);
    while (!g->full_list && !g->closing)
        pthread_cond_wait(&g->changed, &g->lock);
    struct slot *s = g->full_list;
    if (s && !(g->full_list = s->next))
        g->full_tail = &g->full_list;
    pthread_mutex_unlock(&g->lock);
    return s;
}

static void unpack(struct ring *g, struct slot *s)
{
    loader_unpack(g->l, s->read, s->memory + (s->read->offset - s->offset));
    pthread_mutex_lock(&g->lock);
    s->next = g->free_list;
    g->free_list = s;
    g->unpacking--;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void *worker(void *userdata)
{
    struct ring *g = userdata;
    struct slot *s;

    while ((s = take_full(g)))
        unpack(g, s);
    return NULL;
}

/* ---------------------------------------------------------------- reads */

static void submit(struct ring *g, struct slot *s)
{
    struct io_uring_sqe *e = io_uring_get_sqe(&g->io); /* the queue has room for every slot */
    const uint32_t shard = s->read->shard;
    const unsigned index = (unsigned)(s - g->slots), n = (unsigned)(s->want - s->got);
    const int fd = g->files_registered ? (int)shard : g->fds[shard];

    if (index < g->n_registered)
        io_uring_prep_read_fixed(e, fd, s->memory + s->got, n, s->offset + s->got, (int)index);
    else
        io_uring_prep_read(e, fd, s->memory + s->got, n, s->offset + s->got);
    if (g->files_registered)
        e->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(e, s);
    g->in_flight++;
}

static struct slot *take_free(struct ring *g)
{
    pthread_mutex_lock(&g->lock);
    struct slot *s = g->free_list;
    if (s)
        g->free_list = s->next;
    pthread_mutex_unlock(&g->lock);
    return s;
}

static void start_reads(struct ring *g)
{
    const size_t align = g->direct ? LOADER_ALIGN : 1;
    struct slot *s;

    while (g->next_read < g->l->n_reads && !atomic_load(&g->l->stop) && (s = take_free(g))) {
        const struct load_read *r = &g->l->reads[g->next_read++];
        s->read = r;
        s->offset = r->offset / align * align;
        s->want = align_up(r->offset - s->offset + r->bytes, align);
        s->got = 0;
        submit(g, s);
    }
}

/* One completion. Returns 1 when O_DIRECT turned out not to work here. */
static int finish_read(struct ring *g, struct slot *s, int res)
{
    const size_t needed = (size_t)(s->read->offset - s->offset) + s->read->bytes;

    g->in_flight--;
    if (res == -EINVAL && g->direct)
        return 1;
    if (res == -EINTR || res == -EAGAIN) {
        submit(g, s);
        return 0;
    }
    if (res < 0)
        return loader_read_failed(g->l, s->read, -res);
    s->got += (size_t)res;
    if (s->got >= needed) {
        pthread_mutex_lock(&g->lock);
        s->next = NULL;
        *g->full_tail = s;
        g->full_tail = &s->next;
        g->unpacking++;
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
        return 0;
    }
    if (g->direct) /* an end that is not aligned is the file's */
        res -= (int)(s->got % LOADER_ALIGN), s->got -= s->got % LOADER_ALIGN;
    if (res <= 0)
        return loader_read_failed(g->l, s->read, ENODATA);
    submit(g, s);
    return 0;
}

/* Everything is with the workers: wait until one gives a buffer back, or all are done. */
static void wait_for_workers(struct ring *g)
{
    pthread_mutex_lock(&g->lock);
    if (g->unpacking > 0 && (!g->free_list || g->next_read == g->l->n_reads || atomic_load(&g->l->stop)))
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static bool is_done(struct ring *g)
{
    pthread_mutex_lock(&g->lock);
    bool done = g->in_flight == 0 && g->unpacking == 0 && (g->next_read == g->l->n_reads || atomic_load(&g->l->stop));
    pthread_mutex_unlock(&g->lock);
    return done;
}

static int reap(struct ring *g)
{
    struct io_uring_cqe *e;
    int r = io_uring_submit_and_wait(&g->io, 1), not_direct = 0;

    if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
        return loader_fail(g->l, -r, "IO_ERROR", "io_uring: reads cannot be submitted: %s", strerror(-r));
    while (io_uring_peek_cqe(&g->io, &e) == 0) {
        struct slot *s = io_uring_cqe_get_data(e);
        int res = e->res;
        io_uring_cqe_seen(&g->io, e);
        not_direct |= finish_read(g, s, res) == 1;
    }
    return not_direct;
}

/* A failed or cancelled load, too, waits for what is in flight: the kernel still writes to the buffers. */
static int run(struct ring *g)
{
    bool not_direct = false;

    while (!is_done(g)) {
        if (!not_direct)
            start_reads(g);
        if (g->in_flight > 0) {
            int r = reap(g);
            if (r < 0)
                return r;
            if (r == 1) {
                not_direct = true;
                g->next_read = g->l->n_reads;
            }
        } else {
            wait_for_workers(g);
        }
        loader_progress(g->l, false);
    }
    if (g->l->fail.err)
        return -g->l->fail.err;
    return not_direct;
}

static int run_with_workers(struct ring *g)
{
    pthread_t thread[64];
    unsigned n = 0;

    while (n < MIN(g->l->threads, (uint32_t)ELEMENTS(thread)) && pthread_create(&thread[n], NULL, worker, g) == 0)
        n++;
    int r = n > 0 ? run(g) : 1; /* without threads the other way can do it alone */
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    while (n > 0)
        pthread_join(thread[--n], NULL);
    return r;
}

static void ring_deinit(struct ring *g)
{
    io_uring_queue_exit(&g->io);
    for (uint32_t i = 0; g->direct && g->fds && i < g->l->c->n_shards; i++)
        closep(&g->fds[i]);
    free(g->fds);
    if (g->memory && g->in_flight == 0) /* else the kernel may still write to it: better a leak */
        munmap(g->memory, g->memory_bytes);
}

int loader_uring(struct loader *l, bool direct)
{
    struct ring g = {.l = l, .direct = direct, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

    if (io_uring_queue_init(LOADER_IN_FLIGHT, &g.io, 0) < 0)
        return 1; /* not permitted, not in this kernel, or no memory for it */
    g.full_tail = &g.full_list;
    atomic_store(&l->done_bytes, 0);
    int r = open_files(&g);
    if (r == 0)
        r = make_buffers(&g);
    if (r == 0) {
        register_buffers(&g);
        r = run_with_workers(&g);
    }
    ring_deinit(&g);
    return r;
}
