/* SPDX-License-Identifier: MIT */
/* Index scores of the fast numerics with AVX2. Compare index16-plain.c. */
#include "backends/cpu/index16.h"

#include <immintrin.h>
#include <math.h>

#include "backends/cpu/index16-x86.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/vec.h"

static inline void row_dots(const struct index16 *x, const uint8_t *row, float *dot)
{
    for (uint32_t h = 0; h < x->heads; h += 8)
        _mm256_storeu_ps(dot + h, _mm256_setzero_ps());
    for (uint32_t b = 0; b < x->blocks; b++) {
        int32_t word[8];
        _mm256_storeu_si256((void *)word, block_integers(row + b * (INDEX_BLOCK / 2)));
        __m256 row_scale = _mm256_set1_ps(mat_scale(row[x->dim / 2 + b]));
        for (uint32_t h = 0; h < x->heads; h += 8) {
            const int8_t *q = x->q + ((size_t)b * 8 * x->heads + h) * 4;
            __m256i sum = _mm256_loadu_si256((const void *)(x->bias + b * x->heads + h));
            for (uint32_t j = 0; j < 8; j++) {
                __m256i v = _mm256_loadu_si256((const void *)(q + (size_t)j * x->heads * 4));
                /* 24 * 12 * 2 fits 16 bits */
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi32(word[j]), v),
                                                              _mm256_set1_epi16(1)));
            }
            __m256 scale = _mm256_mul_ps(row_scale, _mm256_loadu_ps(x->scale + b * x->heads + h));
            _mm256_storeu_ps(dot + h, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_loadu_ps(dot + h)));
        }
    }
}

void index16_scores_avx2(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                         const uint8_t *row, size_t row_bytes, float *score, void *scratch)
{
    struct index16 x = index16_of(shape, iq);
    float *dot = scratch; /* [H] */

    for (uint32_t i = 0; i < n; i++, row += row_bytes) {
        float lane[16] = {0};
        row_dots(&x, row, dot);
        for (uint32_t h = 0; h < shape->index_heads; h++)
            lane[h % 16] = fmaf(weight[h], dot[h] > 0 ? dot[h] : 0, lane[h % 16]);
        score[i] = vec_tree(lane);
    }
}
