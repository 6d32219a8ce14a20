/* SPDX-License-Identifier: MIT */
/*
 * Who could change a file we are about to trust.
 *
 * The rule: a file or directory is safe when
 *   - nobody but its owner and perhaps one group may write it (a directory with the sticky bit may be writable by all:
 *     others can add files there, which then fail the rule themselves, but not replace any);
 *   - its owner is root, this process's user, or `trusted` (the owner of the directory that an admin pointed us to);
 *   - if its group may write, that is root's group or the owner's private one: gid equal to uid, or a group of the
 *     owner's name. So a checkout with umask 002 is fine, and a file that all of "staff" may change is not.
 * ACLs show up as the group's bits and are judged as such.
 */
#pragma once

#include <sys/stat.h>

#include "base/fail.h"

/* 0, or -EPERM with code UNSAFE_OWNER naming `name`, what was found and what was expected. */
int owner_check(const struct stat *st, uid_t trusted, const char *name, struct fail *f);
