/* SPDX-License-Identifier: MIT */
/* See unicode.h. */
#include "engine/unicode.h"

#include <errno.h>

#include "base/macros.h"

static const uint32_t table[] = {
#include "engine/unicode-table.h"
};

/* Two letters each, in the order of enum unicode_category. */
static const char names[] = "LuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCoCsCn";
_Static_assert(sizeof(names) - 1 == 2 * UNICODE_CATEGORIES, "a name for each category");

size_t unicode_runs(void)
{
    return ELEMENTS(table);
}

struct unicode_run unicode_run(size_t i)
{
    return (struct unicode_run){
        .first = table[i] >> 8,
        .end = i + 1 < ELEMENTS(table) ? table[i + 1] >> 8 : UNICODE_END,
        .category = (enum unicode_category)(table[i] & 0xff),
    };
}

int unicode_category_mask(const char *name, size_t n, uint32_t *ret)
{
    uint32_t mask = 0;

    if (n != 1 && n != 2)
        return -ENOENT;
    for (unsigned c = 0; c < UNICODE_CATEGORIES; c++)
        if (names[2 * c] == name[0] && (n == 1 || names[2 * c + 1] == name[1]))
            mask |= 1u << c;
    if (!mask)
        return -ENOENT;
    *ret = mask;
    return 0;
}
