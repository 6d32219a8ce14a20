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
    const float *q = a->q + (size_t)head * c;
    float p[ATTEND_KEYS] = {0}, *acc = a->acc + (size_t)head * c;
    uint32_t k = 0;
    for (; k + 4 <= n; k += 4)
        vec_dot4(q, key + (size_t)k * c, c, p + k);
    for (; k < n; k++)
        p[k] = vec_dot(q, key + (size_t)k * c, c);
    for (uint32_t i = 0; i < n; i++)
        p[i] *= a->scale;
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
    vec_add_all_scaled(acc, key, p, n, c);
}

/* A row in KV row format as [c] floats. */
typedef void attend_unpack(const struct model_shape *s, const struct kv_layout *kv, const uint8_t *row, float *x);

/* All of cpu_kernels.attend. scratch: [ATTEND_KEYS][c] */
static inline void attend_rows(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, attend_unpack *unpack,
                               float *scratch)
{
    for (uint32_t i = 0; i < n; i++)
        unpack(a->shape, a->kv, row[i], scratch + (size_t)i * a->shape->head_dim);
    for (uint32_t head = 0; head < a->heads; head++)
        attend_head(a, head, n, scratch);
}
