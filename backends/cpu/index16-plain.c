/* SPDX-License-Identifier: MIT */
/* Index scores of the fast numerics in plain C, and the preparation of queries. See index16.h. */
#include "backends/cpu/index16.h"

#include <math.h>
#include <string.h>

#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/vec.h"
#include "base/size.h"

size_t index16_query_bytes(const struct model_shape *shape)
{
    size_t heads = align_up(shape->index_heads, 16);
    return align_up(heads * shape->index_dim + heads * (shape->index_dim / INDEX_BLOCK) * 8, 64);
}

static int32_t doubled(const uint8_t *row, uint32_t k)
{
    return (int32_t)(2 * mat_e2m1[row[k / 2] >> (k % 2 * 4) & 15]);
}

void index16_query(const struct model_shape *shape, const float *iq, void *out)
{
    struct index16 x = index16_of(shape, out);
    int8_t *q = out;
    int32_t *bias = (int32_t *)(void *)(q + (size_t)x.dim * x.heads);
    float *scale = (float *)(void *)(bias + (size_t)x.blocks * x.heads);
    uint8_t packed[INDEX_DIM_MAX / 2 + INDEX_DIM_MAX / INDEX_BLOCK]; /* one head as an index row */

    memset(out, 0, index16_query_bytes(shape));
    for (uint32_t h = 0; h < shape->index_heads; h++) {
        index_row_pack(x.dim, iq + (size_t)h * x.dim, packed);
        for (uint32_t b = 0; b < x.blocks; b++) {
            int32_t sum = 0;
            for (uint32_t k = b * INDEX_BLOCK; k < (b + 1) * INDEX_BLOCK; k++) {
                int32_t v = doubled(packed, k);
                q[((size_t)(k / 4) * x.heads + h) * 4 + k % 4] = (int8_t)v;
                sum += v;
            }
            bias[b * x.heads + h] = -12 * sum;
            scale[b * x.heads + h] = mat_scale(packed[x.dim / 2 + b]) * 0.25f;
        }
    }
}

static float head_dot(const struct index16 *x, uint32_t h, const uint8_t *row)
{
    float dot = 0;

    for (uint32_t b = 0; b < x->blocks; b++) {
        int32_t sum = 0;
        for (uint32_t k = b * INDEX_BLOCK; k < (b + 1) * INDEX_BLOCK; k++)
            sum += doubled(row, k) * x->q[((size_t)(k / 4) * x->heads + h) * 4 + k % 4];
        dot = fmaf((float)sum, mat_scale(row[x->dim / 2 + b]) * x->scale[b * x->heads + h], dot);
    }
    return dot;
}

void index16_scores_plain(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                          const uint8_t *row, size_t row_bytes, float *score, void *scratch)
{
    struct index16 x = index16_of(shape, iq);

    (void)scratch;
    for (uint32_t i = 0; i < n; i++, row += row_bytes) {
        float lane[16] = {0};
        for (uint32_t h = 0; h < shape->index_heads; h++) {
            float dot = head_dot(&x, h, row);
            lane[h % 16] = fmaf(weight[h], dot > 0 ? dot : 0, lane[h % 16]);
        }
        score[i] = vec_tree(lane);
    }
}
