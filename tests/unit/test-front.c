/* SPDX-License-Identifier: MIT */
/* The parts of the front without sockets: charges, token windows, limits; and configuration text (base/ini.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/buf.h"
#include "base/ini.h"
#include "daemon/account.h"
#include "daemon/check.h"
#include "daemon/limits.h"

static const struct quotas no_quotas;
static const struct who users[] = {[7] = {.uid = 7}, [8] = {.uid = 8}, [9] = {.uid = 9}};

static void charges_are_given_back(void **state)
{
    (void)state;
    struct limits l;
    struct accounts a;
    struct charge c[3] = {CHARGE_NONE, CHARGE_NONE, CHARGE_NONE}, all = CHARGE_NONE;
    struct fail f = FAIL_INIT;

    limits_init(&l);
    l.connections = 2;
    l.max_connections = 3;
    assert_int_equal(accounts_init(&a, &l, &no_quotas), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(charge_take_who(&c[i], &a, &users[7], CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(charge_take_who(&c[2], &a, &users[7], CHARGE_CONNECTIONS, 1, &f), -EDQUOT);
    assert_string_equal(f.code, "QUOTA");
    assert_string_equal(f.field, "Connections");
    assert_true(f.limit == 2 && f.value == 2 && f.retry_after_ms > 0);
    assert_int_equal(charge_take_who(&c[2], &a, &users[8], CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(charge_take_who(&all, &a, &users[9], CHARGE_CONNECTIONS, 1, &f), -EDQUOT); /* of all users */
    assert_int_equal(f.limit, 3);
    assert_int_equal(map_size(a.by_uid), 2); /* nothing is kept of 9 */
    charge_release(&c[0]);
    charge_release(&c[0]); /* twice gives back once */
    assert_int_equal(charge_take_who(&all, &a, &users[9], CHARGE_CONNECTIONS, 1, &f), 0);
    charge_release(&all);
    charge_release(&c[1]);
    charge_release(&c[2]);
    assert_int_equal(map_size(a.by_uid), 0);
    assert_int_equal(charge_take_who(&all, &a, &users[9], CHARGE_WAITING_BYTES, UINT64_MAX, &f), -EDQUOT); /* no wrap */
    accounts_deinit(&a);
}

