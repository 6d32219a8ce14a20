/* SPDX-License-Identifier: MIT */
/* KV books over a device that is plain host memory and can be told to fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "engine/kv.h"

/* ---------------------------------------------------------------- a device */

struct backend {
    size_t page_bytes;
    int fail_in; /* calls of zero or copy until one fails; negative: never */
    unsigned zeroed, copied, resets;
};

static int dev_alloc(struct backend *b, size_t bytes, void **ret)
{
    (void)b;
    *ret = bytes < ((size_t)1 << 40) ? calloc(1, bytes) : NULL;
    return *ret ? 0 : -ENOMEM;
}

static void dev_free(struct backend *b, void *p)
{
    (void)b;
    free(p);
}

static bool dev_fails(struct backend *b)
{
    return b->fail_in >= 0 && b->fail_in-- == 0;
}

static int dev_zero(struct backend *b, void *dst, size_t n)
{
    if (dev_fails(b))
        return -EIO;
    memset(dst, 0, n);
    b->zeroed++;
    return 0;
}

static int dev_copy(struct backend *b, void *dst, const void *src, size_t n)
{
    if (dev_fails(b))
        return -EIO;
    memcpy(dst, src, n);
    b->copied++;
    return 0;
}

static int dev_state_reset(struct backend *b, uint8_t *state)
{
    state[0] = 0xAB; /* "fresh" on this device */
    b->resets++;
    return 0;
}

static const struct backend_ops ops = {
    .alloc = dev_alloc,
    .free = dev_free,
    .zero = dev_zero,
    .copy = dev_copy,
    .state_reset = dev_state_reset,
};

static const struct model_shape shape = {
    .layers = 4, .head_dim = 128, .rope_dim = 64, .window = 16, .index_dim = 128, .ratio = {0, 4, 128, 32},
};

struct fixture {
    struct backend backend;
    struct kv_layout layout;
    struct kv_pool *pool;
};

static void fixture_init(struct fixture *x, uint32_t pages, uint32_t states)
{
    *x = (struct fixture){.backend = {.fail_in = -1}};
    kv_layout_init(&x->layout, &shape, NUMERICS_FAST);
    assert_int_equal(kv_pool_new(&ops, &x->backend, &x->layout, pages, states, &x->pool, NULL), 0);
}

static uint8_t *page_at(const struct fixture *x, uint32_t i)
{
    return kv_pool_pages(x->pool) + i * x->layout.page_bytes;
}

static void assert_used(const struct fixture *x, uint32_t pages, uint32_t states)
{
    struct kv_stats s;

    kv_pool_stats(x->pool, &s);
    assert_int_equal(s.pages_used, pages);
    assert_int_equal(s.states_used, states);
    assert_int_equal(s.used_bytes, pages * x->layout.page_bytes + states * x->layout.state_bytes);
}

static bool all_bytes(const uint8_t *p, size_t n, uint8_t value)
{
    while (n > 0 && *p == value)
        p++, n--;
    return n == 0;
}

/* ---------------------------------------------------------------- layout */

/* Flash: figures of docs/model.md, section 5. */
static void layout_of_flash(void **state)
{
    (void)state;
    struct model_shape s = {.layers = 43, .head_dim = 512, .rope_dim = 64, .window = 128, .index_dim = 128};
    struct kv_layout l;

    for (uint32_t i = 2; i < s.layers; i++)
        s.ratio[i] = i % 2 == 0 ? 4 : 128;
    kv_layout_init(&l, &s, NUMERICS_FAST);
    assert_false(l.rope_f32);
    assert_int_equal(l.row_bytes, 584);
    assert_int_equal(l.index_row_bytes, 68);
    assert_in_range(l.page_bytes, 21 * 32 * (584 + 68) + 20 * 584, 21 * 32 * (584 + 68) + 20 * 584 + 41 * 32 + 64);
    kv_layout_init(&l, &s, NUMERICS_EXACT);
    assert_true(l.rope_f32);
    assert_int_equal(l.row_bytes, 448 + 8 + 64 * 4);
}

