/* SPDX-License-Identifier: MIT */
/* Products of layout "rows16" in plain C: what the SIMD kernels are compared with, and the way where there is none. */
#include "backends/cpu/rows16.h"

#include <math.h>

#include "backends/cpu/mat.h"

static const int8_t doubled_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* e4m3 times 2^-8 */
static float fp8_value(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float v = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return (code & 0x80 ? -v : v) * 0x1p-8f;
}

static float dot_fp8(const struct weight *w, uint32_t group, uint32_t lane, const float *x)
{
    const uint8_t *d = rows16_data(w, group), *s = rows16_fp8_scales(w, group);
    float y = 0;

    for (uint32_t k0 = 0; k0 < w->cols; k0 += FP8_BLOCK) {
        float p = 0;
        for (uint32_t k = k0; k < w->cols && k < k0 + FP8_BLOCK; k++)
            p = fmaf(fp8_value(d[(size_t)k * ROWS16 + lane]), x[k], p);
        y = fmaf(p, rows16_fp8_scale(s[k0 / FP8_BLOCK]), y);
    }
    return y;
}

static float dot_fp4(const struct weight *w, uint32_t group, uint32_t lane, const struct rows16_act *a)
{
    const uint8_t *d = rows16_data(w, group), *s = rows16_fp4_scales(w, group);
    float y = 0;

    for (uint32_t b = 0; b < w->cols / INDEX_BLOCK; b++) {
        int32_t sum = 0;
        for (uint32_t k = 0; k < INDEX_BLOCK; k++) {
            uint8_t byte = d[b * 256 + k / 8 * 64 + lane * 4 + k % 4];
            sum += doubled_e2m1[k % 8 < 4 ? byte & 15 : byte >> 4] * a->q[b * INDEX_BLOCK + k];
        }
        y = fmaf((float)sum, rows16_fp4_scale(s[b * ROWS16 + lane]) * a->q_scale[b], y);
    }
    return y;
}

static float dot_bf16(const struct weight *w, uint32_t group, uint32_t lane, const float *x)
{
    const uint16_t *d = (const void *)rows16_data(w, group);
    float y = 0;

    for (uint32_t k = 0; k < w->cols; k++)
        y = fmaf(mat_bf16(d[(size_t)k * ROWS16 + lane]), x[k], y);
    return y;
}

void rows16_matmul_plain(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    (void)scratch;
    for (uint32_t i = 0; i < m->n; i++) {
        struct rows16_act a = rows16_act(m, i);
        for (uint32_t row = first; row < end; row++) {
            uint32_t group = row / ROWS16, lane = row % ROWS16;
            *rows16_out(m, i, row) = m->w->type == WEIGHT_FP4   ? dot_fp4(m->w, group, lane, &a)
                                     : m->w->type == WEIGHT_FP8 ? dot_fp8(m->w, group, lane, a.x)
                                                                : dot_bf16(m->w, group, lane, a.x);
        }
    }
}

void rows16_activation_plain(enum weight_type type, uint32_t cols, const float *x, void *out)
{
    int8_t *q = out;
    float *q_scale = (float *)(void *)(q + cols);
    int32_t *q_bias = (int32_t *)(void *)(q_scale + cols / INDEX_BLOCK);

    (void)type;
    for (uint32_t b = 0; b < cols / INDEX_BLOCK; b++, x += INDEX_BLOCK, q += INDEX_BLOCK) {
        float amax = 0;
        int32_t sum = 0;
        for (uint32_t k = 0; k < INDEX_BLOCK; k++)
            amax = fabsf(x[k]) > amax ? fabsf(x[k]) : amax;
        float inverse = amax >= 0x1p-100f ? 127 / amax : 0;
        for (uint32_t k = 0; k < INDEX_BLOCK; k++) {
            float v = x[k] * inverse;
            q[k] = v == v ? (int8_t)lrintf(fminf(fmaxf(v, -127), 127)) : 0;
            sum += q[k];
        }
        q_scale[b] = amax * (1.0f / 254);
        q_bias[b] = -12 * sum;
    }
}
