/* SPDX-License-Identifier: MIT */
/*
 * Messages to the front: any thread puts them in, the main thread sends them. Bounded by its users: the step thread
 * stops stepping and the text thread starts nothing while outbox_full, so that a front that does not read cannot make the engine grow.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"
#include "proto/engine.pb-c.h"

#define OUTBOX_FULL_BYTES (8u << 20)

struct outbox;

/* wake_fd: an eventfd, written when something was put into an empty box. It stays the caller's. */
int outbox_new(int wake_fd, struct outbox **ret);
struct outbox *outbox_free(struct outbox *o);
DEFINE_CLEANUP(struct outbox *, outbox_free)

/* ---- any thread. A message that cannot be queued for lack of memory breaks the box: its receiver would wait for ever. */
int outbox_put(struct outbox *o, const Dsv4__Engine__V1__EngineMessage *m);
void outbox_put_error(struct outbox *o, uint64_t id, struct fail *f);
void outbox_put_done(struct outbox *o, uint64_t id);
bool outbox_full(struct outbox *o);

/* ---- main thread: as frame_send; -ENOMEM if the box is broken. */
int outbox_send(struct outbox *o, int fd);
size_t outbox_pending(struct outbox *o);
