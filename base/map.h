/* SPDX-License-Identifier: MIT */
/*
 * Hash map from short byte strings to pointers (SipHash-free: keys are ours or checked for length; the hash is seeded
 * per process, so that outsiders cannot choose collisions). The map copies keys and does not own values.
 * Not thread safe. For integer keys use the address of the integer and its size.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct map;

int map_new(struct map **ret);
struct map *map_free(struct map *m); /* the values are the caller's */
DEFINE_CLEANUP(struct map *, map_free)
#define _cleanup_map_ _cleanup_(map_freep)

/* -EEXIST if the key is there already; -ENOMEM. */
int map_put(struct map *m, const void *key, size_t n, void *value);
void *map_get(const struct map *m, const void *key, size_t n);    /* NULL if absent */
void *map_remove(struct map *m, const void *key, size_t n);       /* the value, or NULL */
size_t map_size(const struct map *m);

/* Visit all: *cursor starts at 0; NULL at the end. The current entry may be removed while iterating, nothing added. */
void *map_next(const struct map *m, size_t *cursor, const void **ret_key, size_t *ret_n);

static inline int map_put_u64(struct map *m, uint64_t key, void *value)
{
    return map_put(m, &key, sizeof(key), value);
}
static inline void *map_get_u64(const struct map *m, uint64_t key)
{
    return map_get(m, &key, sizeof(key));
}
static inline void *map_remove_u64(struct map *m, uint64_t key)
{
    return map_remove(m, &key, sizeof(key));
}
