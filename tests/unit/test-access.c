/* SPDX-License-Identifier: MIT */
/* Who somebody is, who may use a model, and which limits hold for whom. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <grp.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/access.h"
#include "daemon/account.h"
#include "daemon/quota.h"

static gid_t some_gids[] = {100, 20, 30};
static const struct who ann = {.uid = 1000, .gids = some_gids, .n_gids = 3}, bob = {.uid = 1001, .gids = some_gids, .n_gids = 1},
                        root = {.uid = 0};

static void names_are_looked_up(void **state)
{
    (void)state;
    struct fail f = FAIL_INIT;
    uint32_t id = 77;
    static const char *const bad[] = {"-1", "4294967295", "4294967296", "99999999999999999999", "1x", "no such user", ""};

    assert_int_equal(access_lookup(false, "root", &id, &f), 0);
    assert_int_equal(id, 0);
    assert_int_equal(access_lookup(false, "4294967294", &id, &f), 0);
    assert_int_equal(id, 4294967294u);
    assert_int_equal(access_lookup(true, "root", &id, &f), 0);
    assert_int_equal(id, 0);
    for (size_t i = 0; i < ELEMENTS(bad); i++)
        for (int group = 0; group < 2; group++) {
            assert_int_equal(access_lookup(group, bad[i], &id, &f), -EINVAL);
            assert_string_equal(f.code, "CONFIG");
            assert_non_null(strstr(f.message, group ? "group" : "user"));
            assert_non_null(strstr(f.message, bad[i]));
        }
}

static void lists_allow(void **state)
{
    (void)state;
    struct access a = {0};
    struct fail f = FAIL_INIT;

    assert_true(access_allows(&a, &ann)); /* nobody named: everyone */
    assert_int_equal(access_set(&a, false, " 1001\t5  root ", &f), 0);
    assert_int_equal(a.n_uids, 3);
    assert_true(access_allows(&a, &bob));
    assert_false(access_allows(&a, &ann));
    assert_int_equal(access_set(&a, true, "30", &f), 0); /* either list is enough */
    assert_true(access_allows(&a, &bob) && access_allows(&a, &ann));
    assert_int_equal(access_set(&a, false, "", &f), 0);
    assert_false(access_allows(&a, &bob));
    assert_true(access_allows(&a, &ann) && access_allows(&a, &root));
    assert_int_equal(access_set(&a, true, "100 nobody-of-that-name", &f), -EINVAL); /* and nothing changed */
    assert_non_null(strstr(f.message, "nobody-of-that-name"));
    assert_false(access_allows(&a, &bob));
    assert_int_equal(access_set(&a, true, "100", &f), 0); /* the primary group */
    assert_true(access_allows(&a, &bob));
    access_deinit(&a);
}

static void who_is_there(void **state)
{
    (void)state;
    struct who w = {0};
    gid_t mine[WHO_GIDS_MAX];
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    assert_int_equal(who_of_socket(fds[0], &w), 0);
    assert_true(w.uid == geteuid() && w.pid == getpid() && w.n_gids >= 1 && w.gids[0] == getegid());
    int n = getgroups(WHO_GIDS_MAX, mine);
    assert_true(n >= 0 && w.n_gids == (size_t)n + 1);
    for (int i = 0; i < n; i++)
        assert_true(who_in_group(&w, mine[i]));
    assert_false(who_in_group(&w, 4294967290u));
    who_deinit(&w);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(who_of_socket(-1, &w), -EBADF);
}

static void very_many_groups(void **state)
{
    (void)state;
    struct who w = {0};
    gid_t many[WHO_GIDS_MAX + 1], before[WHO_GIDS_MAX];
    int n = getgroups(WHO_GIDS_MAX, before);

    for (size_t i = 0; i < ELEMENTS(many); i++)
        many[i] = 5000 + (gid_t)i;
    if (n < 0 || setgroups(ELEMENTS(many), many) < 0)
        skip(); /* needs root */
    for (int extra = 0; extra < 2; extra++) {
        int fds[2];
        assert_int_equal(setgroups(WHO_GIDS_MAX + (size_t)extra, many), 0);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        assert_int_equal(who_of_socket(fds[0], &w), 0);
        assert_int_equal(w.n_gids, extra ? 1 : WHO_GIDS_MAX + 1);
        who_deinit(&w);
        close(fds[0]);
        close(fds[1]);
    }
    assert_int_equal(setgroups((size_t)n, before), 0);
}

