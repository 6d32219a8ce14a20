/* SPDX-License-Identifier: MIT */
/* The pieces of the fast kernels that are one per instruction set; fast.c puts the tables together. */
#pragma once

#include "backends/cpu/cpu.h"
#include "backends/cpu/vec.h"

void attend_avx2(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch);
void attend_avx512(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch);

void matmul_f32_avx2(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);
void matmul_f32_avx512(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch);

/* F32 matrices (mHC) as they are stored; vec_dot gives the same bits however it is compiled. */
static inline void matmul_f32(const struct cpu_matmul *m, uint32_t first, uint32_t end)
{
    const struct weight *w = m->w;
    const float *data = w->data;
    uint32_t cols = w->cols;

    for (uint32_t t = 0; t < m->n; t++) {
        const float *x = (const void *)(m->x + (m->xi ? m->xi[t] : t) * m->x_stride);
        float *y = m->y + (m->yi ? m->yi[t] : t) * m->y_stride;
        uint32_t row = first;
        for (; row + 4 <= end; row += 4)
            vec_dot4(x, data + (size_t)row * cols, cols, y + row);
        for (; row < end; row++)
            y[row] = vec_dot(data + (size_t)row * cols, x, cols);
    }
}
