/* SPDX-License-Identifier: MIT */
/*
 * Loops over float32 vectors with a fixed order of sums: 16 partial sums (element i goes to sum i % 16), then a tree.
 * Written with the compilers' vector extension so that they use the vector unit without being allowed to reorder.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define VEC_LANES 16
typedef float vec __attribute__((vector_size(VEC_LANES * sizeof(float)), aligned(4), may_alias));

static inline float vec_tree(const float *lane)
{
    float s8[8], s4[4];
    for (int i = 0; i < 8; i++)
        s8[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++)
        s4[i] = s8[i] + s8[i + 4];
    return (s4[0] + s4[2]) + (s4[1] + s4[3]);
}

static inline float vec_dot(const float *a, const float *b, uint32_t n)
{
    vec sum = {0};
    uint32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES)
        sum += *(const vec *)(const void *)(a + i) * *(const vec *)(const void *)(b + i);
    float lane[VEC_LANES];
    memcpy(lane, &sum, sizeof(lane));
    for (uint32_t k = 0; i + k < n; k++)
        lane[k] += a[i + k] * b[i + k];
    return vec_tree(lane);
}

/* y *= scale */
static inline void vec_scale(float *y, float scale, uint32_t n)
{
    uint32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES)
        *(vec *)(void *)(y + i) *= scale;
    for (; i < n; i++)
        y[i] *= scale;
}

static inline void vec_add_scaled(float *y, const float *x, float factor, uint32_t n)
{
    uint32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES)
        *(vec *)(void *)(y + i) += *(const vec *)(const void *)(x + i) * factor;
    for (; i < n; i++)
        y[i] += x[i] * factor;
}

static inline float vec_max(const float *x, uint32_t n)
{
    float m = x[0];
    for (uint32_t i = 1; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}
