/* SPDX-License-Identifier: MIT */
/* See callstore.h. */
#include "engine/callstore.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include "base/map.h"

struct call {
    struct call *prev, *next; /* by age */
    uint64_t owner;
    size_t bytes;             /* what it counts as */
    char id[CALL_ID_SIZE];
    char raw[];
};

struct callstore {
    pthread_mutex_t lock;     /* over all below */
    struct map *calls;        /* id -> call */
    struct map *owners;       /* label -> bytes, stored in the pointer's place */
    struct call *oldest, *newest;
    size_t bytes;
};

int callstore_new(struct callstore **ret)
{
    _cleanup_(callstore_freep) struct callstore *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->lock, NULL);
    if (map_new(&s->calls) < 0 || map_new(&s->owners) < 0)
        return -ENOMEM;
    *ret = TAKE_PTR(s);
    return 0;
}

struct callstore *callstore_free(struct callstore *s)
{
    if (!s)
        return NULL;
    for (struct call *c = s->oldest, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    map_free(s->calls);
    map_free(s->owners);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return NULL;
}

int callstore_make_id(char ret[CALL_ID_SIZE])
{
    static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char random[24]; /* 5 bits of each */

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return -EIO;
    memcpy(ret, "call_", 5);
    for (size_t i = 0; i < sizeof(random); i++)
        ret[5 + i] = digits[random[i] & 31];
    ret[CALL_ID_SIZE - 1] = '\0';
    return 0;
}

static size_t owner_bytes(const struct callstore *s, uint64_t owner)
{
    return (size_t)(uintptr_t)map_get_u64(s->owners, owner);
}

static int set_owner_bytes(struct callstore *s, uint64_t owner, size_t bytes)
{
    map_remove_u64(s->owners, owner);
    return bytes ? map_put_u64(s->owners, owner, (void *)(uintptr_t)bytes) : 0;
}

static void drop(struct callstore *s, struct call *c)
{
    *(c->prev ? &c->prev->next : &s->oldest) = c->next;
    *(c->next ? &c->next->prev : &s->newest) = c->prev;
    map_remove(s->calls, c->id, strlen(c->id));
    s->bytes -= c->bytes;
    size_t of_owner = owner_bytes(s, c->owner); /* less than it should be only if there was no memory to note it */
    (void)set_owner_bytes(s, c->owner, of_owner - MIN(of_owner, c->bytes));
    free(c);
}

static void make_room(struct callstore *s, uint64_t owner, size_t bytes)
{
    struct call *next;

    for (struct call *c = s->oldest; c && owner_bytes(s, owner) + bytes > CALLSTORE_OWNER_BYTES; c = next) {
        next = c->next;
        if (c->owner == owner)
            drop(s, c);
    }
    while (s->oldest && s->bytes + bytes > CALLSTORE_BYTES)
        drop(s, s->oldest);
}

static int put(struct callstore *s, struct call *c)
{
    make_room(s, c->owner, c->bytes);
    int r = map_put(s->calls, c->id, strlen(c->id), c);
    if (r < 0)
        return r;
    r = set_owner_bytes(s, c->owner, owner_bytes(s, c->owner) + c->bytes);
    if (r < 0) {
        map_remove(s->calls, c->id, strlen(c->id));
        return r;
    }
    c->prev = s->newest;
    *(s->newest ? &s->newest->next : &s->oldest) = c;
    s->newest = c;
    s->bytes += c->bytes;
    return 0;
}

int callstore_put(struct callstore *s, uint64_t owner, const char *id, const char *raw, size_t n)
{
    size_t bytes = sizeof(struct call) + n + 1;

    if (n == 0 || n > CALLSTORE_OWNER_BYTES / 2 || strlen(id) >= CALL_ID_SIZE)
        return 0;
    struct call *c = calloc(1, bytes);
    if (!c)
        return -ENOMEM;
    c->owner = owner;
    c->bytes = bytes;
    strcpy(c->id, id);
    memcpy(c->raw, raw, n);
    pthread_mutex_lock(&s->lock);
    int r = put(s, c);
    pthread_mutex_unlock(&s->lock);
    if (r < 0)
        free(c);
    return r;
}

char *callstore_get(struct callstore *s, uint64_t owner, const char *id)
{
    char *raw = NULL;

    pthread_mutex_lock(&s->lock);
    const struct call *c = map_get(s->calls, id, strlen(id));
    if (c && c->owner == owner)
        raw = strdup(c->raw);
    pthread_mutex_unlock(&s->lock);
    return raw;
}

size_t callstore_bytes(struct callstore *s)
{
    pthread_mutex_lock(&s->lock);
    size_t n = s->bytes;
    pthread_mutex_unlock(&s->lock);
    return n;
}
