/* SPDX-License-Identifier: MIT */
/*
 * Exact kernels: float32 activations and sums, weights as stored and at their stored value. Layout "plain".
 */
#include <errno.h>
#include <math.h>
#include <stdbool.h>

#include "backends/cpu/attend.h"
#include "backends/cpu/cpu.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/vec.h"
#include "base/size.h"

/* Rows of a matrix made float32 at once, then used for every activation. */
#define DECODED_ROWS 4

/* ---------------------------------------------------------------- layout */

static size_t row_bytes(enum weight_type type, uint32_t cols, enum weight_part part)
{
    switch (type) {
    case WEIGHT_BF16: return part == WEIGHT_DATA ? (size_t)cols * 2 : 0;
    case WEIGHT_F32:  return part == WEIGHT_DATA ? (size_t)cols * 4 : 0;
    case WEIGHT_FP8:  return part == WEIGHT_DATA ? cols : div_up(cols, FP8_BLOCK);
    case WEIGHT_FP4:  return part == WEIGHT_DATA ? div_up(cols, 2) : div_up(cols, INDEX_BLOCK);
    }
    return 0;
}

static int plain_layout(enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret)
{
    size_t scale_rows = type == WEIGHT_FP8 ? div_up(rows, FP8_BLOCK) : rows;
    struct weight_layout l = {.row_group = 1, .scale_group = 1};
    if (!size_mul(rows, row_bytes(type, cols, WEIGHT_DATA), &l.data_bytes) ||
        !size_mul(scale_rows, row_bytes(type, cols, WEIGHT_SCALE), &l.scale_bytes))
        return -EOVERFLOW;
    *ret = l;
    return 0;
}

static void plain_pack(enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part, uint32_t row,
                       uint32_t n, const void *src, void *dst)
{
    (void)rows;
    size_t bytes = row_bytes(type, cols, part);
    memcpy((uint8_t *)dst + row * bytes, src, n * bytes);
}

/* ---------------------------------------------------------------- matrices */

static void row_bf16(const struct weight *w, uint32_t row, float *out)
{
    const uint16_t *data = (const uint16_t *)w->data + (size_t)row * w->cols;
    for (uint32_t i = 0; i < w->cols; i++)
        out[i] = mat_bf16(data[i]);
}

static void row_fp8(const struct weight *w, uint32_t row, float *out)
{
    const uint8_t *data = (const uint8_t *)w->data + (size_t)row * w->cols;
    const uint8_t *scale = (const uint8_t *)w->scale + row / FP8_BLOCK * div_up(w->cols, FP8_BLOCK);
    for (uint32_t i = 0; i < w->cols; i += FP8_BLOCK) {
        float s = mat_scale(scale[i / FP8_BLOCK]);
        uint32_t end = MIN(i + FP8_BLOCK, w->cols);
        for (uint32_t k = i; k < end; k++)
            out[k] = mat_e4m3[data[k]] * s;
    }
}

static void row_fp4(const struct weight *w, uint32_t row, float *out)
{
    const uint8_t *data = (const uint8_t *)w->data + row * div_up(w->cols, 2);
    const uint8_t *scale = (const uint8_t *)w->scale + row * div_up(w->cols, INDEX_BLOCK);
    for (uint32_t i = 0; i < w->cols; i += INDEX_BLOCK) {
        float s = mat_scale(scale[i / INDEX_BLOCK]);
        uint32_t end = MIN(i + INDEX_BLOCK, w->cols);
        for (uint32_t k = i; k < end; k++)
            out[k] = mat_e2m1[data[k / 2] >> (k % 2 * 4) & 15] * s;
    }
}

static void plain_row(const struct weight *w, uint32_t row, float *out)
{
    switch (w->type) {
    case WEIGHT_BF16: row_bf16(w, row, out); break;
    case WEIGHT_FP8:  row_fp8(w, row, out); break;
    case WEIGHT_FP4:  row_fp4(w, row, out); break;
    case WEIGHT_F32:  memcpy(out, (const float *)w->data + (size_t)row * w->cols, w->cols * sizeof(float)); break;
    }
}

static void plain_matmul(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    const struct weight *w = m->w;
    float *decoded = scratch; /* [DECODED_ROWS][cols] */
    for (uint32_t row = first; row < end; row += DECODED_ROWS) {
        uint32_t n = MIN(end - row, (uint32_t)DECODED_ROWS);
        for (uint32_t i = 0; i < n; i++)
            plain_row(w, row + i, decoded + (size_t)i * w->cols);
        for (uint32_t t = 0; t < m->n; t++) {
            const void *x = m->x + (m->xi ? m->xi[t] : t) * m->x_stride;
            float *y = m->y + (m->yi ? m->yi[t] : t) * m->y_stride + row;
            for (uint32_t i = 0; i < n; i++)
                y[i] = vec_dot(decoded + (size_t)i * w->cols, x, w->cols);
        }
    }
}

static size_t no_bytes(enum weight_type type, uint32_t cols)
{
    (void)type, (void)cols;
    return 0;
}

static void plain_swiglu(uint32_t n, const float *gate, const float *up, float weight, float limit, float *out)
{
    for (uint32_t i = 0; i < n; i++) {
        float g = gate[i] < limit ? gate[i] : limit;
        float u = up[i] < -limit ? -limit : up[i] > limit ? limit : up[i];
        out[i] = weight * (g * (1 / (1 + expf(-g))) * u);
    }
}

/* ---------------------------------------------------------------- attention */

static void plain_attend(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch)
{
    attend_rows(a, n, row, row_unpack, scratch);
}

/* ---------------------------------------------------------------- index */

static size_t no_query_bytes(const struct model_shape *shape)
{
    (void)shape;
    return 0;
}

static void plain_index_scores(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                               const uint8_t *row, size_t stride, float *score, void *scratch)
{
    uint32_t dim = shape->index_dim;
    float *key = scratch; /* [dim] */
    for (uint32_t i = 0; i < n; i++) {
        index_row_unpack(dim, row + i * stride, key);
        float sum = 0;
        for (uint32_t head = 0; head < shape->index_heads; head++) {
            float dot = vec_dot((const float *)iq + (size_t)head * dim, key, dim);
            sum += weight[head] * (dot > 0 ? dot : 0);
        }
        score[i] = sum;
    }
}

static size_t plain_scratch_bytes(const struct model_shape *s)
{
    size_t cols = MAX(s->hidden, MAX(s->q_rank, s->expert_hidden));
    cols = MAX(cols, (size_t)s->hidden * s->hc);
    cols = MAX(cols, (size_t)s->o_rank * s->o_groups);
    cols = MAX(cols, (size_t)s->heads * s->head_dim / s->o_groups);
    size_t floats = MAX(cols * DECODED_ROWS, (size_t)ATTEND_KEYS * s->head_dim);
    return MAX(floats, (size_t)s->index_dim) * sizeof(float);
}

const struct cpu_kernels cpu_kernels_exact = {
    .isa = "plain",
    .layout_id = "plain",
    .layout = plain_layout,
    .pack = plain_pack,
    .row = plain_row,
    .activation_bytes = no_bytes,
    .matmul = {plain_matmul, plain_matmul, plain_matmul, plain_matmul},
    .swiglu = plain_swiglu,
    .attend = plain_attend,
    .index_query_bytes = no_query_bytes,
    .index_scores = plain_index_scores,
    .scratch_bytes = plain_scratch_bytes,
};
