/* SPDX-License-Identifier: MIT */
/*
 * The running softmax of attention, for kernel files to include: the same source for every instruction set, so the same
 * bits. They differ only in how they unpack rows.
 */
#pragma once

#include <math.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/vec.h"

/* Scores of one head against n decoded keys become weights; what was summed before is scaled to the new maximum. */
static inline void attend_head(const struct cpu_attend *a, uint32_t head, uint32_t n, const float *key)
{
    uint32_t c = a->shape->head_dim;
    float p[ATTEND_KEYS] = {0}, *acc = a->acc + (size_t)head * c;
    for (uint32_t i = 0; i < n; i++)
        p[i] = vec_dot(a->q + (size_t)head * c, key + (size_t)i * c, c) * a->scale;
    float max = vec_max(p, n);
    if (max > a->max[head]) {
        float shrink = expf(a->max[head] - max);
        a->max[head] = max;
        a->sum[head] *= shrink;
        vec_scale(acc, shrink, c);
    }
    for (uint32_t i = 0; i < n; i++) {
        p[i] = expf(p[i] - a->max[head]);
        a->sum[head] += p[i];
    }
    for (uint32_t i = 0; i < n; i++)
        vec_add_scaled(acc, key + (size_t)i * c, p[i], c);
}
