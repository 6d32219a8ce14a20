/* SPDX-License-Identifier: MIT */
/* From the text of a pattern to a tree: recursive descent, all sizes bounded. See pattern.h for what is accepted. */
#include <errno.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/pattern-private.h"
#include "engine/unicode.h"

#define NO_CHARACTER UINT32_MAX

struct parser {
    const char *s; /* [n], valid UTF-8 */
    size_t n, at;
    unsigned depth;
    struct syntax *x;
    struct fail *f;
};

static int refuse(struct parser *p, const char *what)
{
    return fail_set(p->f, EINVAL, "BAD_TOKENIZER", "the pattern has %s at byte %zu, which is not supported", what,
                    p->at);
}

static int too_big(struct parser *p)
{
    return fail_set(p->f, EINVAL, "BAD_TOKENIZER", "the pattern is too complicated (at byte %zu)", p->at);
}

static bool at_end(const struct parser *p)
{
    return p->at >= p->n;
}

static bool looking_at(const struct parser *p, const char *s)
{
    size_t n = strlen(s);
    return p->n - p->at >= n && memcmp(p->s + p->at, s, n) == 0;
}

static bool accept_str(struct parser *p, const char *s)
{
    if (!looking_at(p, s))
        return false;
    p->at += strlen(s);
    return true;
}

/* The next character; the caller knows that there is one. */
static uint32_t take(struct parser *p)
{
    uint32_t c = 0;
    int length = utf8_decode(p->s + p->at, p->n - p->at, &c);
    p->at += (size_t)MAX(length, 1);
    return c;
}

static int new_node(struct parser *p, enum node_type type, uint32_t *ret)
{
    if (p->x->n_nodes >= NODES_MAX)
        return too_big(p);
    *ret = p->x->n_nodes++;
    p->x->node[*ret] = (struct node){.type = type};
    return 0;
}

static int new_set(struct parser *p, uint32_t *ret)
{
    if (p->x->n_sets >= SETS_MAX)
        return too_big(p);
    *ret = p->x->n_sets++;
    p->x->set[*ret] = (struct set){.range = p->x->n_ranges};
    return 0;
}

/* Only the newest set grows: its ranges are the last ones. */
static int add_range(struct parser *p, struct set *set, uint32_t first, uint32_t last)
{
    if (p->x->n_ranges >= RANGES_MAX)
        return too_big(p);
    p->x->range[p->x->n_ranges++] = (struct range){first, last};
    set->n_ranges++;
    return 0;
}

static int add_space(struct parser *p, struct set *set, bool negated)
{
    static const struct range yes[] = {{9, 13}, {0x85, 0x85}};
    static const struct range no[] = {{0, 8}, {14, 31}, {0x7f, 0x84}, {0x86, 0x9f}}; /* the rest of category Cc */
    uint32_t z = 1u << UNICODE_ZS | 1u << UNICODE_ZL | 1u << UNICODE_ZP;
    const struct range *range = negated ? no : yes;
    int r = 0;

    set->categories |= negated ? UNICODE_ALL_CATEGORIES & ~z & ~(1u << UNICODE_CC) : z;
    for (size_t i = 0; r == 0 && i < (negated ? ELEMENTS(no) : ELEMENTS(yes)); i++)
        r = add_range(p, set, range[i].first, range[i].last);
    return r;
}

/* After \p or \P. */
static int add_property(struct parser *p, struct set *set, bool negated)
{
    uint32_t mask;

    if (!accept_str(p, "{"))
        return refuse(p, "\\p without {");
    const char *name = p->s + p->at, *close = memchr(name, '}', p->n - p->at);
    if (!close || unicode_category_mask(name, (size_t)(close - name), &mask) < 0)
        return refuse(p, "a property that is no general category");
    p->at += (size_t)(close - name) + 1;
    set->categories |= negated ? UNICODE_ALL_CATEGORIES & ~mask : mask;
    return 0;
}

static int take_hex4(struct parser *p, uint32_t *ret)
{
    static const char digits[] = "0123456789abcdef";
    uint32_t c = 0;

    for (int i = 0; i < 4; i++) {
        const char *d = at_end(p) || !p->s[p->at] ? NULL : strchr(digits, p->s[p->at] | 0x20);
        if (!d)
            return refuse(p, "\\u without four hexadecimal digits");
        c = c << 4 | (uint32_t)(d - digits);
        p->at++;
    }
    if (c >= 0xd800 && c < 0xe000)
        return refuse(p, "a surrogate");
    *ret = c;
    return 0;
}

