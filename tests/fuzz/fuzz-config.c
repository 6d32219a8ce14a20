/* SPDX-License-Identifier: MIT */
/* config.json; what comes after a NUL byte is generation_config.json. */
#include <stdint.h>
#include <string.h>

#include "engine/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    const size_t n = cut ? (size_t)(cut - data) : size;
    struct model_config *c = NULL;
    struct fail f = FAIL_INIT;

    int r = model_config_parse((const char *)data, n, cut ? (const char *)cut + 1 : NULL, cut ? size - n - 1 : 0, &c, &f);
    if ((r < 0) != (f.err != 0) || (r < 0) != (c == NULL))
        __builtin_trap();
    if (c && (c->shape.heads % c->shape.o_groups != 0 || c->shape.experts_used > c->shape.experts))
        __builtin_trap();
    model_config_free(c);
    return 0;
}
