/* SPDX-License-Identifier: MIT */
/* One-shot timers, clocks and random ids; declared in daemon.h. */
#include <errno.h>
#include <sys/random.h>
#include <time.h>

#include "daemon/daemon.h"

int timer_arm(sd_event *e, sd_event_source **s, uint64_t usec, sd_event_time_handler_t fn, void *userdata)
{
    if (usec == UINT64_MAX) {
        timer_off(s);
        return 0;
    }
    if (!*s)
        return sd_event_add_time_relative(e, s, CLOCK_MONOTONIC, usec, EVENT_ACCURACY_USEC, fn, userdata);
    int r = sd_event_source_set_time_relative(*s, usec);
    return r < 0 ? r : sd_event_source_set_enabled(*s, SD_EVENT_ONESHOT);
}

void timer_off(sd_event_source **s)
{
    if (*s)
        sd_event_source_set_enabled(*s, SD_EVENT_OFF);
}

static uint64_t now_usec(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t now_monotonic_usec(void)
{
    return now_usec(CLOCK_MONOTONIC);
}

uint64_t now_realtime_usec(void)
{
    return now_usec(CLOCK_REALTIME);
}

int random_id(char ret[SESSION_ID_SIZE])
{
    unsigned char bits[(SESSION_ID_SIZE - 1) / 2];

    if (getrandom(bits, sizeof(bits), 0) != (ssize_t)sizeof(bits))
        return -EIO;
    for (size_t i = 0; i < sizeof(bits); i++) {
        ret[2 * i] = "0123456789abcdef"[bits[i] >> 4];
        ret[2 * i + 1] = "0123456789abcdef"[bits[i] & 15];
    }
    ret[SESSION_ID_SIZE - 1] = '\0';
    return 0;
}
