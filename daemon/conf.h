/* SPDX-License-Identifier: MIT */
/* dsv4d.conf and models.d/NAME.model, read into a manager: limits and models. See dsv4d.conf(5). */
#pragma once

#include "daemon/daemon.h"
#include "daemon/log.h"

struct conf {
    struct manager *m;
    int log_level;       /* -1: not set */
    const char *file;    /* being read */
    struct model *model; /* being read */
};

/* Unknown keys are warned of, with file and line; a bad value is an error (CONFIG) that names file, line, key, value and
 * what was expected. */
int conf_read_daemon(struct conf *c, const char *file, struct fail *f);
/* Every *.model in dir, in order of names; a directory that is not there holds none. */
int conf_read_models(struct conf *c, const char *dir, struct fail *f);
