/* SPDX-License-Identifier: MIT */
/* Between pattern-parse.c (text to tree), pattern-build.c (tree to tables) and pattern.c (matching). Nobody else
 * includes this. */
#pragma once

#include "engine/pattern.h"
#include "engine/unicode.h"

#define NODES_MAX 512
#define SETS_MAX 64   /* one bit each in a word */
#define RANGES_MAX 512
#define DEPTH_MAX 32
#define REPEAT_INFINITE UINT32_MAX
#define REPEAT_MAX 250

struct range {
    uint32_t first, last;
};

/* Characters of the categories or in the ranges; negated: all others. */
struct set {
    uint32_t categories; /* bits 1 << enum unicode_category */
    uint32_t range, n_ranges;
    bool negated;
};

enum node_type {
    NODE_SET,    /* one character of the set */
    NODE_LOOK,   /* the next character is of the set (negated: is not, or there is none) */
    NODE_CAT,    /* children one after the other; none: matches the empty text */
    NODE_ALT,    /* children, the first that leads to a match */
    NODE_REPEAT, /* the child min to max times, as often as possible */
};

struct node {
    enum node_type type;
    uint32_t child, next; /* indices; 0: none */
    uint32_t min, max;
    uint32_t set;
    bool negated;
};

struct syntax {
    struct node node[NODES_MAX]; /* [0] is unused */
    struct set set[SETS_MAX];
    struct range range[RANGES_MAX];
    uint32_t n_nodes, n_sets, n_ranges;
    uint32_t root;
};

int pattern_parse(const char *regex, size_t n, struct syntax **ret, struct fail *f);
bool syntax_set_has(const struct syntax *s, uint32_t set, uint32_t c, unsigned category);
/* Whether the node can match the empty text. */
bool syntax_nullable(const struct syntax *s, uint32_t node);

#define INSTS_MAX 250
#define CLASSES_MAX 255
#define STATES_MAX 2048
#define BLOCK 256
#define BLOCKS (UNICODE_END / BLOCK)
#define DO_MATCH 254 /* actions other than the number of a TAKE */
#define DO_FAIL 255

struct pattern {
    uint16_t block[BLOCKS];      /* code point / BLOCK to a row of class */
    uint8_t *class;              /* [rows][BLOCK]: class of the character */
    unsigned n_classes, n_states;
    uint16_t *before;            /* [n_states][n_classes]: V(i) from V(i + 1) and the class at i */
    uint8_t (*action)[INSTS_MAX];/* [n_states]: at an instruction, the TAKE to go on with, or DO_... */
    uint8_t start, after[INSTS_MAX]; /* after[TAKE]: the next instruction */
    uint16_t end;                /* V at the end of the text */
};

int pattern_build(const struct syntax *syntax, struct pattern **ret, struct fail *f);
