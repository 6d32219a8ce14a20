/* SPDX-License-Identifier: MIT */
/*
 * Byte-pair merging: a word's bytes become tokens, and of all neighbours that have a merge the one of lowest rank is
 * merged, the leftmost of equals, until none is left. n log n for a word of n bytes.
 */
#pragma once

#include "engine/tokenizer.h"

struct bpe; /* immutable: any thread may use it */

struct bpe_merge {
    uint32_t left, right, result; /* token ids; the rank is the place in the list */
};

#define BPE_NO_TOKEN UINT32_MAX

/* byte_token[b]: the token of byte b, or BPE_NO_TOKEN for bytes that never come. -EEXIST: *ret_at is a merge whose pair
 * was there before. -ENOMEM. */
int bpe_new(const uint32_t byte_token[256], const struct bpe_merge *merge, uint32_t n_merges, struct bpe **ret,
            uint32_t *ret_at);
struct bpe *bpe_free(struct bpe *b);
DEFINE_CLEANUP(struct bpe *, bpe_free)

/* What one encoding needs while it works, reused from word to word. */
struct bpe_work {
    uint32_t *id, *prev, *next; /* [capacity]: the word's symbols as a list */
    uint64_t *heap;             /* [heap_capacity]: rank << 32 | position */
    size_t capacity, heap_size, heap_capacity;
};
#define BPE_WORK_INIT ((struct bpe_work){0})
void bpe_work_deinit(struct bpe_work *w);
#define _cleanup_bpe_work_ _cleanup_(bpe_work_deinit)

/* Appends the tokens of word[n] (n < 2^31) to *out. -ENOMEM. */
int bpe_encode(const struct bpe *b, struct bpe_work *w, const char *word, size_t n, struct tokens *out);