static void token_windows_roll(void **state)
{
    (void)state;
    struct limits l;
    struct accounts a;
    struct charge c = CHARGE_NONE;
    struct fail f = FAIL_INIT;
    uint64_t minute = 60000000, now = 5;

    limits_init(&l);
    l.tokens_per_minute = 100;
    l.tokens_per_day = 150;
    assert_int_equal(accounts_init(&a, &l, &no_quotas), 0);
    assert_int_equal(charge_take_who(&c, &a, &users[7], CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(account_check_tokens(c.account, now, &f), 0);
    account_add_tokens(c.account, now, 100);
    assert_int_equal(account_check_tokens(c.account, now + minute / 2, &f), -EDQUOT);
    assert_string_equal(f.field, "TokensPerMinute");
    assert_int_equal(f.retry_after_ms, 30001);
    assert_int_equal(account_check_tokens(c.account, now + minute, &f), 0);
    account_add_tokens(c.account, now + minute, 50);
    assert_int_equal(account_check_tokens(c.account, now + 3 * minute, &f), -EDQUOT);
    assert_string_equal(f.field, "TokensPerDay");
    assert_int_equal(account_check_tokens(c.account, now + 24 * 60 * minute, &f), 0);
    account_add_tokens(c.account, now + 24 * 60 * minute, UINT64_MAX);
    account_add_tokens(c.account, now + 24 * 60 * minute, 5); /* no wrap */
    assert_int_equal(account_check_tokens(c.account, now + 24 * 60 * minute, &f), -EDQUOT);

    struct usage *u = account_usage(c.account, "m");
    assert_non_null(u);
    u->output = 3;
    assert_ptr_equal(account_usage(c.account, "m"), u);
    charge_release(&c);
    assert_int_equal(map_size(a.by_uid), 1); /* what was used is remembered */
    accounts_deinit(&a);
}

static void limits_have_ranges(void **state)
{
    (void)state;
    struct limits l;
    struct fail f = FAIL_INIT;

    limits_init(&l);
    for (size_t i = 0; i < n_limit_defs; i++)
        assert_true(limit_defs[i].standard >= limit_defs[i].min && limit_defs[i].standard <= limit_defs[i].max);
    assert_int_equal(limits_set(&l, "Quota", "Sessions", "7", &f), 0);
    assert_int_equal(l.sessions, 7);
    assert_int_equal(limits_set(&l, "Daemon", "Sessions", "7", &f), -ENOENT); /* another section's */
    assert_int_equal(limits_set_option(&l, "FrameTimeout=50ms", &f), 0);
    assert_int_equal(l.frame_timeout_usec, 50000);
    assert_int_equal(limits_set_option(&l, "MemfdMax=1M", &f), 0);
    assert_int_equal(l.memfd_max_bytes, 1 << 20);
    static const char *const bad[] = {"MemfdMax=1X", "MemfdMax=0", "Weight=0", "Sessions=-1", "Sessions=", "Nothing=1", "x", ""};
    for (size_t i = 0; i < ELEMENTS(bad); i++) {
        assert_int_equal(limits_set_option(&l, bad[i], &f), -EINVAL);
        assert_string_equal(f.code, "CONFIG");
    }
}

static int note(const char *section, const char *key, const char *value, unsigned line, void *userdata, struct fail *f)
{
    if (strcmp(key, "bad") == 0)
        return fail_set(f, EINVAL, "CONFIG", "bad is bad");
    return buf_printf(userdata, "%s|%s|%s|%u\n", section, key, value, line);
}

static int ini(const char *text, size_t n, struct buf *out, struct fail *f)
{
    buf_clear(out);
    return ini_read("file", text, n, note, out, f);
}

static void configuration_text(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf out = BUF_INIT;
    struct fail f = FAIL_INIT;
    static const char good[] = "a=1\n# comment\n[S x] # more\n  key = a b ; c\nempty=\nurl=x#y;z\r\n\n;\nlast=1";
    static const struct {
        const char *text, *says;
    } bad[] = {{"a=1\n[S\n", "file:2: "},   {"[]\n", "file:1: "},        {"=1\n", "file:1: "},
               {"\n\nword\n", "file:3: "},  {"bad=1\n", "file:1: bad is bad"}, {"a=\xff\n", "file:1: "}};

    assert_int_equal(ini(good, sizeof(good) - 1, &out, &f), 0);
    assert_string_equal(out.data, "|a|1|1\nS x|key|a b|4\nS x|empty||5\nS x|url|x#y;z|6\nS x|last|1|9\n");
    for (size_t i = 0; i < ELEMENTS(bad); i++) {
        assert_int_equal(ini(bad[i].text, strlen(bad[i].text), &out, &f), -EINVAL);
        assert_string_equal(f.code, "CONFIG");
        assert_non_null(strstr(f.message, bad[i].says));
    }
    assert_int_equal(ini("a\0b=1", 5, &out, &f), -EINVAL);
    char line[5000];
    memset(line, 'x', sizeof(line));
    assert_int_equal(ini(line, sizeof(line), &out, &f), -EINVAL);
    assert_int_equal(ini("", 0, &out, &f), 0);
}

static void ends_of_ranges(void **state)
{
    (void)state;
    Dsv4__V1__Generate g = DSV4__V1__GENERATE__INIT;
    Dsv4__V1__Sampling s = DSV4__V1__SAMPLING__INIT;
    struct fail f = FAIL_INIT;
    static const struct {
        float temperature, top_p, min_p;
        bool good;
    } cases[] = {{0, 1, 0, true},           {2, 1, 0.99f, true},      {2.001f, 1, 0, false}, {1, 0, 0, false},
                 {1, 1.001f, 0, false},     {1, 1, 1, false},         {-0.0f, 1e-6f, 0, true}, {NAN, 1, 0, false},
                 {1, NAN, 0, false},        {1, 1, INFINITY, false}};

    g.input_case = DSV4__V1__GENERATE__INPUT_TEXT;
    g.sampling = &s;
    s.has_temperature = s.has_top_p = s.has_min_p = true;
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        s.temperature = cases[i].temperature;
        s.top_p = cases[i].top_p;
        s.min_p = cases[i].min_p;
        assert_int_equal(check_generate(&g, &f), cases[i].good ? 0 : -ERANGE);
    }
    g.sampling = NULL;
    g.has_max_tokens = true;
    g.max_tokens = INT32_MAX;
    assert_int_equal(check_generate(&g, &f), 0);
    g.max_tokens++;
    assert_int_equal(check_generate(&g, &f), -ERANGE);
    assert_string_equal(f.field, "max_tokens");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(charges_are_given_back), cmocka_unit_test(token_windows_roll),
        cmocka_unit_test(limits_have_ranges),     cmocka_unit_test(configuration_text),
        cmocka_unit_test(ends_of_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
