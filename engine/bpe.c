/* SPDX-License-Identifier: MIT */
/*
 * See bpe.h. The word is a linked list of symbols, a symbol's position is that of its first byte. The heap holds the
 * pairs that could be merged, by rank and then position; one whose symbols have changed since is dropped when it comes
 * up: it is still good exactly if the pair that begins there now has its rank.
 */
#include "engine/bpe.h"

#include <errno.h>

#include "base/size.h"

#define NONE UINT32_MAX

struct slot {
    uint32_t left, right; /* left NONE: empty */
    uint32_t rank, result;
};

struct bpe {
    struct slot *slot; /* [mask + 1], open addressing, at most half full */
    size_t mask;
    uint32_t byte_token[256];
};

static size_t hash_pair(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
    return (size_t)(h ^ h >> 32);
}

/* The pair's slot, or the empty one where it would be. */
static struct slot *find_pair(const struct bpe *b, uint32_t left, uint32_t right)
{
    for (size_t i = hash_pair(left, right) & b->mask;; i = (i + 1) & b->mask) {
        struct slot *s = &b->slot[i];
        if (s->left == NONE || (s->left == left && s->right == right))
            return s;
    }
}

int bpe_new(const uint32_t byte_token[256], const struct bpe_merge *merge, uint32_t n_merges, struct bpe **ret,
            uint32_t *ret_at)
{
    _cleanup_(bpe_freep) struct bpe *b = calloc(1, sizeof(*b));
    size_t slots = 16;

    while (slots < 2 * (size_t)n_merges)
        slots *= 2;
    if (!b || !(b->slot = calloc(slots, sizeof(*b->slot))))
        return -ENOMEM;
    b->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        b->slot[i].left = NONE;
    for (size_t i = 0; i < 256; i++)
        b->byte_token[i] = byte_token[i];
    for (uint32_t i = 0; i < n_merges; i++) {
        struct slot *s = find_pair(b, merge[i].left, merge[i].right);
        if (s->left != NONE) {
            *ret_at = i;
            return -EEXIST;
        }
        *s = (struct slot){merge[i].left, merge[i].right, i, merge[i].result};
    }
    *ret = TAKE_PTR(b);
    return 0;
}

struct bpe *bpe_free(struct bpe *b)
{
    if (b)
        free(b->slot);
    free(b);
    return NULL;
}

void bpe_work_deinit(struct bpe_work *w)
{
    free(w->id);
    free(w->prev);
    free(w->next);
    free(w->heap);
    *w = BPE_WORK_INIT;
}

static int grow(void *array /* T ** */, size_t n, size_t item)
{
    void **p = array;
    size_t bytes;
    void *bigger = size_mul(n, item, &bytes) ? realloc(*p, bytes) : NULL;

    if (!bigger)
        return -ENOMEM;
    *p = bigger;
    return 0;
}

static int reserve(struct bpe_work *w, size_t n)
{
    size_t capacity = MAX(n, (size_t)64);

    if (n <= w->capacity)
        return 0;
    if (grow(&w->id, capacity, sizeof(*w->id)) < 0 || grow(&w->prev, capacity, sizeof(*w->prev)) < 0 ||
        grow(&w->next, capacity, sizeof(*w->next)) < 0)
        return -ENOMEM;
    w->capacity = capacity;
    return 0;
}

/* ---- the heap: smallest first */

static int heap_push(struct bpe_work *w, uint64_t entry)
{
    if (w->heap_size == w->heap_capacity) {
        size_t capacity = MAX(2 * w->heap_capacity, (size_t)64);
        if (grow(&w->heap, capacity, sizeof(*w->heap)) < 0)
            return -ENOMEM;
        w->heap_capacity = capacity;
    }
    size_t i = w->heap_size++;
    for (; i > 0 && w->heap[(i - 1) / 2] > entry; i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = entry;
    return 0;
}

static uint64_t heap_pop(struct bpe_work *w)
{
    uint64_t top = w->heap[0], last = w->heap[--w->heap_size];
    size_t i = 0;

    for (size_t child; (child = 2 * i + 1) < w->heap_size; i = child) {
        if (child + 1 < w->heap_size && w->heap[child + 1] < w->heap[child])
            child++;
        if (w->heap[child] >= last)
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* ---- merging */

/* Remember the pair that begins at symbol i, if there is one and it can be merged. */
static int push_pair(const struct bpe *b, struct bpe_work *w, uint32_t i)
{
    if (i == NONE || w->next[i] == NONE)
        return 0;
    const struct slot *s = find_pair(b, w->id[i], w->id[w->next[i]]);
    return s->left == NONE ? 0 : heap_push(w, (uint64_t)s->rank << 32 | i);
}

static int merge_at(const struct bpe *b, struct bpe_work *w, uint32_t i, uint32_t result)
{
    uint32_t gone = w->next[i];
    int r;

    w->id[i] = result;
    w->id[gone] = NONE;
    w->next[i] = w->next[gone];
    if (w->next[i] != NONE)
        w->prev[w->next[i]] = i;
    r = push_pair(b, w, w->prev[i]);
    return r < 0 ? r : push_pair(b, w, i);
}

static int merge_all(const struct bpe *b, struct bpe_work *w)
{
    while (w->heap_size > 0) {
        uint64_t top = heap_pop(w);
        uint32_t i = (uint32_t)top, rank = (uint32_t)(top >> 32);
        if (w->id[i] == NONE || w->next[i] == NONE)
            continue;
        const struct slot *s = find_pair(b, w->id[i], w->id[w->next[i]]);
        int r = s->left == NONE || s->rank != rank ? 0 : merge_at(b, w, i, s->result);
        if (r < 0)
            return r;
    }
    return 0;
}

int bpe_encode(const struct bpe *b, struct bpe_work *w, const char *word, size_t n, struct tokens *out)
{
    int r = reserve(w, n);

    w->heap_size = 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        w->id[i] = b->byte_token[(unsigned char)word[i]];
        w->prev[i] = i > 0 ? (uint32_t)(i - 1) : NONE;
        w->next[i] = i + 1 < n ? (uint32_t)(i + 1) : NONE;
    }
    for (size_t i = 0; r == 0 && i + 1 < n; i++)
        r = push_pair(b, w, (uint32_t)i);
    if (r == 0)
        r = merge_all(b, w);
    for (uint32_t i = 0; r == 0 && n > 0 && i != NONE; i = w->next[i])
        r = tokens_append(out, &w->id[i], 1);
    return r;
}
