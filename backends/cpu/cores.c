/* SPDX-License-Identifier: MIT */
/* How many cores there are for this process: affinity mask and control group quota. */
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "backends/cpu/pool.h"

#define CGROUP_ROOT "/sys/fs/cgroup"

/* "max 100000" or "200000 100000": quota and period in microseconds. Returns whole cores, rounded up; 0: no limit. */
static uint32_t quota_of(const char *folder)
{
    char path[4200], line[64];
    if (snprintf(path, sizeof(path), CGROUP_ROOT "%s/cpu.max", folder) >= (int)sizeof(path))
        return 0;
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    unsigned long long quota = 0, period = 0;
    bool limited = fgets(line, sizeof(line), file) && sscanf(line, "%llu %llu", &quota, &period) == 2;
    fclose(file);
    if (!limited || period == 0)
        return 0;
    unsigned long long cores = quota / period + (quota % period != 0);
    return cores > POOL_THREADS_MAX ? POOL_THREADS_MAX : (uint32_t)MAX(cores, 1);
}

/* This process's group in the unified hierarchy; the smallest quota up to the root counts. */
static uint32_t quota_cores(void)
{
    char line[4096] = "";
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file)
        return 0;
    while (fgets(line, sizeof(line), file) && strncmp(line, "0::/", 4) != 0)
        line[0] = '\0';
    fclose(file);
    if (line[0] == '\0')
        return 0;
    line[strcspn(line, "\n")] = '\0';
    char *folder = line + 3;
    uint32_t least = 0;
    for (;;) {
        uint32_t cores = quota_of(folder);
        if (cores && (!least || cores < least))
            least = cores;
        char *slash = strrchr(folder, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

uint32_t pool_cores(void)
{
    cpu_set_t set;
    uint32_t n = sched_getaffinity(0, sizeof(set), &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
    uint32_t quota = quota_cores();
    if (quota && quota < n)
        n = quota;
    return MIN(MAX(n, 1u), (uint32_t)POOL_THREADS_MAX);
}