static void layout_has_room_for_each_part(void **state)
{
    (void)state;
    struct kv_layout l;

    kv_layout_init(&l, &shape, NUMERICS_EXACT);
    assert_int_equal(l.row_bytes, 64 + 8 + 64 * 4);
    assert_int_equal(l.page_bytes % 64, 0);
    assert_int_equal(l.state_bytes % 64, 0);

    assert_int_equal(l.page_rows[1], 0);
    assert_true(l.page_index[1] >= l.page_rows[1] + 32 * l.row_bytes);
    assert_true(l.page_rows[2] >= l.page_index[1] + 32 * l.index_row_bytes);
    assert_true(l.page_rows[3] >= l.page_rows[2] + l.row_bytes);
    assert_true(l.page_bytes >= l.page_rows[3] + 4 * l.row_bytes);

    assert_int_equal(l.state_ring[0], 0);
    assert_true(l.state_ring[1] >= 16 * l.row_bytes);
    assert_true(l.state_open[1] >= l.state_ring[1] + 16 * l.row_bytes);
    assert_true(l.state_open_index[1] >= l.state_open[1] + 2 * 3 * 128 * 4);
    assert_true(l.state_ring[2] >= l.state_open_index[1] + 2 * 3 * 128 * 4);
    assert_true(l.state_open[2] >= l.state_ring[2] + 16 * l.row_bytes);
    assert_true(l.state_ring[3] >= l.state_open[2] + 3 * 128 * 4);
    assert_true(l.state_bytes >= l.state_open[3] + 3 * 128 * 4);
    for (uint32_t i = 1; i < 4; i++)
        assert_int_equal(l.state_open[i] % 64, 0);
}

static void layout_without_compressed_layers(void **state)
{
    (void)state;
    struct model_shape s = shape;
    struct kv_layout l;

    memset(s.ratio, 0, sizeof(s.ratio));
    kv_layout_init(&l, &s, NUMERICS_EXACT);
    assert_int_equal(l.page_bytes, 64);
}

/* ---------------------------------------------------------------- pool and sessions */

static void pool_refuses_what_it_cannot_be(void **state)
{
    (void)state;
    struct backend b = {.fail_in = -1};
    struct kv_layout l;
    struct kv_pool *p = NULL;
    struct fail f = FAIL_INIT;

    kv_layout_init(&l, &shape, NUMERICS_FAST);
    assert_int_equal(kv_pool_new(&ops, &b, &l, 0, 1, &p, &f), -ERANGE);
    assert_int_equal(kv_pool_new(&ops, &b, &l, 1, 0, &p, &f), -ERANGE);
    l.page_bytes = (size_t)1 << 50;
    assert_int_equal(kv_pool_new(&ops, &b, &l, 1, 1, &p, &f), -ENOMEM);
    assert_string_equal(f.code, "NO_MEMORY");
    assert_int_equal(kv_pool_new(&ops, &b, &l, 1u << 20, 1, &p, &f), -EOVERFLOW);
    assert_null(p);
    assert_null(kv_pool_free(NULL));
    assert_null(kv_session_free(NULL));
}

