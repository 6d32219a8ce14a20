/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>

#include "client/tool.h"

static void is_shown(const char *in, size_t n, const char *out)
{
    _cleanup_buf_ struct buf b = BUF_INIT;

    assert_int_equal(visible_append(&b, in, n), 0);
    assert_string_equal(b.data, out);
}
#define SHOWN(in, out) is_shown(in, sizeof(in) - 1, out)

static void text_stays(void **state)
{
    (void)state;
    SHOWN("", "");
    SHOWN("plain\ttext\n", "plain\ttext\n");
    SHOWN("gr\u00fc\u00dfe \u4f60\u597d \U0001f600", "gr\u00fc\u00dfe \u4f60\u597d \U0001f600");
}

static void orders_to_the_terminal_are_shown(void **state)
{
    (void)state;
    SHOWN("\033[2J", "^[[2J");
    SHOWN("a\rb\bc\a", "a^Mb^Hc^G");
    SHOWN("a\0b", "a^@b");
    SHOWN("\x7f", "<U+007F>");
    SHOWN("\302\233", "<U+009B>");                  /* C1: CSI as a character */
    SHOWN("\342\200\256x", "<U+202E>x");            /* right-to-left override */
    SHOWN("\363\240\201\201", "<U+E0041>");         /* tag characters: hidden text */
}

static void bytes_that_are_not_text_are_shown(void **state)
{
    (void)state;
    SHOWN("\233[2J", "<9B>[2J");                    /* CSI as a byte */
    SHOWN("\300\233", "<C0><9B>");                  /* overlong */
    SHOWN("a\342\202", "a<E2><82>");                /* cut off */
    SHOWN("\355\240\200", "<ED><A0><80>");          /* a surrogate */
}

/* Whatever comes in: nothing below space but tab and line feed, and no DEL, goes out. */
static void every_byte_pair(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 65536; i++) {
        _cleanup_buf_ struct buf b = BUF_INIT;
        char in[2] = {(char)(i >> 8), (char)i};
        assert_int_equal(visible_append(&b, in, 2), 0);
        for (size_t k = 0; k < b.size; k++) {
            unsigned char c = (unsigned char)b.data[k];
            assert_true(c == '\n' || c == '\t' || (c >= 0x20 && c != 0x7f));
            if (c == 0xc2) /* C1 as UTF-8 */
                assert_true((unsigned char)b.data[k + 1] >= 0xa0);
        }
    }
}

static void durations_and_sizes(void **state)
{
    (void)state;
    char s[32];

    format_bytes(s, sizeof(s), 1023);
    assert_string_equal(s, "1023");
    format_bytes(s, sizeof(s), 1536);
    assert_string_equal(s, "1.5K");
    format_bytes(s, sizeof(s), UINT64_MAX);
    assert_string_equal(s, "16777216.0T");
    format_duration(s, sizeof(s), 59999999);
    assert_string_equal(s, "59 s");
    format_duration(s, sizeof(s), 7200ull * 1000000);
    assert_string_equal(s, "2 h");
    format_duration(s, sizeof(s), UINT64_MAX);
    assert_string_equal(s, "213503982 days");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_stays),
        cmocka_unit_test(orders_to_the_terminal_are_shown),
        cmocka_unit_test(bytes_that_are_not_text_are_shown),
        cmocka_unit_test(every_byte_pair),
        cmocka_unit_test(durations_and_sizes),
    };
    return cmocka_run_group_tests_name("client-visible", tests, NULL, NULL);
}
