/* SPDX-License-Identifier: MIT */
/*
 * From a pattern's tree to the tables that pattern.c matches with.
 *
 * The tree becomes a program of a backtracking matcher: TAKE one character of a set, SPLIT (try x, if that fails y),
 * JUMP, LOOK, MATCH. Such a matcher only goes back because it does not know which branch leads to a match. We do know:
 * V(i), the set of instructions from which a match can be completed at position i, depends on V(i + 1) and the character
 * at i alone, so one pass from the end finds all V; then the first branch of a SPLIT that is in V is the one to take.
 * The sets V that can occur are numbered when the pattern is made (a deterministic automaton over the text read
 * backwards), and so is what to do next at each instruction for each V.
 */
#include <errno.h>
#include <string.h>

#include "base/map.h"
#include "engine/pattern-private.h"

enum op { OP_TAKE, OP_SPLIT, OP_JUMP, OP_LOOK, OP_MATCH };

struct inst {
    enum op op;
    uint8_t x, y;  /* SPLIT: x before y; others go on at x */
    bool negated;  /* LOOK */
    uint32_t set;  /* TAKE, LOOK */
};

/* A set of instructions. */
struct insts {
    uint64_t bit[(INSTS_MAX + 63) / 64];
};

/* Only while a pattern is made. */
struct build {
    const struct syntax *syntax;
    struct pattern *p;
    struct inst inst[INSTS_MAX];
    unsigned n_insts;
    uint64_t has[CLASSES_MAX];   /* [n_classes]: bits of the sets that characters of the class belong to */
    struct insts state[STATES_MAX]; /* [n_states] */
    struct map *number;          /* struct insts to state number + 1 */
    struct fail *f;
};

static void build_deinit(struct build **b)
{
    if (*b)
        map_free((*b)->number);
    free(*b);
}

static int too_big(struct build *b)
{
    return fail_set(b->f, EINVAL, "BAD_TOKENIZER", "the pattern is too complicated");
}

/* ---- tree to program */

static int emit(struct build *b, struct inst inst, uint8_t *ret)
{
    *ret = 0;
    if (b->n_insts >= INSTS_MAX)
        return too_big(b);
    *ret = (uint8_t)b->n_insts++;
    b->inst[*ret] = inst;
    return 0;
}

static int emit_node(struct build *b, uint32_t node);

/* The newest instruction goes on with the one that comes next. */
static int emit_step(struct build *b, enum op op, const struct node *node)
{
    uint8_t at;
    int r = emit(b, (struct inst){.op = op, .set = node->set, .negated = node->negated}, &at);

    if (r == 0)
        b->inst[at].x = (uint8_t)(at + 1);
    return r;
}

static int emit_alternatives(struct build *b, const struct node *node)
{
    uint8_t jumps[INSTS_MAX], split, at;
    unsigned n_jumps = 0;
    int r = 0;

    for (uint32_t c = node->child; c; c = b->syntax->node[c].next) {
        bool last = !b->syntax->node[c].next;
        if (!last && (r = emit(b, (struct inst){.op = OP_SPLIT}, &split)) < 0)
            return r;
        r = emit_node(b, c);
        if (r < 0 || last)
            break;
        r = emit(b, (struct inst){.op = OP_JUMP}, &at);
        if (r < 0)
            return r;
        jumps[n_jumps++] = at;
        b->inst[split].x = (uint8_t)(split + 1);
        b->inst[split].y = (uint8_t)(at + 1);
    }
    while (n_jumps > 0)
        b->inst[jumps[--n_jumps]].x = (uint8_t)b->n_insts;
    return r;
}

/* x*: L: SPLIT body, out; body; JUMP L; out. */
static int emit_star(struct build *b, uint32_t child)
{
    uint8_t split, jump;
    int r = emit(b, (struct inst){.op = OP_SPLIT}, &split);

    if (r == 0)
        r = emit_node(b, child);
    if (r == 0)
        r = emit(b, (struct inst){.op = OP_JUMP, .x = split}, &jump);
    if (r < 0)
        return r;
    b->inst[split].x = (uint8_t)(split + 1);
    b->inst[split].y = (uint8_t)(jump + 1);
    return 0;
}

