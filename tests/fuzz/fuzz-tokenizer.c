/* SPDX-License-Identifier: MIT */
/* Input: a 16-bit length, so much of a tokenizer.json (or, when it is 0, of a split pattern up to a NUL), then text. */
#include <assert.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"
#include "engine/pattern.h"
#include "engine/textstream.h"
#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_pattern(const char *data, size_t size)
{
    _cleanup_(pattern_freep) struct pattern *p = NULL;
    const char *end = memchr(data, '\0', size);

    if (!end || pattern_new(data, (size_t)(end - data), &p, NULL) < 0)
        return;
    const char *text = end + 1;
    size_t n = size - (size_t)(text - data);
    _cleanup_free_ uint16_t *scratch = calloc(n + 1, sizeof(*scratch));
    _cleanup_free_ uint8_t *cut = calloc(n + 1, 1);
    if (!scratch || !cut || utf8_invalid_at(text, n) >= 0)
        return;
    pattern_split(p, text, n, scratch, cut);
    for (size_t i = 0; i < n; i++) /* characters stay whole */
        assert(!cut[i] || ((unsigned char)text[i] & 0xc0) != 0x80);
}

/* What was encoded comes back. */
static void fuzz_text(const struct tokenizer *t, const char *text, size_t n)
{
    _cleanup_tokens_ struct tokens ids = TOKENS_INIT;
    _cleanup_(textstream_freep) struct textstream *stream = NULL;
    struct text_span span[2] = {{.text = text, .n = n / 2, .control = true}, {.text = text + n / 2, .n = n - n / 2}};
    const char *stop[] = {"a", "\n\n"}, *shown;
    const size_t stop_n[] = {1, 2};
    size_t shown_n;

    if (textstream_new(t, stop, stop_n, 2, &stream) < 0 || tokenizer_encode(t, span, 2, &ids, NULL) < 0)
        return;
    for (size_t i = 0; i < ids.n; i++) {
        int r = textstream_feed(stream, ids.id[i], &shown, &shown_n);
        assert(r >= 0 && utf8_invalid_at(shown, shown_n) < 0);
    }
    (void)textstream_finish(stream, &shown, &shown_n);
    assert(utf8_invalid_at(shown, shown_n) < 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_(tokenizer_freep) struct tokenizer *t = NULL;

    if (size < 2)
        return 0;
    const char *rest = (const char *)data + 2;
    size_t n = data[0] | (size_t)data[1] << 8, left = size - 2;
    if (n == 0)
        fuzz_pattern(rest, left);
    else if (n <= left && tokenizer_parse(rest, n, &t, NULL) == 0)
        fuzz_text(t, rest + n, left - n);
    return 0;
}
