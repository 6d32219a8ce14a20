/* SPDX-License-Identifier: MIT */
/* Formats of rows. Rounding: to nearest, ties to even, saturating; block scales are powers of two (docs/model.md). */
#include "backends/cpu/rows.h"

#include <math.h>
#include <string.h>

#include "backends/cpu/mat.h"
#include "backends/cpu/vec.h"

#define E4M3_MAX 448.0f
#define E4M3_AMAX_FLOOR 1e-4f
#define E2M1_MAX 6.0f
#define E2M1_AMAX_FLOOR (6 * 0x1p-126f)

/* ue8m0 code of the smallest power of two >= x, for normal x > 0. */
static uint8_t scale_code(float x)
{
    uint32_t u = mat_bits(x);
    uint32_t code = (u >> 23) + ((u & 0x7fffff) != 0);
    return (uint8_t)(code > 254 ? 254 : code);
}

/* The scale of a block whose largest magnitude is amax; the product is what the released kernels compute, too. */
static uint8_t block_scale(const float *x, uint32_t n, float max, float floor)
{
    float amax = floor;
    for (uint32_t i = 0; i < n; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    return scale_code(amax * (1 / max));
}

static uint8_t e4m3_code(float x)
{
    uint8_t sign = (uint8_t)(mat_bits(x) >> 24 & 0x80);
    float a = fabsf(x);
    if (!(a < E4M3_MAX))
        return sign | 0x7e;
    if (a < 0x1p-6f) /* denormal, in steps of 2^-9; 8 of them are the smallest normal number */
        return (uint8_t)(sign | (uint8_t)rintf(a * 0x1p9f));
    uint32_t u = mat_bits(a);
    u += 0x7ffff + (u >> 20 & 1);
    return (uint8_t)(sign | ((u >> 20) - ((127 - 7) << 3)));
}

/* Borders lie half way between neighbours and belong to the one with the even code. */
static uint8_t e2m1_code(float x)
{
    uint8_t sign = (uint8_t)(mat_bits(x) >> 28 & 8);
    float a = fabsf(x);
    return (uint8_t)(sign | ((a > .25f) + (a >= .75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) +
                             (a > 5)));
}

void row_pack(const struct model_shape *s, const struct kv_layout *kv, const float *x, uint8_t *row)
{
    uint32_t r = s->rope_dim, n = s->head_dim - r;
    size_t at = row_rope_offset(s);
    memset(row + n, 0, at - n);
    for (uint32_t i = 0; i < n; i += KV_BLOCK) {
        uint8_t code = block_scale(x + i, KV_BLOCK, E4M3_MAX, E4M3_AMAX_FLOOR);
        float scale = mat_scale(code);
        for (uint32_t k = i; k < i + KV_BLOCK; k++)
            row[k] = e4m3_code(x[k] / scale);
        row[n + i / KV_BLOCK] = code;
    }
    if (kv->rope_f32) {
        memcpy(row + at, x + n, r * sizeof(float));
        return;
    }
    for (uint32_t i = 0; i < r; i++) {
        uint16_t v = mat_to_bf16(x[n + i]);
        memcpy(row + at + 2 * i, &v, sizeof(v));
    }
}

void row_unpack(const struct model_shape *s, const struct kv_layout *kv, const uint8_t *row, float *x)
{
    uint32_t r = s->rope_dim, n = s->head_dim - r;
    size_t at = row_rope_offset(s);
    for (uint32_t i = 0; i < n; i += KV_BLOCK) {
        float scale = mat_scale(row[n + i / KV_BLOCK]);
        for (uint32_t k = i; k < i + KV_BLOCK; k++)
            x[k] = mat_e4m3[row[k]] * scale;
    }
    if (kv->rope_f32) {
        memcpy(x + n, row + at, r * sizeof(float));
        return;
    }
    for (uint32_t i = 0; i < r; i++) {
        uint16_t v;
        memcpy(&v, row + at + 2 * i, sizeof(v));
        x[n + i] = mat_bf16(v);
    }
}

void index_row_pack(uint32_t dim, const float *x, uint8_t *row)
{
    for (uint32_t i = 0; i < dim; i += INDEX_BLOCK) {
        uint8_t code = block_scale(x + i, INDEX_BLOCK, E2M1_MAX, E2M1_AMAX_FLOOR);
        float scale = mat_scale(code);
        for (uint32_t k = i; k < i + INDEX_BLOCK; k += 2)
            row[k / 2] = (uint8_t)(e2m1_code(x[k] / scale) | e2m1_code(x[k + 1] / scale) << 4);
        row[dim / 2 + i / INDEX_BLOCK] = code;
    }
}

void index_row_unpack(uint32_t dim, const uint8_t *row, float *x)
{
    for (uint32_t i = 0; i < dim; i += 2) {
        float scale = mat_scale(row[dim / 2 + i / INDEX_BLOCK]);
        x[i] = mat_e2m1[row[i / 2] & 15] * scale;
        x[i + 1] = mat_e2m1[row[i / 2] >> 4] * scale;
    }
}

void index_round(uint32_t dim, float *x)
{
    for (uint32_t i = 0; i < dim; i += INDEX_BLOCK) {
        float scale = mat_scale(block_scale(x + i, INDEX_BLOCK, E2M1_MAX, E2M1_AMAX_FLOOR));
        for (uint32_t k = i; k < i + INDEX_BLOCK; k++)
            x[k] = mat_e2m1[e2m1_code(x[k] / scale)] * scale;
    }
}

void rms_norm(float *x, const float *weight, uint32_t n, float eps)
{
    float rms = sqrtf(vec_dot(x, x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        x[i] = weight ? x[i] / rms * weight[i] : x[i] / rms;
}

void rotation_init(const float *theta, uint32_t r, uint32_t position, float *rotation)
{
    for (uint32_t i = 0; i < r / 2; i++) {
        float angle = (float)position * theta[i];
        rotation[i] = cosf(angle);
        rotation[r / 2 + i] = sinf(angle);
    }
}

void rope(float *x, const float *rotation, uint32_t r, bool inverse)
{
    for (uint32_t i = 0; i < r / 2; i++) {
        float cosine = rotation[i], sine = inverse ? -rotation[r / 2 + i] : rotation[r / 2 + i];
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine - b * sine;
        x[2 * i + 1] = a * sine + b * cosine;
    }
}

void hadamard(float *x, uint32_t n)
{
    for (uint32_t h = 1; h < n; h *= 2)
        for (uint32_t i = 0; i < n; i += 2 * h)
            for (uint32_t k = i; k < i + h; k++) {
                float a = x[k], b = x[k + h];
                x[k] = a + b;
                x[k + h] = a - b;
            }
    float norm = (float)(1 / sqrt(n));
    for (uint32_t i = 0; i < n; i++)
        x[i] *= norm;
}
