/* SPDX-License-Identifier: MIT */
/* The table of error codes, and errors there and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "proto/error.h"

static void the_table_is_sound(void **state)
{
    (void)state;
    assert_true(n_error_codes > 40);
    for (size_t i = 0; i < n_error_codes; i++) {
        const struct error_code *c = &error_codes[i];
        assert_true(strlen(c->code) < sizeof(((struct fail *)0)->code));
        for (const char *p = c->code; *p; p++)
            assert_true(isupper((unsigned char)*p) || *p == '_' || isdigit((unsigned char)*p));
        assert_true(c->err > 0);
        assert_true(strlen(c->sentence) > 10);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(c->code, error_codes[j].code);
        assert_int_equal(error_errno(c->code), c->err);
    }
    assert_int_equal(error_errno("FROM_THE_FUTURE"), EIO);
}

static void there_and_back(void **state)
{
    (void)state;
    struct fail a = FAIL_INIT, b = FAIL_INIT;
    Dsv4__V1__Error e;

    fail_set(&a, EDQUOT, "QUOTA", "too much of %s", "it");
    fail_field(&a, "connections");
    fail_limit(&a, 32, 33);
    a.retry_after_ms = 1500;
    error_from_fail(&e, &a);
    assert_int_equal(error_to_fail(&e, &b), -EDQUOT);
    assert_int_equal(b.err, EDQUOT);
    assert_string_equal(b.code, "QUOTA");
    assert_string_equal(b.message, "too much of it");
    assert_string_equal(b.field, "connections");
    assert_true(b.has_limit && b.has_value && b.limit == 32 && b.value == 33);
    assert_int_equal(b.retry_after_ms, 1500);
    assert_int_equal(error_to_fail(&e, NULL), -EDQUOT);
}

static void defaults(void **state)
{
    (void)state;
    struct fail f = FAIL_INIT;
    Dsv4__V1__Error e;

    error_from_fail(&e, &f);
    assert_string_equal(e.code, "INTERNAL");
    assert_true(strlen(e.message) > 0);
    f = FAIL_INIT;
    fail_set(&f, ENOENT, "NO_SUCH_MODEL", "%s", "");
    error_from_fail(&e, &f);
    assert_string_equal(e.message, "There is no model of that name");
    assert_null(e.field);
    assert_false(e.has_limit || e.has_value || e.has_retry_after_ms);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_sound),
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
