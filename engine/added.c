/* SPDX-License-Identifier: MIT */
/* See added.h. Children of a node are a list; the root's, which every byte of text goes through, a table. */
#include "engine/added.h"

#include <errno.h>
#include <stdbool.h>

#define NO_ID UINT32_MAX

struct trie_node {
    uint32_t child, sibling; /* indices; 0: none */
    uint32_t id;             /* NO_ID: no string ends here */
    unsigned char byte;
};

struct added {
    struct trie_node *node; /* [n_nodes]; [0] is the root */
    size_t n_nodes, capacity;
    uint32_t first[256];    /* the root's child for each byte; 0: none */
};

int added_new(struct added **ret)
{
    _cleanup_(added_freep) struct added *a = calloc(1, sizeof(*a));

    if (!a || !(a->node = calloc(64, sizeof(*a->node))))
        return -ENOMEM;
    a->capacity = 64;
    a->n_nodes = 1;
    *ret = TAKE_PTR(a);
    return 0;
}

struct added *added_free(struct added *a)
{
    if (a)
        free(a->node);
    free(a);
    return NULL;
}

static uint32_t child_of(const struct added *a, uint32_t node, unsigned char byte)
{
    uint32_t c = node == 0 ? a->first[byte] : a->node[node].child;

    while (c != 0 && a->node[c].byte != byte)
        c = a->node[c].sibling;
    return c;
}

static int new_child(struct added *a, uint32_t node, unsigned char byte, uint32_t *ret)
{
    if (a->n_nodes == a->capacity) {
        struct trie_node *more = a->n_nodes < UINT32_MAX / 4 ? realloc(a->node, 2 * a->capacity * sizeof(*more)) : NULL;
        if (!more)
            return -ENOMEM;
        a->node = more;
        a->capacity *= 2;
    }
    uint32_t *list = node == 0 ? &a->first[byte] : &a->node[node].child;
    uint32_t c = (uint32_t)a->n_nodes++;
    a->node[c] = (struct trie_node){.sibling = *list, .id = NO_ID, .byte = byte};
    *ret = *list = c;
    return 0;
}

int added_put(struct added *a, const char *text, size_t n, uint32_t id)
{
    uint32_t node = 0;

    if (n == 0 || n > ADDED_BYTES_MAX || id == NO_ID)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = child_of(a, node, (unsigned char)text[i]);
        int r = c != 0 ? 0 : new_child(a, node, (unsigned char)text[i], &c);
        if (r < 0)
            return r;
        node = c;
    }
    if (a->node[node].id != NO_ID)
        return -EEXIST;
    a->node[node].id = id;
    return 0;
}

int added_find(const struct added *a, const char *text, size_t n, size_t from, size_t *ret_at, size_t *ret_n,
               uint32_t *ret_id)
{
    for (size_t at = from; at < n; at++) {
        bool found = false;
        uint32_t node = 0;
        for (size_t i = at; i < n && (node = child_of(a, node, (unsigned char)text[i])) != 0; i++) {
            if (a->node[node].id == NO_ID)
                continue;
            found = true;
            *ret_at = at;
            *ret_n = i + 1 - at;
            *ret_id = a->node[node].id;
        }
        if (found)
            return 1;
    }
    return 0;
}
