/* SPDX-License-Identifier: MIT */
/* See listen.h. */
#include "daemon/listen.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#define BACKLOG 512
#define RUN_DIRECTORY "/run/dsv4d"

static int failed(struct fail *f, const char *what, const char *path)
{
    int e = errno;
    return fail_set(f, e, "IO_ERROR", "%s %s: %s", what, path, strerror(e));
}

/* Is somebody behind the socket there? */
static bool answers(const struct sockaddr_un *sa)
{
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd >= 0 && (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno == EAGAIN);
}

int listen_at(const char *path, mode_t mode, int *ret, struct fail *f)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;

    if (fd < 0)
        return failed(f, "socket for", path);
    if (strlen(path) >= sizeof(sa.sun_path))
        return fail_set(f, ENAMETOOLONG, "CONFIG", "%s: the path of a socket has at most %zu bytes", path,
                        sizeof(sa.sun_path) - 1);
    strcpy(sa.sun_path, path);
    if (answers(&sa))
        return fail_set(f, EADDRINUSE, "CONFIG", "%s: another instance is listening there", path);
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
        unlink(path);
    mode_t old = umask(0777); /* nobody connects before the mode is right */
    int r = bind(fd, (const struct sockaddr *)&sa, sizeof(sa));
    umask(old);
    if (r < 0)
        return failed(f, "bind", path);
    if (chmod(path, mode) < 0)
        return failed(f, "chmod", path);
    if (listen(fd, BACKLOG) < 0)
        return failed(f, "listen at", path);
    *ret = TAKE_FD(fd);
    return 0;
}

/* dir/name, unless a service manager gave *fd already. *ret_path: where engines or clients find it. */
static int listen_below(const char *dir, const char *name, mode_t mode, int *fd, char **ret_path, struct fail *f)
{
    _cleanup_free_ char *path = NULL;

    if (asprintf(&path, "%s/%s", dir, name) < 0) {
        path = NULL;
        return fail_oom(f);
    }
    if (*fd >= 0)
        return 0;
    int r = listen_at(path, mode, fd, f);
    if (r == 0)
        *ret_path = TAKE_PTR(path); /* ours from here on, and ours to remove */
    return r;
}

static int listen_both(struct manager *m, const char *dir, mode_t mode, struct fail *f)
{
    int r = listen_below(dir, "dsv4d.sock", mode, &m->listen_fd, &m->socket_path, f);
    return r < 0 ? r : listen_below(dir, "engine.sock", 0600, &m->engine_fd, &m->engine_path, f);
}

int listen_private(struct manager *m, const char *dir, mode_t mode, struct fail *f)
{
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return failed(f, "mkdir", dir);
    _cleanup_free_ char *absolute = realpath(dir, NULL);
    if (!absolute)
        return failed(f, "cannot find", dir);
    return listen_both(m, absolute, mode, f);
}

int listen_system(struct manager *m, mode_t mode, struct fail *f)
{
    char **names = NULL;
    int n = sd_listen_fds_with_names(1, &names);

    for (int i = 0; i < n; i++) {
        int fd = SD_LISTEN_FDS_START + i;
        int *to = names[i] && strcmp(names[i], "engine") == 0 ? &m->engine_fd : &m->listen_fd;
        if (*to < 0 && sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) > 0)
            *to = fd;
        else
            close(fd);
        free(names[i]);
    }
    free(names);
    return listen_both(m, RUN_DIRECTORY, mode, f);
}