/* After a backslash: adds a class to the set, or gives the one character that is meant (else NO_CHARACTER). */
static int parse_escape(struct parser *p, struct set *set, uint32_t *ret)
{
    static const char from[] = "rntfvae", to[] = "\r\n\t\f\v\a\033";
    const char *simple;

    *ret = NO_CHARACTER;
    if (at_end(p))
        return refuse(p, "a backslash as its last character");
    uint32_t c = take(p);
    switch (c) {
    case 'p':
    case 'P':
        return add_property(p, set, c == 'P');
    case 's':
    case 'S':
        return add_space(p, set, c == 'S');
    case 'd':
    case 'D':
        set->categories |= c == 'd' ? 1u << UNICODE_ND : UNICODE_ALL_CATEGORIES & ~(1u << UNICODE_ND);
        return 0;
    case 'u':
        return take_hex4(p, ret);
    default:
        break;
    }
    if (c > 0 && c < 0x80 && (simple = strchr(from, (int)c)))
        *ret = (unsigned char)to[simple - from];
    else if (c > ' ' && c < 0x7f && !(c >= '0' && c <= '9') && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z'))
        *ret = c;
    else
        return refuse(p, "an escape");
    return 0;
}

/* One member of a class: a character in *ret, or NO_CHARACTER after adding an escaped class. */
static int parse_member(struct parser *p, struct set *set, uint32_t *ret)
{
    if (at_end(p))
        return refuse(p, "a class without ]");
    if (looking_at(p, "[") || looking_at(p, "&&"))
        return refuse(p, "a nested class or an intersection");
    uint32_t c = take(p);
    if (c == '\\')
        return parse_escape(p, set, ret);
    *ret = c;
    return 0;
}

/* A member, or a range of two. A lone minus may only come first or last. */
static int parse_members(struct parser *p, struct set *set, bool first)
{
    uint32_t a, b;
    int r;

    if (!first && looking_at(p, "-") && !looking_at(p, "-]"))
        return refuse(p, "an ambiguous - in a class");
    r = parse_member(p, set, &a);
    if (r < 0 || !looking_at(p, "-") || looking_at(p, "-]"))
        return r < 0 || a == NO_CHARACTER ? r : add_range(p, set, a, a);
    p->at++;
    r = a == NO_CHARACTER ? refuse(p, "a range that begins with a class") : parse_member(p, set, &b);
    if (r < 0)
        return r;
    if (b == NO_CHARACTER || b < a)
        return refuse(p, "a range whose end is not a character after its beginning");
    return add_range(p, set, a, b);
}

/* After [. */
static int parse_class(struct parser *p, struct set *set)
{
    set->negated = accept_str(p, "^");
    if (looking_at(p, "]"))
        return refuse(p, "an empty class or a ] at the beginning of one");
    for (bool first = true; !accept_str(p, "]"); first = false) {
        int r = parse_members(p, set, first);
        if (r < 0)
            return r;
    }
    return 0;
}

/* A character, a class or an escape: one set. */
static int parse_set(struct parser *p, uint32_t *ret)
{
    int r = new_set(p, ret);

    if (r < 0)
        return r;
    struct set *set = &p->x->set[*ret];
    if (accept_str(p, "["))
        return parse_class(p, set);
    uint32_t c = NO_CHARACTER;
    if (looking_at(p, ".")) {
        p->at++;
        set->negated = true;
        c = '\n';
    } else if (accept_str(p, "\\")) {
        r = parse_escape(p, set, &c);
    } else {
        if (p->s[p->at] == '\0' || strchr("*+?{}]^$)|", p->s[p->at]))
            return refuse(p, "an operator without its operand, or an anchor");
        c = take(p);
    }
    return r < 0 || c == NO_CHARACTER ? r : add_range(p, set, c, c);
}

static int parse_alternatives(struct parser *p, uint32_t *ret);

static int parse_look(struct parser *p, bool negated, uint32_t *ret)
{
    uint32_t set;
    int r = at_end(p) || looking_at(p, "(") ? refuse(p, "lookahead for more than one character") : parse_set(p, &set);

    if (r == 0)
        r = new_node(p, NODE_LOOK, ret);
    if (r < 0)
        return r;
    p->x->node[*ret].set = set;
    p->x->node[*ret].negated = negated;
    return accept_str(p, ")") ? 0 : refuse(p, "lookahead for more than one character");
}

static int parse_group(struct parser *p, uint32_t *ret)
{
    if (accept_str(p, "(?!"))
        return parse_look(p, true, ret);
    if (accept_str(p, "(?="))
        return parse_look(p, false, ret);
    if (!accept_str(p, "(?:")) {
        p->at++;
        if (looking_at(p, "?"))
            return refuse(p, "an extended group");
    }
    if (++p->depth > DEPTH_MAX)
        return too_big(p);
    int r = parse_alternatives(p, ret);
    p->depth--;
    if (r == 0 && !accept_str(p, ")"))
        r = refuse(p, "a group without )");
    return r;
}

static int parse_atom(struct parser *p, uint32_t *ret)
{
    uint32_t set;

    if (looking_at(p, "("))
        return parse_group(p, ret);
    int r = parse_set(p, &set);
    if (r == 0)
        r = new_node(p, NODE_SET, ret);
    if (r == 0)
        p->x->node[*ret].set = set;
    return r;
}

static int take_count(struct parser *p, uint32_t *ret)
{
    uint32_t value = 0;
    size_t start = p->at;

    while (!at_end(p) && p->s[p->at] >= '0' && p->s[p->at] <= '9' && value <= REPEAT_MAX)
        value = value * 10 + (uint32_t)(p->s[p->at++] - '0');
    if (p->at == start || value > REPEAT_MAX)
        return refuse(p, "a count that is missing or too large");
    *ret = value;
    return 0;
}

/* A quantifier if there is one: *ret_min and *ret_max stay 1 otherwise. */
static int parse_counts(struct parser *p, uint32_t *ret_min, uint32_t *ret_max)
{
    int r;

    *ret_min = *ret_max = 1;
    if (accept_str(p, "?")) {
        *ret_min = 0;
    } else if (accept_str(p, "*")) {
        *ret_min = 0, *ret_max = REPEAT_INFINITE;
    } else if (accept_str(p, "+")) {
        *ret_max = REPEAT_INFINITE;
    } else if (accept_str(p, "{")) {
        r = take_count(p, ret_min);
        *ret_max = *ret_min;
        if (r == 0 && accept_str(p, ",")) {
            *ret_max = REPEAT_INFINITE;
            if (!looking_at(p, "}"))
                r = take_count(p, ret_max);
        }
        if (r < 0)
            return r;
        if (!accept_str(p, "}") || *ret_max < *ret_min || *ret_max == 0)
            return refuse(p, "a malformed count");
    } else {
        return 0;
    }
    if (!at_end(p) && strchr("?*+{", p->s[p->at]))
        return refuse(p, "a quantifier after a quantifier (lazy, possessive or doubled)");
    return 1;
}

static int parse_item(struct parser *p, uint32_t *ret)
{
    uint32_t atom, min, max;
    int r = parse_atom(p, &atom);

    if (r == 0)
        r = parse_counts(p, &min, &max);
    if (r <= 0) {
        *ret = atom;
        return r;
    }
    if (syntax_nullable(p->x, atom))
        return refuse(p, "a repeated part that can be empty");
    r = new_node(p, NODE_REPEAT, ret);
    if (r == 0) {
        p->x->node[*ret].child = atom;
        p->x->node[*ret].min = min;
        p->x->node[*ret].max = max;
    }
    return r;
}

static int parse_sequence(struct parser *p, uint32_t *ret)
{
    int r = new_node(p, NODE_CAT, ret);
    uint32_t last = 0;

    while (r == 0 && !at_end(p) && !looking_at(p, "|") && !looking_at(p, ")")) {
        uint32_t item = 0;
        r = parse_item(p, &item);
        *(last ? &p->x->node[last].next : &p->x->node[*ret].child) = item;
        last = item;
    }
    return r;
}

static int parse_alternatives(struct parser *p, uint32_t *ret)
{
    int r = new_node(p, NODE_ALT, ret);
    uint32_t last = 0;

    do {
        uint32_t sequence = 0;
        if (r == 0)
            r = parse_sequence(p, &sequence);
        if (r < 0)
            return r;
        *(last ? &p->x->node[last].next : &p->x->node[*ret].child) = sequence;
        last = sequence;
    } while (accept_str(p, "|"));
    return 0;
}

int pattern_parse(const char *regex, size_t n, struct syntax **ret, struct fail *f)
{
    _cleanup_free_ struct syntax *x = calloc(1, sizeof(*x));
    struct parser p = {.s = regex, .n = n, .x = x, .f = f};

    if (!x)
        return fail_oom(f);
    x->n_nodes = 1;
    if (utf8_invalid_at(regex, n) >= 0)
        return fail_set(f, EINVAL, "BAD_TOKENIZER", "the pattern is not valid UTF-8");
    int r = parse_alternatives(&p, &x->root);
    if (r < 0)
        return r;
    if (!at_end(&p))
        return refuse(&p, "a ) without (");
    if (syntax_nullable(x, x->root))
        return fail_set(f, EINVAL, "BAD_TOKENIZER", "the pattern can match the empty text, which is not supported");
    *ret = TAKE_PTR(x);
    return 0;
}

bool syntax_set_has(const struct syntax *s, uint32_t set, uint32_t c, unsigned category)
{
    const struct set *t = &s->set[set];
    bool has = t->categories >> category & 1;

    for (uint32_t i = t->range; i < t->range + t->n_ranges; i++)
        has = has || (c >= s->range[i].first && c <= s->range[i].last);
    return has != t->negated;
}

bool syntax_nullable(const struct syntax *s, uint32_t node)
{
    const struct node *x = &s->node[node];
    bool all = true, any = false;

    if (x->type == NODE_LOOK)
        return true;
    if (x->type == NODE_SET)
        return false;
    for (uint32_t c = x->child; c; c = s->node[c].next) {
        bool nullable = syntax_nullable(s, c);
        all = all && nullable;
        any = any || nullable;
    }
    if (x->type == NODE_REPEAT)
        return x->min == 0 || all;
    return x->type == NODE_CAT ? all : any;
}