static void pages_come_all_or_not_at_all(void **state)
{
    (void)state;
    struct fixture x;
    struct kv_session *a, *b;
    struct fail f = FAIL_INIT;

    fixture_init(&x, 4, 2);
    assert_int_equal(kv_session_new(x.pool, 1, &a, &f), 0);
    assert_int_equal(kv_session_new(x.pool, 1, &b, &f), 0);
    assert_int_equal(kv_session_reserve(a, 0, &f), 0);
    assert_used(&x, 0, 2);
    assert_int_equal(kv_session_reserve(a, 129, &f), 0);
    assert_int_equal(a->n_pages, 2);
    assert_int_equal(kv_session_reserve(a, 256, &f), 0); /* again: nothing more */
    assert_used(&x, 2, 2);

    assert_int_equal(kv_session_reserve(b, 257, &f), -ENOSPC);
    assert_string_equal(f.code, "KV_FULL");
    assert_int_equal(f.limit, 2);
    assert_int_equal(f.value, 3);
    assert_int_equal(b->n_pages, 0);
    assert_used(&x, 2, 2);
    assert_int_equal(kv_session_reserve(b, UINT32_MAX, &f), -ENOSPC);
    assert_int_equal(kv_session_reserve(b, 256, &f), 0);
    assert_used(&x, 4, 2);
    assert_int_equal(kv_session_bytes(b), x.layout.state_bytes + 2 * x.layout.page_bytes);

    a->tokens = 100;
    kv_session_trim(a);
    assert_int_equal(a->n_pages, 1);
    kv_session_trim(a);
    assert_used(&x, 3, 2);
    kv_session_free(a);
    kv_session_free(b);
    assert_used(&x, 0, 0);
    kv_pool_free(x.pool);
}

static void sessions_are_limited(void **state)
{
    (void)state;
    struct fixture x;
    struct kv_session *a, *b = NULL;
    struct fail f = FAIL_INIT;

    fixture_init(&x, 4, 1);
    assert_int_equal(kv_session_new(x.pool, 1, &a, &f), 0);
    assert_int_equal(kv_session_new(x.pool, 1, &b, &f), -ENOSPC);
    assert_string_equal(f.code, "KV_FULL");
    assert_int_equal(kv_session_fork(a, &b, &f), -ENOSPC);
    assert_null(b);
    kv_session_free(a);
    assert_int_equal(kv_session_new(x.pool, 2, &a, &f), 0);
    kv_session_free(a);
    kv_pool_free(x.pool);
}

static void nothing_is_left_for_another_owner(void **state)
{
    (void)state;
    struct fixture x;
    struct kv_session *s;

    fixture_init(&x, 1, 1);
    assert_int_equal(kv_session_new(x.pool, 1, &s, NULL), 0);
    assert_int_equal(kv_session_reserve(s, 1, NULL), 0);
    memset(page_at(&x, s->page[0]), 0x55, x.layout.page_bytes);
    memset(s->state, 0x55, x.layout.state_bytes);
    kv_session_free(s);
    assert_int_equal(x.backend.zeroed, 0);

    /* The same owner gets them as they are, but with a fresh state. */
    assert_int_equal(kv_session_new(x.pool, 1, &s, NULL), 0);
    assert_int_equal(s->state[0], 0xAB);
    assert_int_equal(kv_session_reserve(s, 1, NULL), 0);
    assert_int_equal(x.backend.zeroed, 0);
    kv_session_free(s);

    assert_int_equal(kv_session_new(x.pool, 2, &s, NULL), 0);
    assert_int_equal(s->state[0], 0xAB);
    assert_true(all_bytes(s->state + 1, x.layout.state_bytes - 1, 0));
    assert_int_equal(kv_session_reserve(s, 1, NULL), 0);
    assert_true(all_bytes(page_at(&x, s->page[0]), x.layout.page_bytes, 0));
    kv_session_free(s);
    kv_pool_free(x.pool);
}

