/* SPDX-License-Identifier: MIT */
/* See access.h. */
#include "daemon/access.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/socket.h>

#include "base/parse.h"

#define LOOKUP_BYTES_MAX (16u << 20) /* a group of very many members */

/* ---- who */

int who_of_socket(int fd, struct who *ret)
{
    struct ucred cred;
    gid_t more[WHO_GIDS_MAX];
    socklen_t size = sizeof(cred), bytes = sizeof(more);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
        return -errno;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, more, &bytes) < 0) {
        if (errno != ERANGE)
            return -errno;
        bytes = 0;
    }
    size_t n = bytes / sizeof(gid_t);
    gid_t *gids = malloc((n + 1) * sizeof(gid_t));
    if (!gids)
        return -ENOMEM;
    gids[0] = cred.gid;
    memcpy(gids + 1, more, n * sizeof(gid_t));
    *ret = (struct who){.uid = cred.uid, .pid = cred.pid, .gids = gids, .n_gids = n + 1};
    return 0;
}

void who_deinit(struct who *w)
{
    free(w->gids);
    *w = (struct who){0};
}

bool who_in_group(const struct who *w, gid_t gid)
{
    for (size_t i = 0; i < w->n_gids; i++)
        if (w->gids[i] == gid)
            return true;
    return false;
}

/* ---- names */

/* 0: found; positive: an errno, ENOENT for "there is none". */
static int look_up(bool group, const char *name, char *data, size_t n, uint32_t *ret)
{
    struct passwd p, *found_user = NULL;
    struct group g, *found_group = NULL;

    int r = group ? getgrnam_r(name, &g, data, n, &found_group) : getpwnam_r(name, &p, data, n, &found_user);
    if (r == 0 && !found_user && !found_group)
        r = ENOENT;
    if (r == 0)
        *ret = group ? found_group->gr_gid : found_user->pw_uid;
    return r;
}

int access_lookup(bool group, const char *name, uint32_t *ret, struct fail *f)
{
    const char *what = group ? "group" : "user";
    uint64_t v;
    int r = ERANGE;

    if (isdigit((unsigned char)name[0])) {
        if (parse_u64(name, 0, UINT32_MAX - 1, &v) < 0) /* the last one means "none" to the kernel */
            return fail_set(f, EINVAL, "CONFIG", "\"%.64s\" is no number of a %s; expected 0 to %u", name, what, UINT32_MAX - 1);
        *ret = (uint32_t)v;
        return 0;
    }
    for (size_t n = 4096; r == ERANGE && n <= LOOKUP_BYTES_MAX; n *= 4) {
        _cleanup_free_ char *data = malloc(n);
        if (!data)
            return fail_oom(f);
        r = look_up(group, name, data, n, ret);
    }
    if (r == 0)
        return 0;
    if (r == ENOENT || r == ESRCH || r == EBADF || r == EPERM) /* all of them say "no such name"; see getpwnam(3) */
        return fail_set(f, EINVAL, "CONFIG", "there is no %s \"%.64s\"; expected a name or a number", what, name);
    return fail_set(f, EINVAL, "CONFIG", "the %s \"%.64s\" could not be looked up: %s", what, name, strerror(r));
}

/* ---- lists */

static size_t count_words(const char *s)
{
    size_t n = 0;

    for (bool in = false; *s; s++) {
        bool blank = *s == ' ' || *s == '\t';
        n += !blank && !in;
        in = !blank;
    }
    return n;
}

int access_set(struct access *a, bool groups, const char *names, struct fail *f)
{
    _cleanup_free_ char *copy = strdup(names);
    _cleanup_free_ uint32_t *ids = calloc(count_words(names) + 1, sizeof(*ids));
    char *save = NULL;
    size_t n = 0;

    if (!copy || !ids)
        return fail_oom(f);
    for (char *word = strtok_r(copy, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
        int r = access_lookup(groups, word, &ids[n++], f);
        if (r < 0)
            return r;
    }
    free(groups ? a->gids : a->uids);
    if (groups) {
        a->gids = TAKE_PTR(ids);
        a->n_gids = n;
    } else {
        a->uids = TAKE_PTR(ids);
        a->n_uids = n;
    }
    return 0;
}

bool access_allows(const struct access *a, const struct who *w)
{
    if (w->uid == 0 || (a->n_uids == 0 && a->n_gids == 0))
        return true;
    for (size_t i = 0; i < a->n_uids; i++)
        if (a->uids[i] == w->uid)
            return true;
    for (size_t i = 0; i < a->n_gids; i++)
        if (who_in_group(w, a->gids[i]))
            return true;
    return false;
}

void access_deinit(struct access *a)
{
    free(a->uids);
    free(a->gids);
    *a = (struct access){0};
}
