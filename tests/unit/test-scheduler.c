/* SPDX-License-Identifier: MIT */
/* The scheduler by simulation: requests arrive, steps take as long as a made-up device says, and the shares are counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/macros.h"
#include "engine/scheduler.h"

#define ITEMS 64

struct request {
    struct sched_item item;
    uint32_t prompt, output; /* still to do */
    uint64_t served;         /* tokens ever */
    uint32_t steps, largest_gap, last_step;
};

struct world {
    struct sched *s;
    struct request r[ITEMS];
    uint32_t n, step;
    uint64_t usec, longest_usec;
    uint32_t prefill_usec, decode_usec; /* of the made-up device */
    uint32_t largest_prefill;           /* of one step */
    uint32_t largest_step;
};

static void world_init(struct world *w, uint32_t max_running, uint32_t max_step_tokens)
{
    struct sched_params p = {.max_running = max_running, .max_step_tokens = max_step_tokens, .target_usec = 50000};

    memset(w, 0, sizeof(*w));
    w->prefill_usec = 100;
    w->decode_usec = 500;
    assert_int_equal(sched_new(&p, &w->s), 0);
}

static void world_end(struct world *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        sched_remove(w->s, &w->r[i].item);
    w->s = sched_free(w->s);
}

static struct request *arrive(struct world *w, uint64_t owner, uint32_t weight, uint32_t prompt, uint32_t output)
{
    struct request *r = &w->r[w->n++];

    assert_true(w->n <= ITEMS);
    r->prompt = prompt;
    r->output = output;
    r->item.userdata = r;
    assert_int_equal(sched_add(w->s, &r->item, owner, weight), 0);
    return r;
}

static uint32_t step(struct world *w)
{
    struct sched_part part[ITEMS];
    struct sched_item *next;
    uint32_t prefill = 0, decodes = 0;

    while ((next = sched_next(w->s)))
        sched_start(w->s, next, ((struct request *)next->userdata)->prompt);
    uint32_t n = sched_plan(w->s, part, ITEMS);
    w->step++;
    for (uint32_t i = 0; i < n; i++) {
        struct request *r = part[i].item->userdata;
        assert_true(part[i].tokens >= 1);
        for (uint32_t j = 0; j < i; j++)
            assert_ptr_not_equal(part[j].item, part[i].item);
        if (part[i].tokens > 1)
            prefill += part[i].tokens;
        else
            decodes++;
        r->served += part[i].tokens;
        if (r->steps++)
            r->largest_gap = MAX(r->largest_gap, w->step - r->last_step);
        r->last_step = w->step;
        if (part[i].item->pending > 0)
            continue;
        r->prompt = 0;
        if (r->output == 0) {
            sched_remove(w->s, part[i].item);
            continue;
        }
        r->output--;
        sched_set_pending(w->s, part[i].item, 1);
    }
    uint64_t usec = (uint64_t)prefill * w->prefill_usec + (uint64_t)decodes * w->decode_usec;
    w->usec += usec;
    w->longest_usec = MAX(w->longest_usec, usec);
    w->largest_prefill = MAX(w->largest_prefill, prefill);
    w->largest_step = MAX(w->largest_step, prefill + decodes);
    sched_measured(w->s, prefill, decodes, usec);
    return n;
}

static void test_shares_follow_weights(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 8, 512);
    struct request *light = arrive(&w, 1, 100, 1000000, 0), *heavy = arrive(&w, 2, 300, 1000000, 0);
    for (int i = 0; i < 500; i++)
        step(&w);
    double ratio = (double)heavy->served / (double)light->served;
    assert_true(ratio > 2.9 && ratio < 3.1);
    world_end(&w);
}

/* Ten prompts of one owner get together what the one prompt of another gets. */
static void test_many_requests_gain_nothing(void **state)
{
    struct world w;
    uint64_t many = 0;
    (void)state;

    world_init(&w, 16, 512);
    for (int i = 0; i < 10; i++)
        arrive(&w, 1, 100, 1000000, 0);
    struct request *one = arrive(&w, 2, 100, 1000000, 0);
    for (int i = 0; i < 1000; i++)
        step(&w);
    for (int i = 0; i < 10; i++)
        many += w.r[i].served;
    double ratio = (double)many / (double)one->served;
    assert_true(ratio > 0.95 && ratio < 1.05);
    for (int i = 1; i < 10; i++) /* and they share equally among themselves */
        assert_true(w.r[i].served > w.r[0].served * 8 / 10 && w.r[i].served < w.r[0].served * 12 / 10);
    world_end(&w);
}

/* A stream of new short requests of one owner does not keep another owner's out. */
static void test_no_starvation(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 4, 128);
    for (int i = 0; i < 40; i++)
        arrive(&w, 1, 100, 500, 50);
    struct request *late = arrive(&w, 2, 1, 200, 10);
    assert_int_equal(sched_position(w.s, &late->item), 2); /* each owner's first comes before anybody's second */
    for (int i = 0; i < 2000 && late->item.owner; i++)
        step(&w);
    assert_null(late->item.owner); /* done */
    uint32_t left = 0;
    for (int i = 0; i < 40; i++)
        left += w.r[i].item.owner != NULL;
    assert_true(left > 10);
    for (int i = 0; i < 20000 && left; i++) {
        step(&w);
        left = 0;
        for (int j = 0; j < 40; j++)
            left += w.r[j].item.owner != NULL;
    }
    assert_int_equal(left, 0);
    world_end(&w);
}

