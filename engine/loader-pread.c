/* SPDX-License-Identifier: MIT */
/* The way without io_uring (see loader.h): threads that each take the next run, pread it and unpack it. */
#include <errno.h>
#include <time.h>

#include "base/fd.h"
#include "engine/loader.h"

struct crew {
    struct loader *l;
    atomic_size_t next;      /* read to take */
    pthread_mutex_t lock;
    pthread_cond_t finished;
    uint32_t running;
};

static void take_reads(struct crew *w)
{
    struct loader *l = w->l;
    _cleanup_free_ uint8_t *buffer = malloc(l->buffer_bytes);

    if (!buffer)
        loader_fail(l, ENOMEM, "NO_MEMORY", "out of memory for a buffer of %zu bytes", l->buffer_bytes);
    while (!atomic_load(&l->stop)) {
        size_t i = atomic_fetch_add(&w->next, 1);
        if (i >= l->n_reads)
            return;
        const struct load_read *r = &l->reads[i];
        int e = fd_pread_full(l->c->shards[r->shard].fd, buffer, r->bytes, r->offset);
        if (e < 0)
            loader_read_failed(l, r, -e);
        else
            loader_unpack(l, r, buffer);
    }
}

static void *thread_main(void *userdata)
{
    struct crew *w = userdata;

    take_reads(w);
    pthread_mutex_lock(&w->lock);
    w->running--;
    pthread_cond_signal(&w->finished);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Progress is told from here, the calling thread. */
static void wait_for_all(struct crew *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->running > 0) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += LOADER_PROGRESS_USEC * 1000L;
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&w->finished, &w->lock, &t);
        pthread_mutex_unlock(&w->lock);
        loader_progress(w->l, false);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
}

int loader_pread(struct loader *l)
{
    struct crew w = {.l = l, .lock = PTHREAD_MUTEX_INITIALIZER, .finished = PTHREAD_COND_INITIALIZER};
    _cleanup_free_ pthread_t *thread = calloc(l->threads, sizeof(*thread));
    uint32_t started = 0;

    if (!thread)
        return loader_fail(l, ENOMEM, "NO_MEMORY", "out of memory for threads");
    for (; started < l->threads; started++) {
        pthread_mutex_lock(&w.lock);
        w.running++;
        pthread_mutex_unlock(&w.lock);
        if (pthread_create(&thread[started], NULL, thread_main, &w) == 0)
            continue;
        pthread_mutex_lock(&w.lock);
        w.running--;
        pthread_mutex_unlock(&w.lock);
        break;
    }
    if (started == 0)
        take_reads(&w); /* no threads to be had: alone, then */
    wait_for_all(&w);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    return -l->fail.err;
}
