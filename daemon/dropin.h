/* SPDX-License-Identifier: MIT */
/*
 * Files of a configuration that is spread over directories: an admin's come before those made while the machine runs, and
 * those before a package's. Of files of one name the first directory's counts, and an empty file (or a link to /dev/null)
 * there hides the others.
 */
#pragma once

#include <stddef.h>

#include "base/fail.h"

struct dropins {
    char **paths; /* [n], in order of the files' names */
    size_t n;
};
#define DROPINS_NONE ((struct dropins){0})

/* dirs [n_dirs], the most important first, each with the files in DIR/sub whose names end in suffix; what is not there
 * holds none. */
int dropins_find(char *const *dirs, size_t n_dirs, const char *sub, const char *suffix, struct dropins *ret, struct fail *f);
void dropins_deinit(struct dropins *d);
/* The part of a path behind the last slash. */
const char *dropin_name(const char *path);
