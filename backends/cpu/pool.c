/* SPDX-License-Identifier: MIT */
/*
 * One 64-bit word says what there is to do: number of the job above, items left below. An item is taken by a compare
 * and swap of that word, so a thread that comes late to a finished job takes nothing of the next one by mistake: if the
 * swap succeeds the job is the current one, and a job stays current until its last item is done.
 */
#include "backends/cpu/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>

#define CACHE_LINE 64

struct worker {
    struct pool *pool;
    uint32_t thread;
    int cpu; /* -1: not pinned */
    pthread_t id;
};

struct pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t word; /* job << 32 | items left */
    _Alignas(CACHE_LINE) _Atomic uint32_t done; /* items of the current job; the caller sleeps on it */
    _Atomic uint32_t caller_sleeps;
    _Alignas(CACHE_LINE) _Atomic uint32_t wake; /* workers sleep on it */
    _Atomic uint32_t sleepers;
    _Atomic bool stop;

    /* Of the current job; written before word. */
    pool_fn fn;
    void *arg;
    uint32_t n_items;

    bool spin;
    uint32_t threads, started; /* started: workers, one less than threads when all is well */
    struct worker *worker;     /* [threads - 1] */
};

static void futex_wait(_Atomic uint32_t *at, uint32_t seen)
{
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *at, int n)
{
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static uint64_t now_nsec(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Works until no item of the current job is left to take. */
static void work(struct pool *p, uint32_t thread)
{
    uint64_t word = atomic_load(&p->word);
    while ((uint32_t)word) {
        if (!atomic_compare_exchange_weak(&p->word, &word, word - 1))
            continue;
        uint32_t n = p->n_items;
        p->fn(p->arg, n - (uint32_t)word, thread);
        if (atomic_fetch_add(&p->done, 1) + 1 == n && atomic_load(&p->caller_sleeps))
            futex_wake(&p->done, 1);
        word = atomic_load(&p->word);
    }
}

static bool worker_has_news(struct pool *p)
{
    return (uint32_t)atomic_load(&p->word) || atomic_load(&p->stop);
}

static void worker_wait(struct pool *p)
{
    if (p->spin) {
        uint64_t until = now_nsec() + POOL_SPIN_USEC * 1000u;
        do
            for (int i = 0; i < 16; i++) {
                if (worker_has_news(p))
                    return;
                relax();
            }
        while (now_nsec() < until);
    }
    atomic_fetch_add(&p->sleepers, 1);
    uint32_t seen = atomic_load(&p->wake);
    if (!worker_has_news(p))
        futex_wait(&p->wake, seen);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    if (w->cpu >= 0) { /* best effort: unpinned threads compute the same */
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)w->cpu, &set);
        (void)sched_setaffinity(0, sizeof(set), &set);
    }
    while (!atomic_load(&w->pool->stop)) {
        work(w->pool, w->thread);
        worker_wait(w->pool);
    }
    return NULL;
}

static void wake_workers(struct pool *p, uint32_t n)
{
    if (!atomic_load(&p->sleepers))
        return;
    atomic_fetch_add(&p->wake, 1);
    futex_wake(&p->wake, n > INT_MAX ? INT_MAX : (int)n);
}

static void wait_done(struct pool *p, uint32_t n_items)
{
    if (p->spin && p->threads > 1) {
        uint64_t until = now_nsec() + POOL_SPIN_USEC * 1000u;
        do
            for (int i = 0; i < 16; i++) {
                if (atomic_load(&p->done) == n_items)
                    return;
                relax();
            }
        while (now_nsec() < until);
    }
    atomic_store(&p->caller_sleeps, 1);
    uint32_t done;
    while ((done = atomic_load(&p->done)) != n_items)
        futex_wait(&p->done, done);
    atomic_store(&p->caller_sleeps, 0);
}

void pool_run(struct pool *p, uint32_t n_items, pool_fn fn, void *arg)
{
    if (p->threads == 1 || n_items <= 1) {
        for (uint32_t i = 0; i < n_items; i++)
            fn(arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_items = n_items;
    atomic_store(&p->done, 0);
    uint64_t job = (atomic_load(&p->word) >> 32) + 1;
    atomic_store(&p->word, job << 32 | n_items);
    wake_workers(p, n_items - 1);
    work(p, 0);
    wait_done(p, n_items);
}

uint32_t pool_threads(const struct pool *p)
{
    return p->threads;
}

/* The cores this process may run on, ascending; at most max. */
static uint32_t allowed_cpus(int *cpu, uint32_t max)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 0;
    uint32_t n = 0;
    for (int i = 0; i < CPU_SETSIZE && n < max; i++)
        if (CPU_ISSET((size_t)i, &set))
            cpu[n++] = i;
    return n;
}

static int start_workers(struct pool *p)
{
    int cpu[POOL_THREADS_MAX];
    uint32_t cpus = allowed_cpus(cpu, ELEMENTS(cpu));
    bool pin = p->threads <= cpus;
    p->spin = pin;

    sigset_t all, old; /* signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = 0;
    for (uint32_t i = 0; i + 1 < p->threads && r == 0; i++) {
        p->worker[i] = (struct worker){.pool = p, .thread = i + 1, .cpu = pin ? cpu[i + 1] : -1};
        r = -pthread_create(&p->worker[i].id, NULL, worker_main, &p->worker[i]);
        if (r == 0)
            p->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

int pool_new(uint32_t threads, struct pool **ret)
{
    if (threads == 0)
        threads = pool_cores();
    threads = MIN(threads, (uint32_t)POOL_THREADS_MAX);
    _cleanup_(pool_freep) struct pool *p = aligned_alloc(CACHE_LINE, sizeof(*p));
    if (!p)
        return -ENOMEM;
    *p = (struct pool){.threads = threads};
    p->worker = calloc(threads, sizeof(*p->worker));
    if (!p->worker)
        return -ENOMEM;
    int r = start_workers(p);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(p);
    return 0;
}

struct pool *pool_free(struct pool *p)
{
    if (!p)
        return NULL;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->wake, 1);
    futex_wake(&p->wake, INT_MAX);
    for (uint32_t i = 0; i < p->started; i++)
        pthread_join(p->worker[i].id, NULL);
    free(p->worker);
    free(p);
    return NULL;
}
