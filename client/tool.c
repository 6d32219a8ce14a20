/* SPDX-License-Identifier: MIT */
/* Messages, exit codes and input of the commands. */
#include "client/tool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define READ_STEP_BYTES (64u << 10)

const char *tool_name = "dsv4";

int tool_fail(int code, const char *fmt, ...)
{
    _cleanup_buf_ struct buf safe = BUF_INIT;
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    /* parts of it can come from the service or from file names */
    fprintf(stderr, "%s: %s\n", tool_name, visible_append(&safe, text, strlen(text)) < 0 ? "out of memory" : safe.data);
    return code;
}

static const struct {
    const char *code;
    int exit_code;
    const char *advice; /* NULL: the sentence says it all */
} known[] = {
    {"UNAVAILABLE", EXIT_UNAVAILABLE,
     "Is the service running? See \"systemctl status dsv4d.socket\"; for a private one set DSV4_SOCKET to its socket."},
    {"DISCONNECTED", EXIT_UNAVAILABLE, NULL},
    {"NOT_CONNECTED", EXIT_UNAVAILABLE, NULL},
    {"TIMEOUT", EXIT_UNAVAILABLE, NULL},
    {"DENIED", EXIT_DENIED, "Ask the administrator for access."},
    {"QUOTA", EXIT_TRY_LATER, NULL},
    {"MODEL_LOADING", EXIT_TRY_LATER, "\"dsv4 models\" shows how far it is."},
    {"ENGINE_GONE", EXIT_TRY_LATER, NULL},
    {"KV_FULL", EXIT_TRY_LATER, NULL},
    {"SHUTTING_DOWN", EXIT_TRY_LATER, NULL},
    {"SESSION_BUSY", EXIT_TRY_LATER, NULL},
    {"NO_MEMORY", EXIT_TRY_LATER, NULL},
    {"NO_SUCH_MODEL", EXIT_FAILED, "\"dsv4 models\" lists what there is."},
    {"NO_SUCH_SESSION", EXIT_FAILED, "\"dsv4ctl sessions\" lists yours."},
    {"MODEL_FAILED", EXIT_FAILED, "\"dsv4 models\" and the service's log say why."},
    {"VERSION", EXIT_FAILED, "Client and service are of different releases: update the older one."},
};

int tool_exit_code(const struct dsv4_error *e)
{
    for (size_t i = 0; i < ELEMENTS(known); i++)
        if (strcmp(known[i].code, dsv4_error_get_code(e)) == 0)
            return known[i].exit_code;
    return EXIT_FAILED;
}

int tool_error(const struct dsv4_error *e)
{
    const char *code = dsv4_error_get_code(e);
    uint32_t retry_ms = dsv4_error_get_retry_after_ms(e);

    tool_fail(0, "%s (%s)", dsv4_error_get_message(e), code);
    for (size_t i = 0; i < ELEMENTS(known); i++)
        if (known[i].advice && strcmp(known[i].code, code) == 0)
            fprintf(stderr, "%s\n", known[i].advice);
    if (retry_ms > 0)
        fprintf(stderr, "Try again in %.1f s.\n", retry_ms / 1000.0);
    return tool_exit_code(e);
}

int tool_connect(struct dsv4 **ret)
{
    _cleanup_(dsv4_unrefp) struct dsv4 *c = NULL;
    char name[64];

    if (dsv4_new(&c) < 0)
        return tool_fail(EXIT_FAILED, "out of memory");
    snprintf(name, sizeof(name), "%s %s", tool_name, PACKAGE_VERSION);
    dsv4_set_client_name(c, name);
    if (dsv4_connect(c, NULL) < 0)
        return tool_error(dsv4_get_error(c));
    *ret = TAKE_PTR(c);
    return EXIT_OK;
}

int tool_read(const char *name, struct buf *b)
{
    _cleanup_close_ int opened = -1;
    int fd = STDIN_FILENO;

    if (name && strcmp(name, "-") != 0) {
        fd = opened = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return tool_fail(EXIT_FAILED, "%s: %s", name, strerror(errno));
    } else {
        name = "standard input";
    }
    for (;;) {
        if (b->size > INPUT_MAX_BYTES)
            return tool_fail(EXIT_FAILED, "%s: more than %zu bytes", name, INPUT_MAX_BYTES);
        if (buf_reserve(b, READ_STEP_BYTES) < 0)
            return tool_fail(EXIT_FAILED, "out of memory");
        ssize_t k = read(fd, b->data + b->size, READ_STEP_BYTES);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return tool_fail(EXIT_FAILED, "%s: %s", name, strerror(errno));
        b->size += (size_t)k;
        b->data[b->size] = '\0';
        if (k == 0)
            return EXIT_OK;
    }
}

int tool_join(char **args, struct buf *b)
{
    for (size_t i = 0; args[i]; i++) {
        int r = i ? buf_append_str(b, " ") : 0;
        if (r >= 0)
            r = buf_append_str(b, args[i]);
        if (r < 0)
            return r;
    }
    return 0;
}
