/* SPDX-License-Identifier: MIT */
/* See outbox.h. */
#include "engine/outbox.h"

#include <errno.h>
#include <pthread.h>

#include "engine/wake.h"
#include "proto/error.h"
#include "proto/frame.h"

struct outbox {
    pthread_mutex_t lock;
    struct frame_writer writer; /* under lock, as all below */
    bool broken;
    int wake_fd;
};

int outbox_new(int wake_fd, struct outbox **ret)
{
    struct outbox *o = calloc(1, sizeof(*o));

    if (!o)
        return -ENOMEM;
    pthread_mutex_init(&o->lock, NULL);
    o->writer = FRAME_WRITER_INIT;
    o->wake_fd = wake_fd;
    *ret = o;
    return 0;
}

struct outbox *outbox_free(struct outbox *o)
{
    if (!o)
        return NULL;
    frame_writer_deinit(&o->writer);
    pthread_mutex_destroy(&o->lock);
    free(o);
    return NULL;
}

int outbox_put(struct outbox *o, const Dsv4__Engine__V1__EngineMessage *m)
{
    pthread_mutex_lock(&o->lock);
    bool first = frame_pending(&o->writer) == 0;
    int r = frame_queue(&o->writer, &m->base, -1);
    if (r == -ENOMEM)
        first = o->broken = true;
    pthread_mutex_unlock(&o->lock);
    if (first)
        wake(o->wake_fd);
    return r;
}

void outbox_put_error(struct outbox *o, uint64_t id, struct fail *f)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Error e = DSV4__V1__ERROR__INIT;

    error_from_fail(&e, f);
    m.id = id;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_ERROR;
    m.error = &e;
    (void)outbox_put(o, &m);
}

void outbox_put_done(struct outbox *o, uint64_t id)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Done done = DSV4__V1__DONE__INIT;

    m.id = id;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_DONE;
    m.done = &done;
    (void)outbox_put(o, &m);
}

size_t outbox_pending(struct outbox *o)
{
    pthread_mutex_lock(&o->lock);
    size_t n = frame_pending(&o->writer);
    pthread_mutex_unlock(&o->lock);
    return n;
}

bool outbox_full(struct outbox *o)
{
    return outbox_pending(o) > OUTBOX_FULL_BYTES;
}

int outbox_send(struct outbox *o, int fd)
{
    pthread_mutex_lock(&o->lock);
    int r = o->broken ? -ENOMEM : frame_send(&o->writer, fd);
    pthread_mutex_unlock(&o->lock);
    return r;
}
