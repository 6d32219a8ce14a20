/* SPDX-License-Identifier: MIT */
/* See dropin.h. */
#include "daemon/dropin.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/macros.h"

const char *dropin_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void dropins_deinit(struct dropins *d)
{
    for (size_t i = 0; i < d->n; i++)
        free(d->paths[i]);
    free(d->paths);
    *d = DROPINS_NONE;
}

static bool is_there(const struct dropins *d, const char *name)
{
    for (size_t i = 0; i < d->n; i++)
        if (strcmp(dropin_name(d->paths[i]), name) == 0)
            return true;
    return false;
}

static int add(struct dropins *d, const char *dir, const char *name, struct fail *f)
{
    char **more = reallocarray(d->paths, d->n + 1, sizeof(*more));

    if (!more)
        return fail_oom(f);
    d->paths = more;
    if (asprintf(&more[d->n], "%s/%s", dir, name) < 0)
        return fail_oom(f);
    d->n++;
    return 0;
}

static bool ends_in(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return name[0] != '.' && n > m && strcmp(name + n - m, suffix) == 0;
}

static int add_directory(struct dropins *d, const char *path, const char *suffix, struct fail *f)
{
    struct dirent *entry;
    DIR *dir = opendir(path);
    int r = 0;

    if (!dir && errno == ENOENT)
        return 0;
    if (!dir)
        return fail_set(f, errno, "IO_ERROR", "%s: %s", path, strerror(errno));
    while (r == 0 && (errno = 0, entry = readdir(dir)))
        if (ends_in(entry->d_name, suffix) && !is_there(d, entry->d_name))
            r = add(d, path, entry->d_name, f);
    if (r == 0 && errno)
        r = fail_set(f, errno, "IO_ERROR", "%s: %s", path, strerror(errno));
    closedir(dir);
    return r;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(dropin_name(*(char *const *)a), dropin_name(*(char *const *)b));
}

static bool hides(const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false; /* reading it says why */
    return S_ISREG(st.st_mode) ? st.st_size == 0 : S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

int dropins_find(char *const *dirs, size_t n_dirs, const char *sub, const char *suffix, struct dropins *ret, struct fail *f)
{
    _cleanup_(dropins_deinit) struct dropins d = DROPINS_NONE;
    size_t kept = 0;

    for (size_t i = 0; i < n_dirs; i++) {
        _cleanup_free_ char *path = NULL;
        if (asprintf(&path, "%s/%s", dirs[i], sub) < 0) {
            path = NULL;
            return fail_oom(f);
        }
        int r = add_directory(&d, path, suffix, f);
        if (r < 0)
            return r;
    }
    for (size_t i = 0; i < d.n; i++) {
        if (hides(d.paths[i]))
            free(d.paths[i]);
        else
            d.paths[kept++] = d.paths[i];
    }
    d.n = kept;
    if (kept > 1)
        qsort(d.paths, kept, sizeof(*d.paths), by_name);
    *ret = d;
    d = DROPINS_NONE;
    return 0;
}
