/* SPDX-License-Identifier: MIT */
/* The CPU backend's threads: every item once, none before the last is done, no busy core when idle. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "backends/cpu/pool.h"

#define ITEMS 1000

struct job {
    _Atomic uint32_t seen[ITEMS];
    _Atomic uint32_t wrong_thread;
    uint32_t threads;
};

static void count(void *arg, uint32_t item, uint32_t thread)
{
    struct job *j = arg;
    atomic_fetch_add(&j->seen[item], 1);
    if (thread >= j->threads)
        atomic_fetch_add(&j->wrong_thread, 1);
    if (item % 97 == 0)
        sched_yield();
}

static void each_item_once(void **unused)
{
    (void)unused;
    const uint32_t threads[] = {1, 2, 3, 7};
    for (size_t k = 0; k < ELEMENTS(threads); k++) {
        _cleanup_(pool_freep) struct pool *p = NULL;
        assert_int_equal(pool_new(threads[k], &p), 0);
        assert_int_equal(pool_threads(p), threads[k]);
        for (uint32_t round = 0; round < 300; round++) {
            struct job j = {.threads = threads[k]};
            uint32_t n = round % 3 == 0 ? round % 7 : round * 13 % ITEMS;
            pool_run(p, n, count, &j);
            for (uint32_t i = 0; i < ITEMS; i++)
                assert_int_equal(j.seen[i], i < n);
            assert_int_equal(j.wrong_thread, 0);
            if (round % 100 == 99)
                usleep(2000); /* long enough for the threads to fall asleep */
        }
    }
}

static uint64_t cpu_usec(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void sleeps_when_idle(void **unused)
{
    (void)unused;
    _cleanup_(pool_freep) struct pool *p = NULL;
    assert_int_equal(pool_new(0, &p), 0);
    struct job j = {.threads = pool_threads(p)};
    pool_run(p, ITEMS, count, &j);
    usleep(20000);
    uint64_t before = cpu_usec();
    usleep(200000);
    assert_true(cpu_usec() - before < 20000); /* a thread that spins would use 200000 */
}

static void free_without_work(void **unused)
{
    (void)unused;
    for (int i = 0; i < 50; i++) {
        struct pool *p = NULL;
        assert_int_equal(pool_new(1 + (uint32_t)i % 4, &p), 0);
        assert_null(pool_free(p));
    }
    assert_null(pool_free(NULL));
}

static void cores_are_those_allowed(void **unused)
{
    (void)unused;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof(old), &old), 0);
    assert_in_range(pool_cores(), 1, CPU_COUNT(&old));
    size_t first = 0;
    while (!CPU_ISSET(first, &old))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(pool_cores(), 1);
    _cleanup_(pool_freep) struct pool *p = NULL;
    assert_int_equal(pool_new(3, &p), 0); /* more threads than cores: slow, but right */
    struct job j = {.threads = 3};
    pool_run(p, ITEMS, count, &j);
    for (uint32_t i = 0; i < ITEMS; i++)
        assert_int_equal(j.seen[i], 1);
    assert_int_equal(sched_setaffinity(0, sizeof(old), &old), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_item_once),
        cmocka_unit_test(sleeps_when_idle),
        cmocka_unit_test(free_without_work),
        cmocka_unit_test(cores_are_those_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
