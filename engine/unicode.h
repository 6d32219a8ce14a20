/* SPDX-License-Identifier: MIT */
/*
 * General categories of Unicode as the `tokenizers` library knows them (Unicode 16): only what the pre-tokenizer's
 * patterns need. The table is made by engine/unicode-table.py.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define UNICODE_END 0x110000u /* one past the last code point */

/* In the order of the generated table. */
enum unicode_category {
    UNICODE_LU, UNICODE_LL, UNICODE_LT, UNICODE_LM, UNICODE_LO, UNICODE_MN, UNICODE_MC, UNICODE_ME,
    UNICODE_ND, UNICODE_NL, UNICODE_NO, UNICODE_PC, UNICODE_PD, UNICODE_PS, UNICODE_PE, UNICODE_PI,
    UNICODE_PF, UNICODE_PO, UNICODE_SM, UNICODE_SC, UNICODE_SK, UNICODE_SO, UNICODE_ZS, UNICODE_ZL,
    UNICODE_ZP, UNICODE_CC, UNICODE_CF, UNICODE_CO, UNICODE_CS, UNICODE_CN,
    UNICODE_CATEGORIES,
};
#define UNICODE_ALL_CATEGORIES ((1u << UNICODE_CATEGORIES) - 1)

/* Code points of one category, ascending and without gaps from 0 to UNICODE_END. */
struct unicode_run {
    uint32_t first, end; /* [first, end) */
    enum unicode_category category;
};
size_t unicode_runs(void);
struct unicode_run unicode_run(size_t i); /* i < unicode_runs() */

/* "Lu" or "L": the set as bits 1 << category. -ENOENT: no such category. */
int unicode_category_mask(const char *name, size_t n, uint32_t *ret);
