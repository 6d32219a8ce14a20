/* SPDX-License-Identifier: MIT */
/* What a model writes must not drive the terminal it is shown on: titles, colours, the clipboard, hidden text. */
#include "client/tool.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* Characters that change the order or the presence of the text around them. */
static bool is_invisible(uint32_t c)
{
    return (c >= 0x7f && c <= 0x9f) || c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0xfeff || (c >= 0xe0000 && c <= 0xe007f);
}

int visible_append(struct buf *b, const char *s, size_t n)
{
    while (n > 0) {
        uint32_t c = 0;
        int k = utf8_decode(s, n, &c), r;
        if (k <= 0) {
            k = 1;
            r = buf_printf(b, "<%02X>", (unsigned char)*s);
        } else if (c < 0x20 && c != '\n' && c != '\t') {
            r = buf_printf(b, "^%c", (int)c + '@');
        } else if (is_invisible(c)) {
            r = buf_printf(b, "<U+%04X>", c);
        } else {
            r = buf_append(b, s, (size_t)k);
        }
        if (r < 0)
            return r;
        s += k;
        n -= (size_t)k;
    }
    return buf_append(b, "", 0);
}

int visible_print(FILE *f, const char *s, bool terminal)
{
    _cleanup_buf_ struct buf b = BUF_INIT;

    if (!terminal) {
        fputs(s, f);
        return 0;
    }
    int r = visible_append(&b, s, strlen(s));
    if (r >= 0)
        fwrite(b.data, 1, b.size, f);
    return r;
}
