/* SPDX-License-Identifier: MIT */
/* Which kernels NUMERICS_FAST uses. */
#include <errno.h>
#include <string.h>

#include "backends/cpu/cpu.h"

int cpu_kernels_fast(const char *isa, const struct cpu_kernels **ret, struct fail *f)
{
    if (isa && strcmp(isa, "plain") != 0)
        return fail_set(f, EINVAL, "BAD_OPTION", "isa '%s': expected 'plain'", isa);
    *ret = &cpu_kernels_exact;
    return 0;
}
