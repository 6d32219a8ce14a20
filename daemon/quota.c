/* SPDX-License-Identifier: MIT */
/* See quota.h. */
#include "daemon/quota.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "Quota "

bool quotas_is_section(const char *section)
{
    return strncmp(section, PREFIX "uid:", strlen(PREFIX "uid:")) == 0 ||
           strncmp(section, PREFIX "gid:", strlen(PREFIX "gid:")) == 0;
}

/* The rule of a uid or gid, made at need: two sections of one user are one. */
static struct quota_rule *get(struct quotas *q, bool group, uint32_t id)
{
    for (size_t i = 0; i < q->n; i++)
        if (q->rules[i].group == group && q->rules[i].id == id)
            return &q->rules[i];
    struct quota_rule *more = reallocarray(q->rules, q->n + 1, sizeof(*more));
    if (!more)
        return NULL;
    q->rules = more;
    more += q->n++;
    *more = (struct quota_rule){.group = group, .id = id};
    return more;
}

int quotas_set(struct quotas *q, const char *section, const char *name, const char *value, struct fail *f)
{
    bool group = section[strlen(PREFIX)] == 'g';
    const struct limit_def *d = limits_find("Quota", name);
    uint32_t id;

    if (!d)
        return -ENOENT;
    int r = access_lookup(group, section + strlen(PREFIX "uid:"), &id, f);
    if (r < 0) {
        fail_prefix(f, "%s in [%.80s]", name, section);
        fail_field(f, name);
        return r;
    }
    struct quota_rule *rule = get(q, group, id);
    if (!rule)
        return fail_oom(f);
    r = limits_set(&rule->limits, "Quota", name, value, f);
    if (r == 0)
        rule->set |= UINT64_C(1) << (d - limit_defs);
    return r;
}

void quotas_apply(const struct quotas *q, const struct who *w, struct limits *l)
{
    const struct quota_rule *own = NULL;
    uint64_t seen = 0; /* limits that a group's section has set in l */

    assert(n_limit_defs <= 64);
    for (size_t k = 0; k < q->n; k++) {
        const struct quota_rule *r = &q->rules[k];
        if (!r->group && r->id == w->uid)
            own = r;
        if (!r->group || !who_in_group(w, r->id))
            continue;
        for (size_t i = 0; i < n_limit_defs; i++) {
            uint64_t bit = UINT64_C(1) << i, v = limit_get(&r->limits, &limit_defs[i]);
            if ((r->set & bit) && (!(seen & bit) || v > limit_get(l, &limit_defs[i])))
                *limit_at(l, &limit_defs[i]) = v;
            seen |= r->set & bit;
        }
    }
    for (size_t i = 0; own && i < n_limit_defs; i++)
        if (own->set & (UINT64_C(1) << i))
            *limit_at(l, &limit_defs[i]) = limit_get(&own->limits, &limit_defs[i]);
}

void quotas_deinit(struct quotas *q)
{
    free(q->rules);
    *q = (struct quotas){0};
}
