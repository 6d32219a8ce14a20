/* SPDX-License-Identifier: MIT */
/* [Quota uid:NAME] and [Quota gid:NAME]: limits of some users that differ from everybody's [Quota]. */
#pragma once

#include "base/fail.h"
#include "daemon/access.h"
#include "daemon/limits.h"

struct quota_rule {
    bool group;
    uint32_t id;
    uint64_t set;         /* bit i: limit_defs[i] is set */
    struct limits limits; /* those that are set */
};

struct quotas {
    struct quota_rule *rules; /* [n] */
    size_t n;
};

/* Is it the name of such a section ("Quota uid:..." or "Quota gid:...")? */
bool quotas_is_section(const char *section);
/* -ENOENT: no limit of [Quota] has that name. CONFIG for an unknown user or group or a bad value. */
int quotas_set(struct quotas *q, const char *section, const char *name, const char *value, struct fail *f);
/* l holds everybody's limits and becomes w's: what a uid section says, else the largest that sections of w's groups say. */
void quotas_apply(const struct quotas *q, const struct who *w, struct limits *l);
void quotas_deinit(struct quotas *q);