static int emit_repeat(struct build *b, const struct node *node)
{
    uint8_t splits[REPEAT_MAX];
    unsigned n_splits = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < node->min; i++)
        r = emit_node(b, node->child);
    if (r == 0 && node->max == REPEAT_INFINITE)
        return emit_star(b, node->child);
    for (uint32_t i = node->min; r == 0 && i < node->max; i++) {
        r = emit(b, (struct inst){.op = OP_SPLIT}, &splits[n_splits]);
        if (r < 0)
            return r;
        b->inst[splits[n_splits]].x = (uint8_t)b->n_insts;
        n_splits++;
        r = emit_node(b, node->child);
    }
    while (n_splits > 0)
        b->inst[splits[--n_splits]].y = (uint8_t)b->n_insts;
    return r;
}

static int emit_node(struct build *b, uint32_t i)
{
    const struct node *node = &b->syntax->node[i];
    int r = 0;

    switch (node->type) {
    case NODE_SET:
        return emit_step(b, OP_TAKE, node);
    case NODE_LOOK:
        return emit_step(b, OP_LOOK, node);
    case NODE_ALT:
        return emit_alternatives(b, node);
    case NODE_REPEAT:
        return emit_repeat(b, node);
    case NODE_CAT:
        for (uint32_t c = node->child; r == 0 && c; c = b->syntax->node[c].next)
            r = emit_node(b, c);
        return r;
    }
    return -EINVAL;
}

/* ---- classes of characters that no set tells apart */

static int class_of(struct build *b, uint32_t c, unsigned category, uint8_t *ret)
{
    uint64_t has = 0;
    unsigned i = 0;

    for (uint32_t set = 0; set < b->syntax->n_sets; set++)
        has |= (uint64_t)syntax_set_has(b->syntax, set, c, category) << set;
    while (i < b->p->n_classes && b->has[i] != has)
        i++;
    if (i == CLASSES_MAX)
        return too_big(b);
    if (i == b->p->n_classes)
        b->has[b->p->n_classes++] = has;
    *ret = (uint8_t)i;
    return 0;
}

/* The first code point after c where a range of the pattern begins or has ended. */
static uint32_t next_border(const struct syntax *s, uint32_t c, uint32_t end)
{
    for (uint32_t i = 0; i < s->n_ranges; i++) {
        uint32_t first = s->range[i].first, after = s->range[i].last + 1;
        if (first > c)
            end = MIN(end, first);
        if (after > c)
            end = MIN(end, after);
    }
    return end;
}

/* Rows of BLOCK code points, each different row once. */
static int pack_classes(struct pattern *p, const uint8_t *class /* [UNICODE_END] */)
{
    size_t rows = 0;

    p->class = malloc(UNICODE_END);
    if (!p->class)
        return -ENOMEM;
    for (size_t i = 0; i < BLOCKS; i++) {
        size_t row = 0;
        while (row < rows && memcmp(p->class + row * BLOCK, class + i * BLOCK, BLOCK) != 0)
            row++;
        if (row == rows)
            memcpy(p->class + rows++ * BLOCK, class + i * BLOCK, BLOCK);
        p->block[i] = (uint16_t)row;
    }
    uint8_t *less = realloc(p->class, rows * BLOCK);
    p->class = less ? less : p->class;
    return 0;
}

static int build_classes(struct build *b)
{
    _cleanup_free_ uint8_t *class = malloc(UNICODE_END);

    if (!class)
        return fail_oom(b->f);
    for (size_t i = 0; i < unicode_runs(); i++) {
        struct unicode_run run = unicode_run(i);
        for (uint32_t c = run.first; c < run.end;) {
            uint32_t end = next_border(b->syntax, c, run.end);
            uint8_t number = 0;
            int r = class_of(b, c, run.category, &number);
            if (r < 0)
                return r;
            memset(class + c, number, end - c);
            c = end;
        }
    }
    return pack_classes(b->p, class) < 0 ? fail_oom(b->f) : 0;
}

/* ---- states */

static bool insts_has(const struct insts *s, unsigned i)
{
    return s->bit[i / 64] >> (i % 64) & 1;
}

/* For one position: `known` instructions were looked at, `viable` ones lead to a match. */
struct viable {
    const struct build *b;
    const struct insts *later; /* V(i + 1); NULL at the end of the text */
    uint64_t has;              /* sets that the character here belongs to; 0 at the end */
    struct insts known, viable;
};

