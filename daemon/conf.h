/* SPDX-License-Identifier: MIT */
/* dsv4d.conf and models.d/NAME.model, read into a manager: limits, quotas, models. See dsv4d.conf(5). */
#pragma once

#include "daemon/daemon.h"
#include "daemon/log.h"

struct conf {
    struct manager *m;
    int log_level;       /* -1: not set */
    const char *file;    /* being read */
    struct model *model; /* being read */
    unsigned line;       /* of its last key */
};

/*
 * Read file, file.d and models.d beside it; or, where file is NULL, what is installed in the three directories of the
 * system below root ("": the system's own). A bad value, an unknown section, and an unknown key where it could be a rule
 * that then does not hold, are errors (CONFIG) that name file, line, key, value and what was expected; other unknown keys
 * are warned of.
 */
int conf_read(struct conf *c, const char *root, const char *file, struct fail *f);
