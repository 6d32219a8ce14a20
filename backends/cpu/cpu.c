/* SPDX-License-Identifier: MIT */
#include "backends/backend.h"
extern int cpu_empty; int cpu_empty;
