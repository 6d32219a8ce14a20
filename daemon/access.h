/* SPDX-License-Identifier: MIT */
/*
 * Who somebody is, as the kernel says when they connect, and lists of who may do something. Names are looked up when the
 * configuration is read, never later: the front does not wait for a directory service while it serves.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

#define WHO_GIDS_MAX 1024 /* who has more counts as a member of the primary group only: room is not for them to take */

struct who {
    uid_t uid;
    pid_t pid;
    gid_t *gids; /* [n_gids], the primary one first */
    size_t n_gids;
};

/* Of the other side of a connected Unix socket, as it was when it connected. */
int who_of_socket(int fd, struct who *ret);
void who_deinit(struct who *w);
bool who_in_group(const struct who *w, gid_t gid);

/* The uid or gid of a name or a number. CONFIG with the name and what was expected. */
int access_lookup(bool group, const char *name, uint32_t *ret, struct fail *f);

struct access { /* nobody named: everyone */
    uint32_t *uids, *gids; /* [n_uids], [n_gids] */
    size_t n_uids, n_gids;
};

/* Take these users (or groups), separated by blanks, in place of those before. As access_lookup; nothing changes then. */
int access_set(struct access *a, bool groups, const char *names, struct fail *f);
/* root may always: it could read the model as well. */
bool access_allows(const struct access *a, const struct who *w);
void access_deinit(struct access *a);
