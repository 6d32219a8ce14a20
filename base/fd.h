/* SPDX-License-Identifier: MIT */
/* File descriptors: whole reads and writes, memfds, files from outside that must be plain. All retry on EINTR. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/fail.h"

/* Exactly n bytes at offset; -ENODATA if the file ends before. */
int fd_pread_full(int fd, void *data, size_t n, uint64_t offset);
int fd_write_full(int fd, const void *data, size_t n);

/* Open a regular file for reading below directory dir_fd (or AT_FDCWD): no device, FIFO or directory, never blocks.
 * NOT_REGULAR_FILE otherwise; NOT_FOUND; DENIED. *ret_size may be NULL. */
int fd_open_regular(int dir_fd, const char *name, int extra_flags, int *ret_fd, uint64_t *ret_size, struct fail *f);

/* The whole file, at most max bytes, as NUL-terminated malloc'ed memory. FILE_TOO_LARGE. */
int fd_read_file(int dir_fd, const char *name, size_t max, char **ret, size_t *ret_size, struct fail *f);

/* A memfd of `size` bytes; close-on-exec; sealable. */
int fd_memfd(const char *name, uint64_t size, int *ret_fd);

/* True (1) if fd is a memfd that can no longer be written, grown or shrunk; 0 if not; negative errno. */
int fd_is_sealed_memfd(int fd);
