/* SPDX-License-Identifier: MIT */
/* What tokenizer-json.c fills and tokenizer.c works with. Nobody else includes this. */
#pragma once

#include "base/buf.h"
#include "engine/added.h"
#include "engine/bpe.h"
#include "engine/pattern.h"
#include "engine/tokenizer.h"

#define TOKEN_IDS_MAX (1u << 24)
#define SPLITS_MAX 16

enum token_flags {
    TOKEN_EXISTS = 1,
    TOKEN_ADDED = 2,
    TOKEN_SPECIAL = 4,
};

struct token {
    uint32_t at, n; /* bytes[at .. at + n) */
    uint8_t flags;  /* enum token_flags; 0: no such id */
};

struct tokenizer {
    struct token *token;       /* [size] */
    uint32_t size;             /* largest id + 1 */
    struct buf bytes;          /* of all tokens */
    struct pattern *split[SPLITS_MAX];
    unsigned n_splits;         /* each splits the pieces of the one before */
    struct bpe *bpe;
    struct added *added[2];    /* searched one after the other: [0] normalized false, [1] true */
};

/* The byte that a character of a vocabulary entry stands for; -1: none. */
int byte_of_character(uint32_t c);
/* Appends what the token decodes to: the bytes its characters stand for, or the text itself if one stands for none. */
int append_token_bytes(struct buf *out, const char *text, size_t n);
