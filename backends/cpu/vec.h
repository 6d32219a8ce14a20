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

/* The next two have as much in registers as AVX2 has room for; with less they go one by one, which is the same sums. */
#ifdef __AVX2__
#define VEC_MANY 1
#else
#define VEC_MANY 0
#endif

/* dot[j] = vec_dot(a, b + j * n, n) for j < 4: the same sums, side by side. */
static inline void vec_dot4(const float *a, const float *b, uint32_t n, float *dot)
{
    for (int j = 0; j < 4 && !VEC_MANY; j++)
        dot[j] = vec_dot(a, b + (size_t)j * n, n);
    if (!VEC_MANY)
        return;
    vec sum[4] = {{0}, {0}, {0}, {0}};
    uint32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec v = *(const vec *)(const void *)(a + i);
        sum[0] += v * *(const vec *)(const void *)(b + i);
        sum[1] += v * *(const vec *)(const void *)(b + n + i);
        sum[2] += v * *(const vec *)(const void *)(b + 2 * (size_t)n + i);
        sum[3] += v * *(const vec *)(const void *)(b + 3 * (size_t)n + i);
    }
    for (int j = 0; j < 4; j++) {
        float lane[VEC_LANES];
        memcpy(lane, &sum[j], sizeof(lane));
        for (uint32_t k = 0; i + k < n; k++)
            lane[k] += a[i + k] * b[(size_t)j * n + i + k];
        dot[j] = vec_tree(lane);
    }
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

/* vec_add_scaled for x, x + n, ... and factor[0 .. count - 1], one after the other for every element of y. */
static inline void vec_add_all_scaled(float *y, const float *x, const float *factor, uint32_t count, uint32_t n)
{
    uint32_t i = 0;
    for (; VEC_MANY && i + 4 * VEC_LANES <= n; i += 4 * VEC_LANES) {
        vec *at = (vec *)(void *)(y + i), a = at[0], b = at[1], c = at[2], d = at[3];
        for (uint32_t k = 0; k < count; k++) {
            const vec *v = (const vec *)(const void *)(x + (size_t)k * n + i);
            a += v[0] * factor[k];
            b += v[1] * factor[k];
            c += v[2] * factor[k];
            d += v[3] * factor[k];
        }
        at[0] = a, at[1] = b, at[2] = c, at[3] = d;
    }
    for (uint32_t k = 0; k < count && i < n; k++)
        vec_add_scaled(y + i, x + (size_t)k * n + i, factor[k], n - i);
}

static inline float vec_max(const float *x, uint32_t n)
{
    float m = x[0];
    for (uint32_t i = 1; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}
