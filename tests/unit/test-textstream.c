/* SPDX-License-Identifier: MIT */
/* Text from output tokens: compared after every token with what the whole output so far says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "engine/textstream.h"

static struct tokenizer *tokenizer;
static uint32_t byte_id[256]; /* UINT32_MAX: no token is that byte alone */

static int load(void **state)
{
    (void)state;
    const char *top = getenv("top_srcdir"), *bytes;
    char path[4096];
    size_t n;
    struct fail f = FAIL_INIT;

    snprintf(path, sizeof(path), "%s/models/nano", top ? top : ".");
    _cleanup_close_ int dir = open(path, O_RDONLY | O_DIRECTORY);
    if (dir < 0 || tokenizer_read(dir, &tokenizer, &f) < 0)
        return -1;
    memset(byte_id, 0xff, sizeof(byte_id));
    for (uint32_t id = 0; id < tokenizer_size(tokenizer); id++)
        if (tokenizer_bytes(tokenizer, id, &bytes, &n) == 0 && n == 1)
            byte_id[(unsigned char)*bytes] = id;
    return 0;
}

static int unload(void **state)
{
    (void)state;
    tokenizer = tokenizer_free(tokenizer);
    return 0;
}

/* ---- the plain way: everything so far, looked at as a whole */

/* Like Python's bytes.decode("utf-8", "replace"), by the ranges of Unicode's table 3-7; an unfinished end only if last. */
static size_t plain_decode(const unsigned char *s, size_t n, bool last, char *out)
{
    size_t m = 0;

    for (size_t i = 0; i < n;) {
        unsigned c = s[i];
        size_t want = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
        size_t have = want > 0;
        unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        for (; have > 0 && have < want && i + have < n && s[i + have] >= low && s[i + have] <= high; have++)
            low = 0x80, high = 0xbf;
        if (have < want && i + have == n && !last)
            return m;
        bool good = have > 0 && have == want;
        memcpy(out + m, good ? (const char *)s + i : "\xef\xbf\xbd", good ? have : 3);
        m += good ? have : 3;
        i += MAX(have, (size_t)1);
    }
    return m;
}

/* Where the text ends because of a stop string (n: it does not), looking for the first that is complete. */
static size_t plain_stop(const char *text, size_t n, const char *const *stop, uint32_t n_stops)
{
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (uint32_t i = 0; i < n_stops; i++) {
            size_t k = strlen(stop[i]);
            if (k <= end && memcmp(text + end - k, stop[i], k) == 0)
                longest = MAX(longest, k);
        }
        if (longest > 0)
            return end - longest;
    }
    return n;
}

static size_t plain_held(const char *text, size_t n, const char *const *stop, uint32_t n_stops)
{
    size_t held = 0;
    for (uint32_t i = 0; i < n_stops; i++)
        for (size_t k = 1; k < strlen(stop[i]) && k <= n; k++)
            if (memcmp(text + n - k, stop[i], k) == 0)
                held = MAX(held, k);
    return held;
}

#define LENGTH 400

