/* SPDX-License-Identifier: MIT */
/* Deltas kept for Resume: bounded, for a bounded time, under an unguessable token and for the same uid only. */
#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

#define OVERHEAD_BYTES 96 /* of keeping one delta, besides its own bytes */

int replay_new(struct request *r, uint32_t seconds, struct fail *f)
{
    struct replay *y = calloc(1, sizeof(*y));

    if (!y)
        return fail_oom(f);
    y->seconds = seconds;
    int e = charge_take(&y->charge, r->account, CHARGE_RESUMES, 1, f);
    if (e == 0 && (random_id(y->token) < 0 || map_put(r->m->resumes, y->token, strlen(y->token), r) < 0)) {
        y->token[0] = '\0';
        e = fail_oom(f);
    }
    if (e < 0) {
        replay_free(y, r->m);
        return e;
    }
    r->replay = y;
    return 0;
}

static struct buf *kept(const struct replay *y, uint32_t i)
{
    return &y->deltas[y->start + i];
}

static void drop_first(struct replay *y)
{
    y->bytes -= kept(y, 0)->size + OVERHEAD_BYTES;
    buf_deinit(kept(y, 0));
    y->start++;
    y->n--;
    y->first++;
}

/* Room for one more: what was dropped at the front is used again when it is half of all. */
static int make_room(struct replay *y)
{
    if (y->start + y->n < y->capacity)
        return 0;
    if (y->start >= y->capacity / 2 && y->start > 0) {
        memmove(y->deltas, y->deltas + y->start, y->n * sizeof(*y->deltas));
        y->start = 0;
        return 0;
    }
    uint32_t capacity = y->capacity ? y->capacity * 2 : 64;
    struct buf *deltas = reallocarray(y->deltas, capacity, sizeof(*deltas));
    if (!deltas)
        return -ENOMEM;
    y->deltas = deltas;
    y->capacity = capacity;
    return 0;
}

struct replay *replay_free(struct replay *y, struct manager *m)
{
    if (!y)
        return NULL;
    if (y->token[0])
        map_remove(m->resumes, y->token, strlen(y->token));
    while (y->n > 0)
        drop_first(y);
    free(y->deltas);
    buf_deinit(&y->end);
    sd_event_source_disable_unref(y->timer);
    charge_release(&y->charge);
    free(y);
    return NULL;
}

static int pack(struct buf *b, const ProtobufCMessage *m)
{
    size_t n = protobuf_c_message_get_packed_size(m);

    int r = buf_reserve(b, n);
    if (r < 0)
        return r;
    b->size = protobuf_c_message_pack(m, (uint8_t *)b->data);
    return 0;
}

bool replay_full(const struct request *r)
{
    return r->replay && r->replay->bytes > r->m->limits.resume_bytes;
}

/* While somebody reads, the oldest make room; while nobody does, the engine is paused before that is needed, and what it
 * had under way already goes over the limit by a little. */
int replay_add(struct request *r, const Dsv4__V1__Delta *delta)
{
    struct replay *y = r->replay;
    struct buf packed = BUF_INIT;

    int e = make_room(y);
    if (e == 0)
        e = pack(&packed, &delta->base);
    if (e < 0)
        return e;
    y->bytes += packed.size + OVERHEAD_BYTES;
    *kept(y, y->n++) = packed;
    while ((r->peer && replay_full(r) && y->n > 1) || y->bytes > 2 * r->m->limits.resume_bytes)
        drop_first(y);
    request_pause(r);
    return 0;
}

int replay_end(struct request *r, const Dsv4__V1__ServerMessage *sm)
{
    return pack(&r->replay->end, &sm->base);
}

static int expired(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct request *r = userdata;

    (void)source;
    (void)usec;
    if (r->peer && !r->ended)
        return 0;
    if (r->ended)
        request_free(r);
    else {
        r->replay = replay_free(r->replay, r->m);
        request_detach(r);
    }
    return 0;
}

void replay_wait(struct request *r)
{
    struct replay *y = r->replay;

    if (timer_arm(r->m->event, &y->timer, y->seconds * 1000000, expired, r) == 0)
        return;
    log_warning("no timer for a detached request: it ends");
    if (r->ended) {
        request_free(r);
        return;
    }
    r->replay = replay_free(y, r->m);
    request_detach(r);
}

static void send_delta(struct peer *p, uint64_t client_id, const struct buf *packed)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Delta *delta = dsv4__v1__delta__unpack(NULL, packed->size, (const uint8_t *)packed->data);

    if (!delta) {
        p->broken = true; /* out of memory: the stream would have a hole */
        return;
    }
    sm.request_id = client_id;
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_DELTA;
    sm.delta = delta;
    peer_send(p, &sm);
    dsv4__v1__delta__free_unpacked(delta, NULL);
}

static void send_end(struct peer *p, uint64_t client_id, const struct buf *packed)
{
    Dsv4__V1__ServerMessage *sm =
        dsv4__v1__server_message__unpack(NULL, packed->size, (const uint8_t *)packed->data);

    if (!sm) {
        p->broken = true;
        return;
    }
    sm->request_id = client_id;
    peer_send(p, sm);
    dsv4__v1__server_message__free_unpacked(sm, NULL);
}

/* The old connection, if it is still there, hears that its request went elsewhere. */
static void take_from(struct request *r)
{
    struct fail f = FAIL_INIT;

    if (!r->peer)
        return;
    fail_set(&f, ECANCELED, "CANCELLED", "the request was resumed on another connection");
    map_remove_u64(r->peer->requests, r->client_id);
    peer_error(r->peer, r->client_id, &f);
    r->peer = NULL;
}

static void replay_all(struct peer *p, struct request *r, uint64_t client_id, uint32_t next)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Accepted accepted = DSV4__V1__ACCEPTED__INIT;
    struct replay *y = r->replay;

    accepted.resume_token = y->token;
    sm.request_id = client_id;
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_ACCEPTED;
    sm.accepted = &accepted;
    peer_send(p, &sm);
    for (uint32_t i = next - y->first; i < y->n; i++)
        send_delta(p, client_id, kept(y, i));
    if (r->ended)
        send_end(p, client_id, &y->end);
}

int replay_resume(struct peer *p, uint64_t client_id, const Dsv4__V1__Resume *q, struct fail *f)
{
    struct request *r = map_get(p->m->resumes, q->resume_token, strlen(q->resume_token));

    if (!r || r->account != p->account || !access_allows(&r->model->access, &p->who))
        return fail_set(f, ENOENT, "RESUME_GONE", "there is nothing to resume under that token");
    struct replay *y = r->replay;
    if (q->next_index < y->first || q->next_index - y->first > y->n) {
        fail_set(f, ENOENT, "RESUME_GONE", "deltas %u to %u are kept; %u was asked for", y->first, y->first + y->n,
                 q->next_index);
        fail_field(f, "next_index");
        return -ENOENT;
    }
    if (!r->ended && map_put_u64(p->requests, client_id, r) < 0)
        return fail_oom(f);
    if (!r->ended) {
        take_from(r);
        r->peer = p;
        r->client_id = client_id;
        timer_off(&y->timer);
    }
    replay_all(p, r, client_id, q->next_index);
    request_pause(r);
    return 0;
}