/* 20 streams go on, one token a step, while a long prompt is read; and the prompt makes progress. */
static void test_prompts_do_not_stall_decodes(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 32, 512);
    for (int i = 0; i < 20; i++)
        arrive(&w, (uint64_t)i, 100, 2, 1000);
    for (int i = 0; i < 20; i++)
        step(&w);
    for (int i = 0; i < 20; i++)
        w.r[i].largest_gap = 0;
    w.longest_usec = w.largest_prefill = 0;
    struct request *prompt = arrive(&w, 99, 100, 100000, 0);
    for (int i = 0; i < 300; i++)
        step(&w);
    for (int i = 0; i < 20; i++)
        assert_int_equal(w.r[i].largest_gap, 1);
    assert_true(w.longest_usec <= 55000);      /* the target is 50 ms */
    assert_true(prompt->served >= 300 * 200);  /* 40 ms of each step are its own: 400 tokens */
    world_end(&w);
}

/* The device gets ten times slower: the chunks get smaller, within a few steps. */
static void test_budget_adapts(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 8, 512);
    arrive(&w, 1, 100, 2, 100000);
    arrive(&w, 2, 100, 1000000, 0);
    for (int i = 0; i < 50; i++)
        step(&w);
    assert_true(w.largest_prefill > 300);
    w.prefill_usec = 1000;
    for (int i = 0; i < 20; i++)
        step(&w);
    w.longest_usec = w.largest_prefill = 0;
    for (int i = 0; i < 50; i++)
        step(&w);
    assert_true(w.longest_usec < 60000);
    assert_true(w.largest_prefill >= SCHED_PREFILL_MIN && w.largest_prefill <= 55);
    world_end(&w);
}

/* However slow the device, a prompt gets its minimum; however small the step, both kinds get in. */
static void test_step_is_never_too_large(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 32, 16);
    w.prefill_usec = 100000;
    for (int i = 0; i < 24; i++)
        arrive(&w, (uint64_t)i % 3, 100, 3, 2000);
    struct request *prompt = arrive(&w, 7, 100, 2000, 0);
    for (int i = 0; i < 1500; i++)
        step(&w);
    assert_true(w.largest_step <= 16);
    assert_null(prompt->item.owner);
    for (int i = 0; i < 24; i++) /* 24 streams in steps of 16: all get their turn */
        assert_true(w.r[i].steps > 500 && w.r[i].largest_gap <= 16);
    world_end(&w);
}

static void test_pause_and_cancel(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 2, 64);
    struct request *a = arrive(&w, 1, 100, 10, 1000), *b = arrive(&w, 2, 100, 10, 1000), *c = arrive(&w, 3, 100, 10, 1000);
    for (int i = 0; i < 10; i++)
        step(&w);
    assert_int_equal(c->steps, 0);
    assert_int_equal(sched_position(w.s, &c->item), 1);
    assert_int_equal(sched_running(w.s), 2);
    assert_int_equal(sched_queued(w.s), 1);
    uint32_t before = a->steps;
    sched_set_paused(w.s, &a->item, true); /* its slot is another's meanwhile */
    for (int i = 0; i < 10; i++)
        step(&w);
    assert_int_equal(a->steps, before);
    assert_true(c->steps > 0);
    sched_set_paused(w.s, &a->item, false);
    step(&w);
    assert_int_equal(a->steps, before + 1);
    sched_remove(w.s, &b->item);
    before = b->steps;
    step(&w);
    assert_int_equal(b->steps, before);
    sched_set_paused(w.s, &a->item, true);
    sched_remove(w.s, &c->item);
    assert_int_equal(step(&w), 0); /* nothing to do */
    world_end(&w);
}

/* An owner that was idle for long does not get that time back. */
static void test_idleness_is_not_saved(void **state)
{
    struct world w;
    (void)state;

    world_init(&w, 8, 512);
    struct request *b0 = arrive(&w, 2, 100, 100, 0), *a = arrive(&w, 1, 100, 10000000, 0);
    for (int i = 0; i < 500; i++)
        step(&w);
    assert_null(b0->item.owner);
    struct request *b = arrive(&w, 2, 100, 10000000, 0);
    uint64_t before = a->served;
    for (int i = 0; i < 200; i++)
        step(&w);
    double ratio = (double)(a->served - before) / (double)b->served;
    assert_true(ratio > 0.9 && ratio < 1.1);
    world_end(&w);
}

/* Nor does an owner that comes with one short request after the other get more than one that stays. */
static void test_leaving_does_not_pay(void **state)
{
    struct world w;
    uint64_t served = 0;
    (void)state;

    world_init(&w, 8, 64);
    struct request *stays = arrive(&w, 1, 100, 10000000, 0);
    for (int i = 0; i < 2000; i++) {
        if (w.n == 1 || !w.r[1].item.owner) {
            served += w.n == 1 ? 0 : w.r[1].served;
            w.r[1] = (struct request){.item.userdata = &w.r[1]};
            w.n = 1;
            arrive(&w, 2, 100, 60, 0);
        }
        step(&w);
    }
    double ratio = (double)served / (double)stays->served;
    assert_true(ratio < 1.1 && ratio > 0.5);
    world_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_follow_weights),  cmocka_unit_test(test_many_requests_gain_nothing),
        cmocka_unit_test(test_no_starvation),          cmocka_unit_test(test_prompts_do_not_stall_decodes),
        cmocka_unit_test(test_budget_adapts),          cmocka_unit_test(test_step_is_never_too_large),
        cmocka_unit_test(test_pause_and_cancel),       cmocka_unit_test(test_idleness_is_not_saved),
        cmocka_unit_test(test_leaving_does_not_pay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
