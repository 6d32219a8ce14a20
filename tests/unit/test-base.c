/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/fail.h"
#include "base/fd.h"
#include "base/map.h"
#include "base/parse.h"
#include "base/size.h"
#include "base/utf8.h"

static void fail_keeps_what_was_said(void **state)
{
    (void)state;
    struct fail f = FAIL_INIT;

    assert_int_equal(fail_set(&f, ENOENT, "NOT_FOUND", "no %s", "bread"), -ENOENT);
    fail_field(&f, "path");
    fail_limit(&f, 3, 4);
    fail_prefix(&f, "kitchen/%d", 7);
    assert_string_equal(f.message, "kitchen/7: no bread");
    assert_string_equal(f.code, "NOT_FOUND");
    assert_true(f.has_limit && f.limit == 3 && f.value == 4);
    assert_int_equal(fail_set(NULL, EIO, "IO_ERROR", "nobody listens"), -EIO);

    for (int i = 0; i < 300; i++)
        fail_prefix(&f, "again and again");
    assert_true(strlen(f.message) < sizeof(f.message));
}

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    size_t r = 7;

    assert_false(size_add(SIZE_MAX, 1, &r));
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &r));
    assert_false(size_align(SIZE_MAX - 1, 64, &r));
    assert_int_equal(r, 7);
    assert_true(size_align(65, 64, &r) && r == 128);
    assert_int_equal(div_up(9, 4), 3);
}

static void buf_grows_to_its_cap(void **state)
{
    (void)state;
    struct buf b = BUF_INIT_MAX(100);

    for (int i = 0; i < 10; i++)
        assert_int_equal(buf_append(&b, "0123456789", 10), 0);
    assert_int_equal(buf_append(&b, "x", 1), -EMSGSIZE);
    assert_int_equal(b.size, 100);
    buf_consume(&b, 95);
    assert_string_equal(b.data, "56789");
    assert_int_equal(buf_printf(&b, "-%d", 42), 0);
    assert_string_equal(b.data, "56789-42");
    buf_deinit(&b);
    assert_int_equal(buf_append_str(&b, ""), 0);
    char *taken = buf_take(&b);
    assert_string_equal(taken, "");
    free(taken);
}

static void map_survives_churn(void **state)
{
    (void)state;
    struct map *m;
    static int values[1000];

    assert_int_equal(map_new(&m), 0);
    for (int round = 0; round < 20; round++) {
        for (uint64_t i = 0; i < 1000; i++)
            assert_int_equal(map_put_u64(m, i, &values[i]), 0);
        assert_int_equal(map_put_u64(m, 5, &values[5]), -EEXIST);
        for (uint64_t i = 0; i < 1000; i += 2)
            assert_ptr_equal(map_remove_u64(m, i), &values[i]);
        assert_int_equal(map_size(m), 500);
        assert_null(map_get_u64(m, 4));
        assert_ptr_equal(map_get_u64(m, 5), &values[5]);

        size_t cursor = 0, seen = 0;
        const void *key;
        while (map_next(m, &cursor, &key, NULL)) {
            seen++;
            uint64_t k;
            memcpy(&k, key, sizeof(k));
            assert_non_null(map_remove_u64(m, k));
        }
        assert_int_equal(seen, 500);
        assert_int_equal(map_size(m), 0);
    }
    map_free(m);
}

