/* SPDX-License-Identifier: MIT */
/* See map.h. Open addressing, linear probing, tombstones; grows at 3/4. */
#include "base/map.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define FIRST_SLOTS 16 /* a power of two */

struct slot {
    char *key;        /* NULL: never used; TOMB: removed */
    size_t n;
    uint64_t hash;
    void *value;
};

struct map {
    struct slot *slots;
    size_t n_slots; /* a power of two */
    size_t live, used; /* used: live and tombstones */
    uint64_t seed;
};

static char tombstone;
#define TOMB (&tombstone)

/* FNV-1a over the bytes from a secret start, then the finalizer of splitmix64. */
static uint64_t hash_bytes(uint64_t seed, const unsigned char *p, size_t n)
{
    uint64_t h = seed;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3ull;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
    return h ^ (h >> 31);
}

int map_new(struct map **ret)
{
    struct map *m = calloc(1, sizeof(*m));

    if (!m)
        return -ENOMEM;
    m->slots = calloc(FIRST_SLOTS, sizeof(*m->slots));
    if (!m->slots) {
        free(m);
        return -ENOMEM;
    }
    m->n_slots = FIRST_SLOTS;
    if (getrandom(&m->seed, sizeof(m->seed), GRND_NONBLOCK) != sizeof(m->seed))
        m->seed = (uintptr_t)m; /* early boot: weaker, still varies */
    *ret = m;
    return 0;
}

struct map *map_free(struct map *m)
{
    if (!m)
        return NULL;
    for (size_t i = 0; i < m->n_slots; i++)
        if (m->slots[i].key != TOMB)
            free(m->slots[i].key);
    free(m->slots);
    free(m);
    return NULL;
}

/* The slot of the key, or NULL; *ret_free (may be NULL) is where it could be put. */
static struct slot *find(const struct map *m, uint64_t hash, const void *key, size_t n, struct slot **ret_free)
{
    struct slot *spare = NULL;

    for (size_t i = hash & (m->n_slots - 1);; i = (i + 1) & (m->n_slots - 1)) {
        struct slot *s = &m->slots[i];
        if (!s->key) {
            if (ret_free)
                *ret_free = spare ? spare : s;
            return NULL;
        }
        if (s->key == TOMB)
            spare = spare ? spare : s;
        else if (s->hash == hash && s->n == n && memcmp(s->key, key, n) == 0)
            return s;
    }
}

static int resize(struct map *m, size_t n_slots)
{
    struct slot *old = m->slots, *slots = calloc(n_slots, sizeof(*slots));
    size_t n_old = m->n_slots;

    if (!slots)
        return -ENOMEM;
    m->slots = slots;
    m->n_slots = n_slots;
    m->used = m->live;
    for (size_t i = 0; i < n_old; i++) {
        if (!old[i].key || old[i].key == TOMB)
            continue;
        size_t j = old[i].hash & (n_slots - 1);
        while (slots[j].key)
            j = (j + 1) & (n_slots - 1);
        slots[j] = old[i];
    }
    free(old);
    return 0;
}

int map_put(struct map *m, const void *key, size_t n, void *value)
{
    struct slot *s;
    uint64_t hash = hash_bytes(m->seed, key, n);

    if ((m->used + 1) * 4 > m->n_slots * 3) {
        int r = resize(m, (m->live + 1) * 2 > m->n_slots ? m->n_slots * 2 : m->n_slots);
        if (r < 0)
            return r;
    }
    if (find(m, hash, key, n, &s))
        return -EEXIST;
    char *copy = malloc(n ? n : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, key, n);
    if (!s->key)
        m->used++;
    *s = (struct slot){.key = copy, .n = n, .hash = hash, .value = value};
    m->live++;
    return 0;
}

void *map_get(const struct map *m, const void *key, size_t n)
{
    struct slot *s = find(m, hash_bytes(m->seed, key, n), key, n, NULL);
    return s ? s->value : NULL;
}

void *map_remove(struct map *m, const void *key, size_t n)
{
    struct slot *s = find(m, hash_bytes(m->seed, key, n), key, n, NULL);

    if (!s)
        return NULL;
    void *value = s->value;
    free(s->key);
    *s = (struct slot){.key = TOMB};
    m->live--;
    return value;
}

size_t map_size(const struct map *m)
{
    return m->live;
}

void *map_next(const struct map *m, size_t *cursor, const void **ret_key, size_t *ret_n)
{
    while (*cursor < m->n_slots) {
        struct slot *s = &m->slots[(*cursor)++];
        if (!s->key || s->key == TOMB)
            continue;
        if (ret_key)
            *ret_key = s->key;
        if (ret_n)
            *ret_n = s->n;
        return s->value;
    }
    return NULL;
}
