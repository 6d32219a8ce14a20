/* SPDX-License-Identifier: MIT */
/* Backends by device name. */
#include <string.h>

#include "backends/backend.h"

const struct backend_ops *backend_find(const char *device)
{
    return strcmp(device, backend_cpu.name) == 0 ? &backend_cpu : NULL;
}