static void numbers_are_strict(void **state)
{
    (void)state;
    uint64_t u;
    double d;

    assert_int_equal(parse_u64("10", 0, 10, &u), 0);
    assert_int_equal(parse_u64("11", 0, 10, &u), -ERANGE);
    assert_int_equal(parse_u64("18446744073709551616", 0, UINT64_MAX, &u), -ERANGE);
    static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "0x10", "1e3", "1.0"};
    for (size_t i = 0; i < ELEMENTS(bad); i++)
        assert_int_equal(parse_u64(bad[i], 0, UINT64_MAX, &u), -EINVAL);
    assert_int_equal(parse_double("0.5", 0, 1, &d), 0);
    assert_int_equal(parse_double("nan", 0, 1, &d), -EINVAL);
    assert_int_equal(parse_double("1e999", 0, 1, &d), -ERANGE);
    assert_int_equal(parse_bytes("8G", &u), 0);
    assert_int_equal(u, 8ull << 30);
    assert_int_equal(parse_bytes("99999999999G", &u), -ERANGE);
    assert_int_equal(parse_bytes("8g", &u), -EINVAL);
    assert_int_equal(parse_usec("50ms", &u), 0);
    assert_int_equal(u, 50000);
    assert_int_equal(parse_usec("infinity", &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(parse_count("10M", &u), 0);
    assert_int_equal(u, 10000000);
    assert_int_equal(parse_bool("On"), 1);
    assert_int_equal(parse_bool("off"), 0);
    assert_int_equal(parse_bool("maybe"), -EINVAL);
}

static void utf8_as_the_standard_says(void **state)
{
    (void)state;
    uint32_t c;
    char out[4];

    /* Every scalar value goes there and back; everything else is refused. */
    for (uint32_t i = 0; i <= 0x10ffff; i++) {
        if (i >= 0xd800 && i <= 0xdfff)
            continue;
        size_t n = utf8_encode(i, out);
        assert_int_equal(utf8_decode(out, n, &c), (int)n);
        assert_int_equal(c, i);
        if (n > 1)
            assert_int_equal(utf8_decode(out, n - 1, &c), -1);
    }
    static const char *const bad[] = {"\x80", "\xc0\xaf", "\xc1\x81", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x28\xa1"};
    for (size_t i = 0; i < ELEMENTS(bad); i++)
        assert_int_equal(utf8_decode(bad[i], strlen(bad[i]), &c), 0);
    assert_int_equal(utf8_invalid_at("ab\xffz", 4), 2);
    assert_int_equal(utf8_invalid_at("\xe2\x82\xac", 3), -1);
    assert_int_equal(utf8_invalid_at("a\xe2\x82", 3), 1);
    assert_int_equal(utf8_whole("a\xe2\x82", 3), 1);
    assert_int_equal(utf8_whole("a\xe2\x82\xac", 4), 4);
    assert_int_equal(utf8_whole("a\xff", 2), 2);
    assert_int_equal(utf8_whole("\xf0\x9f\x9a", 3), 0);
}

static void only_plain_files_are_opened(void **state)
{
    (void)state;
    struct fail f = FAIL_INIT;
    char dir[] = "/tmp/dsv4-test-XXXXXX", path[64];
    int fd;
    char *data;
    size_t n;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(fd_open_regular(AT_FDCWD, path, 0, &fd, NULL, &f), -EINVAL);
    assert_string_equal(f.code, "NOT_REGULAR_FILE");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(fd_open_regular(AT_FDCWD, dir, 0, &fd, NULL, &f), -EINVAL);
    assert_int_equal(fd_open_regular(AT_FDCWD, "/dev/zero", 0, &fd, NULL, &f), -EINVAL);
    assert_int_equal(fd_open_regular(AT_FDCWD, path, 0, &fd, NULL, &f), -ENOENT);

    snprintf(path, sizeof(path), "%s/file", dir);
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(fd_write_full(fd, "12345", 5), 0);
    close(fd);
    assert_int_equal(fd_read_file(AT_FDCWD, path, 4, &data, &n, &f), -EFBIG);
    assert_string_equal(f.code, "FILE_TOO_LARGE");
    assert_int_equal(fd_read_file(AT_FDCWD, path, 5, &data, &n, &f), 0);
    assert_string_equal(data, "12345");
    free(data);
    assert_int_equal(fd_is_sealed_memfd(STDIN_FILENO) == 1, 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

static void seals_are_told_apart(void **state)
{
    (void)state;
    int fd;

    assert_int_equal(fd_memfd("test", 10, &fd), 0);
    assert_int_equal(fd_is_sealed_memfd(fd), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK), 0);
    assert_int_equal(fd_is_sealed_memfd(fd), 1);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fail_keeps_what_was_said), cmocka_unit_test(sizes_do_not_wrap),
        cmocka_unit_test(buf_grows_to_its_cap),     cmocka_unit_test(map_survives_churn),
        cmocka_unit_test(numbers_are_strict),       cmocka_unit_test(utf8_as_the_standard_says),
        cmocka_unit_test(only_plain_files_are_opened), cmocka_unit_test(seals_are_told_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
