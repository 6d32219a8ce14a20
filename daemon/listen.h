/* SPDX-License-Identifier: MIT */
/* Sockets to listen on: made by us, or handed over by a service manager. */
#pragma once

#include <sys/types.h>

#include "daemon/daemon.h"

/* A listening socket at path with this mode. A stale socket is replaced; one that answers is not. */
int listen_at(const char *path, mode_t mode, int *ret, struct fail *f);
/* Below DIR: dsv4d.sock (mode), engine.sock (0600). */
int listen_private(struct manager *m, const char *dir, mode_t mode, struct fail *f);
/* Activation fds ("engine" is the name of engines'), else /run/dsv4d. */
int listen_system(struct manager *m, mode_t mode, struct fail *f);
