/* SPDX-License-Identifier: MIT */
/*
 * Matrix products of the fast numerics: layout, activations, kernels.
 *
 * Layout "rows16": rows in groups of 16, interleaved, so that a SIMD lane owns one output row and walks its columns in
 * order. The sum of one output is defined once, and every kernel below computes exactly that, to the last bit, for one
 * token or many, with 16 lanes, 8, or plain C:
 *
 *   BF16:      y = chain of fma(w[k], x[k], y) for k = 0, 1, ...
 *   FP8:       per block of 128 columns p = chain of fma(w[k] * 2^-8, x[k], p) from 0, then y = fma(p, scale * 2^8, y)
 *   FP4:       per block of 32 columns the integer i = sum of 2 w[k] * q[k], then y = fma((float)i, scale * a, y),
 *              x quantised per block to q = rint(x * 127 / amax), -127 .. 127, and a = amax / 127 / 2
 *
 * FP4 weights are the integers 2w + 12 (0 .. 24) to the multiplier, because vpdpbusd and vpmaddubsw want one unsigned
 * side; -12 * sum(q) of the block is where the integer sum starts.
 *
 * In memory, per group (g = row / 16, lane = row % 16):
 *   BF16, FP8:      [cols][16] values
 *   FP4:            [cols / 32][4][16][4] bytes: chunk j of a block, lane, byte b: low nibble column 8j + b, high 8j + 4 + b
 *   scales: FP8 as stored, [rows / 128][cols / 128]; FP4 [cols / 32][16] per group
 * Lanes past the last row are zero.
 */
#pragma once

#include "backends/cpu/cpu.h"

#define ROWS16 16u
#define ROWS16_STREAMS 4u /* groups that a one-token kernel reads side by side: enough to hide latencies */

/* WEIGHT_F32 stays as stored: vectors are F32 matrices of one row. */
int rows16_layout(enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret);
void rows16_pack(enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part, uint32_t row, uint32_t n,
                 const void *src, void *dst);
/* One whole group of 16 rows, columns 0 to what it returns. Not for F32. x86-64 only. */
uint32_t rows16_pack_sse2(enum weight_type type, uint32_t cols, const void *src, void *dst);
void rows16_row(const struct weight *w, uint32_t row, float *out);

/* Prepared activations: float32 as they are, but for FP4 [cols] q, then [cols / 32] scales (amax / 254), then
 * [cols / 32] int32 -12 * sum of the block's q. NaN becomes 0. */
size_t rows16_activation_bytes(enum weight_type type, uint32_t cols);
void rows16_activation_plain(enum weight_type type, uint32_t cols, const float *x, void *out);
void rows16_activation_avx2(enum weight_type type, uint32_t cols, const float *x, void *out);
void rows16_activation_avx512(enum weight_type type, uint32_t cols, const float *x, void *out);

/* BF16, FP8, FP4; see cpu_kernels.matmul. */
void rows16_matmul_plain(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);
void rows16_matmul_avx2(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);
void rows16_matmul_avx512(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);
#define ROWS16_SCRATCH_BYTES (192u << 10)

/* ---- shared by the kernels */

/* Before a loop over accumulators, whose number is a constant: all of it, so that they stay in registers. At -O2 gcc
 * leaves such loops and the accumulators in memory. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

struct rows16_act {
    const float *x;        /* [cols]; BF16, FP8 */
    const int8_t *q;       /* [cols]; FP4 */
    const float *q_scale;  /* [cols / 32] */
    const int32_t *q_bias; /* [cols / 32] */
};

static inline struct rows16_act rows16_act(const struct cpu_matmul *m, uint32_t i)
{
    const uint8_t *x = m->x + (m->xi ? m->xi[i] : i) * m->x_stride;
    size_t cols = m->w->cols, blocks = cols / INDEX_BLOCK;
    struct rows16_act a = {.x = (const float *)(const void *)x};
    a.q = (const int8_t *)x;
    a.q_scale = (const float *)(const void *)(x + cols);
    a.q_bias = (const int32_t *)(const void *)(x + cols + blocks * sizeof(float));
    return a;
}

static inline float *rows16_out(const struct cpu_matmul *m, uint32_t i, uint32_t row)
{
    return m->y + (m->yi ? m->yi[i] : i) * m->y_stride + row;
}

/* e4m3 (without NaN) is fp16 times 2^8 when its sign goes to the top and the rest one bit below: ue8m0 scales carry the
 * 2^8. What does not fit is infinite. */
static inline float rows16_fp8_scale(uint8_t code)
{
    uint32_t bits = (code < 247 ? code + 8u : 255u) << 23;
    float f;
    __builtin_memcpy(&f, &bits, sizeof(f));
    return f;
}

/* 2^(code - 127); code 0 (2^-127, below what a product with an e2m1 value could show) counts as zero. */
static inline float rows16_fp4_scale(uint8_t code)
{
    uint32_t bits = (uint32_t)code << 23;
    float f;
    __builtin_memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Parts of a weight in memory. */
static inline const uint8_t *rows16_data(const struct weight *w, uint32_t group)
{
    static const uint8_t half_bytes[] = {[WEIGHT_BF16] = 4, [WEIGHT_FP8] = 2, [WEIGHT_FP4] = 1, [WEIGHT_F32] = 8};
    return (const uint8_t *)w->data + (size_t)group * ROWS16 * w->cols * half_bytes[w->type] / 2;
}
static inline const uint8_t *rows16_fp8_scales(const struct weight *w, uint32_t group)
{
    return (const uint8_t *)w->scale + (size_t)(group / (FP8_BLOCK / ROWS16)) * ((w->cols + FP8_BLOCK - 1) / FP8_BLOCK);
}
static inline const uint8_t *rows16_fp4_scales(const struct weight *w, uint32_t group)
{
    return (const uint8_t *)w->scale + (size_t)group * ROWS16 * (w->cols / INDEX_BLOCK);
}
