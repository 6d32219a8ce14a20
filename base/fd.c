/* SPDX-License-Identifier: MIT */
/* See fd.h. */
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define SEALS_NEEDED (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

int fd_pread_full(int fd, void *data, size_t n, uint64_t offset)
{
    char *p = data;

    while (n > 0) {
        ssize_t k = pread(fd, p, n, (off_t)offset);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -errno;
        if (k == 0)
            return -ENODATA;
        p += k;
        n -= (size_t)k;
        offset += (uint64_t)k;
    }
    return 0;
}

int fd_write_full(int fd, const void *data, size_t n)
{
    const char *p = data;

    while (n > 0) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -errno;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

static int open_failed(const char *name, int err, struct fail *f)
{
    switch (err) {
    case ENOENT:
        return fail_set(f, ENOENT, "NOT_FOUND", "%s: no such file", name);
    case EACCES:
    case EPERM:
        return fail_set(f, err, "DENIED", "%s: this process may not read it", name);
    default:
        return fail_set(f, err, "IO_ERROR", "%s: cannot be opened: %s", name, strerror(err));
    }
}

int fd_open_regular(int dir_fd, const char *name, int extra_flags, int *ret_fd, uint64_t *ret_size, struct fail *f)
{
    struct stat st;

    /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
    _cleanup_close_ int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | extra_flags);
    if (fd < 0)
        return open_failed(name, errno, f);
    if (fstat(fd, &st) < 0)
        return open_failed(name, errno, f);
    if (!S_ISREG(st.st_mode))
        return fail_set(f, EINVAL, "NOT_REGULAR_FILE", "%s: not a regular file", name);
    if (ret_size)
        *ret_size = (uint64_t)st.st_size;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int fd_read_file(int dir_fd, const char *name, size_t max, char **ret, size_t *ret_size, struct fail *f)
{
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *data = NULL;
    uint64_t size;

    int r = fd_open_regular(dir_fd, name, 0, &fd, &size, f);
    if (r < 0)
        return r;
    if (size > max) {
        fail_set(f, EFBIG, "FILE_TOO_LARGE", "%s: %llu bytes, at most %zu are accepted", name,
                 (unsigned long long)size, max);
        fail_limit(f, (int64_t)max, (int64_t)size);
        return -EFBIG;
    }
    data = malloc((size_t)size + 1);
    if (!data)
        return fail_oom(f);
    r = fd_pread_full(fd, data, (size_t)size, 0);
    if (r < 0)
        return fail_set(f, -r, "IO_ERROR", "%s: cannot be read: %s", name, strerror(-r));
    data[size] = '\0';
    if (ret_size)
        *ret_size = (size_t)size;
    *ret = TAKE_PTR(data);
    return 0;
}

int fd_memfd(const char *name, uint64_t size, int *ret_fd)
{
    _cleanup_close_ int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    if (size > INT64_MAX)
        return -EFBIG;
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int fd_is_sealed_memfd(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0)
        return errno == EINVAL ? 0 : -errno;
    return (seals & SEALS_NEEDED) == SEALS_NEEDED;
}