static void run(const uint32_t *id, size_t n, const char *const *stop, uint32_t n_stops)
{
    _cleanup_(textstream_freep) struct textstream *s = NULL;
    size_t stop_n[STOP_STRINGS_MAX], n_raw = 0, length;
    unsigned char raw[LENGTH * 64];
    static char whole[LENGTH * 64 * 3];
    _cleanup_buf_ struct buf shown = BUF_INIT;
    const char *text;

    for (uint32_t i = 0; i < n_stops; i++)
        stop_n[i] = strlen(stop[i]);
    assert_int_equal(textstream_new(tokenizer, stop, stop_n, n_stops, &s), 0);
    for (size_t i = 0; i <= n; i++) {
        const char *bytes = "";
        int r;
        length = 0;
        if (i < n) {
            assert_int_equal(tokenizer_bytes(tokenizer, id[i], &bytes, &length), 0);
            memcpy(raw + n_raw, bytes, length);
            n_raw += length;
            r = textstream_feed(s, id[i], &text, &length);
        } else {
            r = textstream_finish(s, &text, &length);
        }
        assert_int_equal(buf_append(&shown, text, length), 0);
        size_t m = plain_decode(raw, n_raw, i == n, whole), cut = plain_stop(whole, m, stop, n_stops);
        assert_int_equal(r, cut < m);
        size_t expected = cut < m ? cut : i == n ? m : m - plain_held(whole, m, stop, n_stops);
        assert_int_equal(shown.size, expected);
        assert_memory_equal(shown.data ? shown.data : "", whole, expected);
    }
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void equals_the_whole_output(void **state)
{
    (void)state;
    static const char *const stops[] = {"ab", "aab", "é", "\uFFFDa", "abab", "aaaaab", "b\n\nb", "中a", "the", "zzz"};
    static const unsigned char alphabet[] = {'a', 'b', '\n', 0xc3, 0xa9, 0xe4, 0xb8, 0xad, 0xf0, 0x9f, 0x98, 0x80, 0xed, 0xa0};
    uint32_t seed = 1, id[LENGTH];

    for (int round = 0; round < 600; round++) {
        uint32_t first = next_random(&seed) % 10, n_stops = next_random(&seed) % (11 - first);
        size_t n = next_random(&seed) % LENGTH;
        for (size_t i = 0; i < n; i++) {
            do
                id[i] = next_random(&seed) % 10 ? byte_id[alphabet[next_random(&seed) % sizeof(alphabet)]]
                                                : next_random(&seed) % tokenizer_size(tokenizer);
            while (id[i] == UINT32_MAX);
        }
        run(id, n, stops + first, n_stops);
    }
}

static void never_half_a_character(void **state)
{
    (void)state;
    _cleanup_(textstream_freep) struct textstream *s = NULL;
    static const unsigned char smile[] = {0xf0, 0x9f, 0x99, 0x82};
    const char *text;
    size_t n;

    assert_int_equal(textstream_new(tokenizer, NULL, NULL, 0, &s), 0);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(textstream_feed(s, byte_id[smile[i]], &text, &n), 0);
        assert_int_equal(n, 0);
    }
    assert_int_equal(textstream_feed(s, byte_id[smile[3]], &text, &n), 0);
    assert_int_equal(n, 4);
    assert_memory_equal(text, smile, 4);
    assert_int_equal(textstream_feed(s, byte_id[0xe4], &text, &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(textstream_finish(s, &text, &n), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "\xef\xbf\xbd", 3);
}

static void stops_once_and_for_good(void **state)
{
    (void)state;
    _cleanup_(textstream_freep) struct textstream *s = NULL;
    const char *stop[] = {"bc"}, *text;
    size_t stop_n[] = {2}, n;

    assert_int_equal(textstream_new(tokenizer, stop, stop_n, 1, &s), 0);
    assert_int_equal(textstream_feed(s, byte_id['a'], &text, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(textstream_feed(s, byte_id['b'], &text, &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(textstream_feed(s, byte_id['b'], &text, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(textstream_feed(s, tokenizer_size(tokenizer), &text, &n), -ENOENT);
    assert_int_equal(textstream_feed(s, byte_id['c'], &text, &n), 1);
    assert_int_equal(n, 0);
    assert_int_equal(textstream_feed(s, byte_id['a'], &text, &n), 1);
    assert_int_equal(n, 0);
    assert_int_equal(textstream_finish(s, &text, &n), 1);
    assert_int_equal(n, 0);
}

static void refuses_bad_stops(void **state)
{
    (void)state;
    struct textstream *s = NULL;
    char lots[STOP_STRING_BYTES_MAX + 1];
    const char *stop[STOP_STRINGS_MAX + 1];
    size_t n[STOP_STRINGS_MAX + 1];

    memset(lots, 'x', sizeof(lots));
    for (size_t i = 0; i < ELEMENTS(stop); i++)
        stop[i] = lots, n[i] = STOP_STRING_BYTES_MAX;
    assert_int_equal(textstream_new(tokenizer, stop, n, STOP_STRINGS_MAX + 1, &s), -EINVAL);
    assert_int_equal(textstream_new(tokenizer, stop, n, STOP_STRINGS_MAX, &s), 0);
    textstream_free(s);
    n[3] = STOP_STRING_BYTES_MAX + 1;
    assert_int_equal(textstream_new(tokenizer, stop, n, STOP_STRINGS_MAX, &s), -EINVAL);
    n[3] = 0;
    assert_int_equal(textstream_new(tokenizer, stop, n, STOP_STRINGS_MAX, &s), -EINVAL);
    stop[0] = "\xc3", n[0] = 1;
    assert_int_equal(textstream_new(tokenizer, stop, n, 1, &s), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_whole_output),
        cmocka_unit_test(never_half_a_character),
        cmocka_unit_test(stops_once_and_for_good),
        cmocka_unit_test(refuses_bad_stops),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
