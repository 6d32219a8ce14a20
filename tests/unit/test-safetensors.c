/* SPDX-License-Identifier: MIT */
/* One header: what is read of a good one, and that each kind of bad one is refused with its code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "engine/safetensors.h"

#define START 1000
#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static int parse(const char *header, uint64_t data_bytes, struct safetensors *s, struct fail *f)
{
    return safetensors_parse(header, strlen(header), START, data_bytes, "x.safetensors", s, f);
}

static void a_good_header_is_read(void **state)
{
    (void)state;
    _cleanup_safetensors_ struct safetensors s = SAFETENSORS_NULL;
    const char header[] = "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2,3]", "8", "32") ","
                          T("a", "I64", "[1]", "0", "8") "," T("empty", "I8", "[0,5]", "8", "8") ","
                          T("scalar", "BF16", "[]", "32", "34") "}   ";

    assert_int_equal(parse(header, 34, &s, NULL), 0);
    assert_int_equal(s.n, 4);
    assert_string_equal(s.tensors[0].name, "a");
    assert_string_equal(s.tensors[1].name, "empty");
    assert_string_equal(s.tensors[2].name, "b");
    assert_int_equal(s.tensors[2].offset, START + 8);
    assert_int_equal(s.tensors[2].bytes, 24);
    assert_int_equal(s.tensors[2].n_dims, 2);
    assert_int_equal(s.tensors[2].dim[1], 3);
    assert_int_equal(s.tensors[2].dtype, DTYPE_F32);
    assert_int_equal(s.tensors[3].n_dims, 0);
}

static const struct {
    const char *header, *code, *says;
    uint64_t data_bytes;
} bad_headers[] = {
    {"", "CONFIG", "line 1", 0},
    {"{\"a\":1}", "CONFIG", "expected an object", 0},
    {"{\"__metadata__\":[]}", "CONFIG", "__metadata__", 0},
    {"{}", "BAD_OFFSETS", "expected", 1},
    {"{" T("a", "F32", "[1]", "0", "4") "," T("a", "F32", "[1]", "4", "8") "}", "CONFIG", "duplicate", 8},
    {"{" T("a", "F64", "[1]", "0", "8") "}", "BAD_TENSOR", "F64", 8},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", "BAD_TENSOR", "nothing", 1},
    {"{" T("a", "I8", "[1,1,1,1,1]", "0", "1") "}", "BAD_TENSOR", "array of 5", 1},
    {"{" T("a", "I8", "3", "0", "3") "}", "BAD_TENSOR", "found 3", 3},
    {"{" T("a", "I8", "[-1]", "0", "1") "}", "BAD_TENSOR", "found -1", 1},
    {"{" T("a", "I8", "[1.0]", "0", "1") "}", "BAD_TENSOR", "whole", 1},
    {"{" T("", "I8", "[1]", "0", "1") "}", "BAD_TENSOR", "name", 1},
    {"{" T("\\u001b[2J", "I8", "[1]", "0", "1") "}", "BAD_TENSOR", "?[2J", 1},
    {"{" T("a", "F32", "[4294967296,4294967296]", "0", "0") "}", "SHAPE_OVERFLOW", "4294967296", 0},
    {"{" T("a", "F32", "[9223372036854775807]", "0", "4") "}", "SHAPE_OVERFLOW", "less than", 4},
    {"{" T("a", "I8", "[3037000500,3037000500]", "0", "1") "}", "SHAPE_OVERFLOW", "less than", 1},
    {"{" T("a", "I8", "[99999999999999999999]", "0", "1") "}", "CONFIG", "line 1", 1},
    {"{" T("a", "F32", "[2]", "0", "4") "}", "BAD_OFFSETS", "8 bytes", 4},
    {"{" T("a", "F32", "[1]", "4", "0") "}", "BAD_OFFSETS", "4 to 0", 4},
    {"{" T("a", "F32", "[1]", "-4", "0") "}", "BAD_OFFSETS", "-4", 4},
    {"{" T("a", "F32", "[1]", "4", "8") "}", "BAD_OFFSETS", "where the file ends", 4},
    {"{" T("a", "F32", "[1]", "0", "4.0") "}", "BAD_OFFSETS", "whole", 4},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0]}}", "BAD_OFFSETS", "two", 0},
    {"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "2", "6") "}", "BAD_OFFSETS", "an overlap", 8},
    {"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "0", "4") "}", "BAD_OFFSETS", "an overlap", 4},
    {"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "6", "10") "}", "BAD_OFFSETS", "a gap", 10},
    {"{" T("a", "F32", "[1]", "2", "6") "}", "BAD_OFFSETS", "a gap", 6},
    {"{" T("a", "F32", "[1]", "0", "4") "}", "BAD_OFFSETS", "the file's end", 6},
};

static void bad_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ELEMENTS(bad_headers); i++) {
        _cleanup_safetensors_ struct safetensors s = SAFETENSORS_NULL;
        struct fail f = FAIL_INIT;
        if (parse(bad_headers[i].header, bad_headers[i].data_bytes, &s, &f) >= 0)
            fail_msg("accepted: %s", bad_headers[i].header);
        assert_string_equal(f.code, bad_headers[i].code);
        if (!strstr(f.message, bad_headers[i].says) || !strstr(f.message, "x.safetensors"))
            fail_msg("'%s' does not say '%s'", f.message, bad_headers[i].says);
    }
}

static void long_names_are_refused(void **state)
{
    (void)state;
    _cleanup_safetensors_ struct safetensors s = SAFETENSORS_NULL;
    char header[600];
    struct fail f = FAIL_INIT;

    snprintf(header, sizeof(header), "{\"%0257d\":{}}", 1);
    assert_int_equal(parse(header, 0, &s, &f), -EINVAL);
    assert_string_equal(f.code, "BAD_TENSOR");
}

static void header_length_is_checked(void **state)
{
    (void)state;
    static const struct {
        uint64_t says;
        size_t file;
        bool ok;
    } cases[] = {{0, 4, false},  {2, 10, true},  {3, 10, false}, {UINT64_MAX, 10, false}, {1ull << 62, 10, false},
                 {0, 8, true}, {UINT64_MAX - 7, 10, false}};

    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        char bytes[16] = {0}, *text = NULL;
        size_t n;
        struct fail f = FAIL_INIT;
        _cleanup_close_ int fd = memfd_create("header", MFD_CLOEXEC);
        memcpy(bytes, &cases[i].says, 8);
        assert_int_equal(fd_write_full(fd, bytes, cases[i].file), 0);
        int r = safetensors_read_header(fd, cases[i].file, "x.safetensors", &text, &n, &f);
        if (cases[i].ok) {
            assert_int_equal(r, 0);
            assert_int_equal(n, cases[i].says);
        } else {
            assert_int_equal(r, -EFBIG);
            assert_string_equal(f.code, "HEADER_TOO_LARGE");
        }
        free(text);
    }
}

/* Sparse, so it costs nothing: a header as long as the file, over the cap. */
static void the_cap_holds(void **state)
{
    (void)state;
    _cleanup_close_ int fd = memfd_create("header", MFD_CLOEXEC);
    const uint64_t n = CHECKPOINT_HEADER_MAX + 1ull;
    struct fail f = FAIL_INIT;
    char *text;
    size_t size;

    assert_int_equal(fd_write_full(fd, &n, sizeof(n)), 0);
    assert_int_equal(ftruncate(fd, (off_t)n + 100), 0);
    assert_int_equal(safetensors_read_header(fd, n + 100, "x.safetensors", &text, &size, &f), -EFBIG);
    assert_true(f.has_limit && f.limit == CHECKPOINT_HEADER_MAX && f.value == (int64_t)n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_header_is_read),   cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(long_names_are_refused),  cmocka_unit_test(header_length_is_checked),
        cmocka_unit_test(the_cap_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
