/* SPDX-License-Identifier: MIT */
/* See answer.h. */
#include "client/answer.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#define PATIENCE_USEC 300000ull /* what takes less time needs no bar */
#define BAR_MAX 40

uint64_t clock_usec(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void progress_init(struct progress *p)
{
    *p = (struct progress){.terminal = isatty(STDERR_FILENO)};
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

void progress_show(struct progress *p, const char *what, uint64_t done, uint64_t total, bool bytes)
{
    char amount[64] = "", a[24], b[24], bar[BAR_MAX + 1];

    if (!p->terminal)
        return;
    if (p->since_usec == 0)
        p->since_usec = clock_usec();
    if (clock_usec() - p->since_usec < PATIENCE_USEC)
        return;
    p->shown = true;
    if (total == 0) {
        fprintf(stderr, "\r%.*s\033[K", columns() - 1, what);
        return;
    }
    done = MIN(done, total);
    if (bytes) {
        format_bytes(a, sizeof(a), done);
        format_bytes(b, sizeof(b), total);
        snprintf(amount, sizeof(amount), "%s of %s", a, b);
    } else {
        snprintf(amount, sizeof(amount), "%llu of %llu tokens", (unsigned long long)done, (unsigned long long)total);
    }
    int room = columns() - (int)strlen(what) - (int)strlen(amount) - 12;
    int width = MAX(0, MIN(room, BAR_MAX));
    int filled = (int)((double)done / (double)total * width);
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(width - filled));
    bar[width] = '\0';
    fprintf(stderr, "\r%s [%s] %3d %% %s\033[K", what, bar, (int)((double)done / (double)total * 100), amount);
}

void progress_clear(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
    p->since_usec = 0;
}
