/* SPDX-License-Identifier: MIT */
/* See log.h. */
#include "daemon/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static enum log_level max_level = LOG_LEVEL_INFO;
static bool to_journal;

/* $JOURNAL_STREAM names the device and inode that the journal reads; it is inherited, so compare with stderr. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat st;

    return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           st.st_dev == dev && st.st_ino == ino;
}

void log_init(enum log_level max)
{
    max_level = max;
    to_journal = stderr_is_journal();
}

int log_parse_level(const char *name)
{
    static const char *const names[] = {"error", "warning", "notice", "info", "debug"};

    for (size_t i = 0; i < ELEMENTS(names); i++)
        if (strcmp(name, names[i]) == 0)
            return LOG_LEVEL_ERROR + (int)i;
    return -EINVAL;
}

void log_line(enum log_level level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;

    if (level > max_level)
        return;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    for (char *p = line; *p; p++) /* names from outside cannot forge lines */
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    if (to_journal)
        fprintf(stderr, "<%d>%s\n", (int)level, line);
    else
        fprintf(stderr, "dsv4d: %s%s\n", level <= LOG_LEVEL_ERROR ? "error: " : level == LOG_LEVEL_WARNING ? "warning: " : "",
                line);
}
