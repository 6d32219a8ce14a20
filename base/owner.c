/* SPDX-License-Identifier: MIT */
/* See owner.h. */
#include "base/owner.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <string.h>

#include "base/macros.h"

#define NSS_BUFFER_BYTES 4096 /* a bigger entry counts as no private group */

/* By name, since a private group's gid need not equal the uid. Without passwd entries (containers) only numbers count. */
static bool is_private_group(gid_t gid, uid_t uid)
{
    char user_buffer[NSS_BUFFER_BYTES], group_buffer[NSS_BUFFER_BYTES];
    struct passwd user, *u = NULL;
    struct group group, *g = NULL;

    if (gid == 0 || gid == uid)
        return true;
    if (getpwuid_r(uid, &user, user_buffer, sizeof(user_buffer), &u) != 0 || !u)
        return false;
    if (getgrgid_r(gid, &group, group_buffer, sizeof(group_buffer), &g) != 0 || !g)
        return false;
    return strcmp(u->pw_name, g->gr_name) == 0;
}

int owner_check(const struct stat *st, uid_t trusted, const char *name, struct fail *f)
{
    const unsigned mode = st->st_mode & 07777, uid = st->st_uid, gid = st->st_gid;
    const bool sticky = S_ISDIR(st->st_mode) && (mode & S_ISVTX);

    if ((mode & S_IWOTH) && !sticky)
        return fail_set(f, EPERM, "UNSAFE_OWNER", "%s: mode %04o: every user may change it; chmod o-w", name, mode);
    if (uid != 0 && uid != geteuid() && uid != trusted)
        return fail_set(f, EPERM, "UNSAFE_OWNER",
                        "%s: owned by uid %u, expected root, uid %u or the directory's owner, uid %u", name, uid,
                        (unsigned)geteuid(), (unsigned)trusted);
    if ((mode & S_IWGRP) && !sticky && !is_private_group(st->st_gid, st->st_uid))
        return fail_set(f, EPERM, "UNSAFE_OWNER",
                        "%s: mode %04o: group %u may change it, and that is not the private group of its owner, uid %u; "
                        "chmod g-w", name, mode, gid, uid);
    return 0;
}
