/* SPDX-License-Identifier: MIT */
/*
 * Byte-level BPE as tokenizer.json describes it (Hugging Face `tokenizers`): added tokens, the pre-tokenizer sequence,
 * merges. Immutable once loaded: any thread may use it. Time is linear in the text (n log n within one word).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "base/macros.h"

struct tokenizer;

struct tokens {
    uint32_t *id;   /* [n] */
    size_t n, capacity;
};
#define TOKENS_INIT ((struct tokens){0})
void tokens_deinit(struct tokens *t);
#define _cleanup_tokens_ _cleanup_(tokens_deinit)
int tokens_append(struct tokens *t, const uint32_t *id, size_t n);

/* A run of text. In `control` spans the added tokens (control tokens too) count as such; elsewhere they are plain text:
 * what a user writes can never become a control token. */
struct text_span {
    const char *text;
    size_t n;
    bool control;
};

int tokenizer_parse(const char *json, size_t size, struct tokenizer **ret, struct fail *f);
int tokenizer_read(int dir_fd, struct tokenizer **ret, struct fail *f); /* dir_fd/tokenizer.json */
struct tokenizer *tokenizer_free(struct tokenizer *t);
DEFINE_CLEANUP(struct tokenizer *, tokenizer_free)

/* Appends to *out. The spans are one text: plain text on both sides of a border is tokenised together, and an added
 * token must lie within one control span. BAD_UTF8 (value: byte offset in the whole text). */
int tokenizer_encode(const struct tokenizer *t, const struct text_span *span, size_t n_spans, struct tokens *out,
                     struct fail *f);

/* The bytes of one token (not NUL-terminated, valid as long as t); added tokens as their text. -ENOENT: no such id. */
int tokenizer_bytes(const struct tokenizer *t, uint32_t id, const char **ret, size_t *ret_n);
/* Id of the added token with exactly this text; -ENOENT. */
int tokenizer_find_added(const struct tokenizer *t, const char *text, uint32_t *ret);
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id); /* an added token marked special */
uint32_t tokenizer_size(const struct tokenizer *t); /* largest id + 1 */