/* Instructions lead to each other without taking a character only forwards or, once, back to a loop's SPLIT: parts
 * that are repeated take at least one, so this ends. */
static bool is_viable(struct viable *v, unsigned i)
{
    const struct inst *inst = &v->b->inst[i];
    bool yes = false;

    if (insts_has(&v->known, i))
        return insts_has(&v->viable, i);
    switch (inst->op) {
    case OP_MATCH:
        yes = true;
        break;
    case OP_TAKE:
        yes = v->later && (v->has >> inst->set & 1) && insts_has(v->later, inst->x);
        break;
    case OP_LOOK:
        yes = (v->has >> inst->set & 1) != inst->negated && is_viable(v, inst->x);
        break;
    case OP_JUMP:
        yes = is_viable(v, inst->x);
        break;
    case OP_SPLIT:
        yes = is_viable(v, inst->x);
        yes = is_viable(v, inst->y) || yes;
        break;
    }
    v->known.bit[i / 64] |= 1ull << (i % 64);
    v->viable.bit[i / 64] |= (uint64_t)yes << (i % 64);
    return yes;
}

static int number_state(struct build *b, const struct insts *later, uint64_t has, uint16_t *ret)
{
    struct viable v = {.b = b, .later = later, .has = has};

    for (unsigned i = 0; i < b->n_insts; i++)
        is_viable(&v, i);
    uintptr_t number = (uintptr_t)map_get(b->number, &v.viable, sizeof(v.viable));
    if (number == 0) {
        if (b->p->n_states >= STATES_MAX)
            return too_big(b);
        b->state[b->p->n_states++] = v.viable;
        number = b->p->n_states;
        if (map_put(b->number, &v.viable, sizeof(v.viable), (void *)number) < 0)
            return fail_oom(b->f);
    }
    *ret = (uint16_t)(number - 1);
    return 0;
}

static uint8_t action_of(const struct build *b, const struct insts *v, unsigned i)
{
    if (!insts_has(v, i))
        return DO_FAIL;
    for (;;) {
        const struct inst *inst = &b->inst[i];
        if (inst->op == OP_TAKE)
            return (uint8_t)i;
        if (inst->op == OP_MATCH)
            return DO_MATCH;
        i = inst->op == OP_SPLIT && !insts_has(v, inst->x) ? inst->y : inst->x;
    }
}

static int build_states(struct build *b)
{
    struct pattern *p = b->p;
    _cleanup_free_ uint16_t *before = calloc((size_t)STATES_MAX * p->n_classes, sizeof(*before));
    int r = !before || map_new(&b->number) < 0 ? fail_oom(b->f) : number_state(b, NULL, 0, &p->end);

    for (unsigned s = 0; r == 0 && s < p->n_states; s++)
        for (unsigned c = 0; r == 0 && c < p->n_classes; c++)
            r = number_state(b, &b->state[s], b->has[c], &before[s * p->n_classes + c]);
    if (r < 0)
        return r;
    p->action = calloc(p->n_states, sizeof(*p->action));
    p->before = realloc(before, (size_t)p->n_states * p->n_classes * sizeof(*before));
    if (p->before)
        before = NULL;
    if (!p->action || !p->before)
        return fail_oom(b->f);
    for (unsigned s = 0; s < p->n_states; s++)
        for (unsigned i = 0; i < b->n_insts; i++)
            p->action[s][i] = action_of(b, &b->state[s], i);
    for (unsigned i = 0; i < b->n_insts; i++)
        p->after[i] = b->inst[i].x;
    return 0;
}

int pattern_build(const struct syntax *syntax, struct pattern **ret, struct fail *f)
{
    _cleanup_(pattern_freep) struct pattern *p = calloc(1, sizeof(*p));
    _cleanup_(build_deinit) struct build *b = calloc(1, sizeof(*b));
    uint8_t match;

    if (!p || !b)
        return fail_oom(f);
    *b = (struct build){.syntax = syntax, .p = p, .f = f};
    int r = emit_node(b, syntax->root);
    if (r == 0)
        r = emit(b, (struct inst){.op = OP_MATCH}, &match);
    if (r == 0)
        r = build_classes(b);
    if (r == 0)
        r = build_states(b);
    if (r < 0)
        return r;
    *ret = TAKE_PTR(p);
    return 0;
}