static void set(struct quotas *q, const char *section, const char *name, const char *value)
{
    struct fail f = FAIL_INIT;

    assert_true(quotas_is_section(section));
    assert_int_equal(quotas_set(q, section, name, value, &f), 0);
}

static struct limits of(const struct quotas *q, const struct who *w)
{
    struct limits l;

    limits_init(&l);
    l.sessions = 50;
    quotas_apply(q, w, &l);
    return l;
}

static void quotas_by_user_and_group(void **state)
{
    (void)state;
    struct quotas q = {0};
    struct fail f = FAIL_INIT;

    assert_int_equal(of(&q, &ann).sessions, 50);
    set(&q, "Quota gid:20", "Sessions", "3"); /* below everybody's, and still the group's */
    set(&q, "Quota gid:20", "Weight", "300");
    set(&q, "Quota gid:30", "Sessions", "9");
    set(&q, "Quota gid:30", "TokensPerDay", "5");
    set(&q, "Quota gid:31", "Sessions", "1000");
    assert_int_equal(of(&q, &ann).sessions, 9); /* the larger of two */
    assert_int_equal(of(&q, &ann).weight, 300);
    assert_int_equal(of(&q, &ann).tokens_per_day, 5);
    assert_int_equal(of(&q, &ann).connections, 256);
    assert_int_equal(of(&q, &bob).sessions, 50);
    assert_int_equal(of(&q, &bob).weight, 100);
    set(&q, "Quota uid:1000", "Sessions", "1"); /* its own beats its groups' */
    assert_int_equal(of(&q, &ann).sessions, 1);
    assert_int_equal(of(&q, &ann).weight, 300);
    set(&q, "Quota uid:01000", "Sessions", "2"); /* the same user, said again */
    assert_int_equal(of(&q, &ann).sessions, 2);
    set(&q, "Quota uid:root", "Weight", "7");
    assert_int_equal(of(&q, &root).weight, 7);

    assert_false(quotas_is_section("Quota") || quotas_is_section("Quota pid:1") || quotas_is_section("quota uid:1"));
    assert_int_equal(quotas_set(&q, "Quota uid:1000", "MaxConnections", "1", &f), -ENOENT); /* is of all users */
    assert_int_equal(quotas_set(&q, "Quota gid:no such", "Weight", "1", &f), -EINVAL);
    assert_non_null(strstr(f.message, "no such"));
    assert_string_equal(f.field, "Weight");
    assert_int_equal(quotas_set(&q, "Quota uid:1000", "Weight", "0", &f), -EINVAL);
    assert_int_equal(of(&q, &ann).weight, 300);
    quotas_deinit(&q);
}

static void accounts_have_their_limits(void **state)
{
    (void)state;
    struct quotas q = {0};
    struct limits l;
    struct accounts a;
    struct charge c[4] = {CHARGE_NONE, CHARGE_NONE, CHARGE_NONE, CHARGE_NONE};
    struct fail f = FAIL_INIT;
    struct who shed = {.uid = 1000, .gids = some_gids, .n_gids = 1};

    limits_init(&l);
    l.connections = 1;
    set(&q, "Quota gid:30", "Connections", "2");
    assert_int_equal(accounts_init(&a, &l, &q), 0);
    assert_int_equal(charge_take_who(&c[0], &a, &bob, CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(charge_take_who(&c[1], &a, &bob, CHARGE_CONNECTIONS, 1, &f), -EDQUOT);
    assert_int_equal(charge_take_who(&c[1], &a, &ann, CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(charge_take_who(&c[2], &a, &shed, CHARGE_CONNECTIONS, 1, &f), -EDQUOT); /* ann without the group */
    assert_int_equal(charge_take_who(&c[2], &a, &ann, CHARGE_CONNECTIONS, 1, &f), 0);
    assert_int_equal(charge_take_who(&c[3], &a, &ann, CHARGE_CONNECTIONS, 1, &f), -EDQUOT);
    assert_int_equal(f.limit, 2);
    for (size_t i = 0; i < ELEMENTS(c); i++)
        charge_release(&c[i]);
    accounts_deinit(&a);
    quotas_deinit(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_looked_up),      cmocka_unit_test(lists_allow),
        cmocka_unit_test(who_is_there),             cmocka_unit_test(very_many_groups),
        cmocka_unit_test(quotas_by_user_and_group), cmocka_unit_test(accounts_have_their_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
