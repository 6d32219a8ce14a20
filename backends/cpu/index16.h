/* SPDX-License-Identifier: MIT */
/*
 * Index scores of the fast numerics: a SIMD lane is one head, 16 of them side by side. With row values and query values
 * doubled to integers (e2m1 is -6 .. 6 in halves), everything but the sum over heads is exact:
 *
 *   dot_h   = chain over blocks of 32 of fma((float)sum(2 row * 2 query), row scale / 4 * query scale, dot)
 *   lane_l  = chain over heads h = l, l + 16, ... of fma(weight_h, max(dot_h, 0), lane); score = the tree of vec.h
 *
 * A prepared query: int8 [dim / 4][H][4], then int32 [dim / 32][H] (-12 * sum of the block), then float [dim / 32][H]
 * (query scale / 4), H = heads rounded up to 16. Row values are used as 2v + 12, see rows16.h.
 */
#pragma once

#include "backends/cpu/cpu.h"

struct index16 {
    uint32_t heads, dim, blocks; /* heads padded to 16 */
    const int8_t *q;
    const int32_t *bias;
    const float *scale;
};

static inline struct index16 index16_of(const struct model_shape *s, const void *query)
{
    struct index16 x = {.heads = (s->index_heads + 15) & ~15u, .dim = s->index_dim, .blocks = s->index_dim / INDEX_BLOCK};
    x.q = query;
    x.bias = (const int32_t *)(const void *)(x.q + (size_t)x.dim * x.heads);
    x.scale = (const float *)(const void *)(x.bias + (size_t)x.blocks * x.heads);
    return x;
}

size_t index16_query_bytes(const struct model_shape *shape);
void index16_query(const struct model_shape *shape, const float *iq, void *out);
#define INDEX16_SCRATCH(s) ((((size_t)(s)->index_heads + 15) / 16 * 16) * 2 * sizeof(float) + (s)->index_dim)

void index16_scores_plain(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                          const uint8_t *row, size_t row_bytes, float *score, void *scratch);
void index16_scores_avx2(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                         const uint8_t *row, size_t row_bytes, float *score, void *scratch);
void index16_scores_avx512(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                           const uint8_t *row, size_t row_bytes, float *score, void *scratch);