static void forks_share_until_they_write(void **state)
{
    (void)state;
    struct fixture x;
    struct kv_session *a, *b, *c;
    uint32_t tail;

    fixture_init(&x, 8, 3);
    assert_int_equal(kv_session_new(x.pool, 7, &a, NULL), 0);
    assert_int_equal(kv_session_reserve(a, 400, NULL), 0);
    a->tokens = 200; /* two pages in use, two more reserved */
    tail = a->page[1];
    memset(page_at(&x, tail), 0x11, x.layout.page_bytes);
    memset(a->state, 0x22, x.layout.state_bytes);

    assert_int_equal(kv_session_fork(a, &b, NULL), 0);
    assert_int_equal(b->tokens, 200);
    assert_int_equal(b->owner, 7);
    assert_int_equal(b->n_pages, 2);
    assert_int_equal(b->page[0], a->page[0]);
    assert_int_equal(b->page[1], tail);
    assert_memory_equal(a->state, b->state, x.layout.state_bytes);
    assert_used(&x, 4, 2);

    assert_int_equal(kv_session_reserve(b, 1, NULL), 0);
    assert_int_not_equal(b->page[1], tail);
    assert_int_equal(b->page[0], a->page[0]);
    assert_true(all_bytes(page_at(&x, b->page[1]), x.layout.page_bytes, 0x11));
    memset(page_at(&x, b->page[1]), 0x33, x.layout.page_bytes);
    assert_true(all_bytes(page_at(&x, tail), x.layout.page_bytes, 0x11));
    assert_used(&x, 5, 2);
    assert_int_equal(kv_session_reserve(a, 1, NULL), 0); /* alone again: no copy */
    assert_int_equal(a->page[1], tail);
    assert_int_equal(x.backend.copied, 2);

    /* At a multiple of the page there is nothing to copy. */
    a->tokens = 256;
    assert_int_equal(kv_session_fork(a, &c, NULL), 0);
    assert_int_equal(kv_session_reserve(c, 1, NULL), 0);
    assert_int_equal(c->page[1], tail);
    assert_used(&x, 6, 3);
    kv_session_free(a);
    assert_used(&x, 4, 2); /* what only a had: its third and fourth */
    kv_session_free(c);
    kv_session_free(b);
    assert_used(&x, 0, 0);
    kv_pool_free(x.pool);
}

static void reset_gives_everything_back(void **state)
{
    (void)state;
    struct fixture x;
    struct kv_session *a;

    fixture_init(&x, 4, 1);
    assert_int_equal(kv_session_new(x.pool, 7, &a, NULL), 0);
    assert_int_equal(kv_session_reserve(a, 300, NULL), 0);
    a->tokens = 300;
    a->state[0] = 0;
    assert_int_equal(kv_session_reset(a), 0);
    assert_int_equal(a->tokens, 0);
    assert_int_equal(a->state[0], 0xAB);
    assert_used(&x, 0, 1);
    kv_session_free(a);
    kv_pool_free(x.pool);
}

/* Whichever operation of the device fails, nothing is lost and nothing half done. */
static void device_failures_lose_nothing(void **state)
{
    (void)state;

    for (int at = 0; at < 5; at++) {
        struct fixture x;
        struct kv_session *a, *b = NULL;
        struct fail f = FAIL_INIT;

        fixture_init(&x, 6, 2);
        assert_int_equal(kv_session_new(x.pool, 1, &a, &f), 0);
        assert_int_equal(kv_session_reserve(a, 6 * 128, &f), 0);
        kv_session_free(a);

        x.backend.fail_in = at; /* zero of the state; zero of two pages; copy of a state; zero and copy of a tail */
        int r = kv_session_new(x.pool, 2, &a, &f);
        if (r == 0) {
            r = kv_session_reserve(a, 200, &f);
            if (r == 0) {
                a->tokens = 200;
                r = kv_session_fork(a, &b, &f);
                if (r == 0)
                    r = kv_session_reserve(b, 1, &f);
            } else {
                assert_int_equal(a->n_pages, 0);
            }
            kv_session_free(b);
            kv_session_free(a);
        }
        assert_int_equal(r, -EIO);
        assert_string_equal(f.code, "INTERNAL");
        assert_used(&x, 0, 0);
        kv_pool_free(x.pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_of_flash),
        cmocka_unit_test(layout_has_room_for_each_part),
        cmocka_unit_test(layout_without_compressed_layers),
        cmocka_unit_test(pool_refuses_what_it_cannot_be),
        cmocka_unit_test(pages_come_all_or_not_at_all),
        cmocka_unit_test(sessions_are_limited),
        cmocka_unit_test(nothing_is_left_for_another_owner),
        cmocka_unit_test(forks_share_until_they_write),
        cmocka_unit_test(reset_gives_everything_back),
        cmocka_unit_test(device_failures_lose_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
