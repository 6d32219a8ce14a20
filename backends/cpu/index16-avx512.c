/* SPDX-License-Identifier: MIT */
/* Index scores of the fast numerics with AVX-512 VNNI. Compare index16-plain.c. */
#include "backends/cpu/index16.h"

#include <immintrin.h>

#include "backends/cpu/index16-x86.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/vec.h"

/* dot [H] of all heads with one row. */
static inline void row_dots(const struct index16 *x, const uint8_t *row, float *dot)
{
    for (uint32_t h = 0; h < x->heads; h += 16)
        _mm512_store_ps(dot + h, _mm512_setzero_ps());
    for (uint32_t b = 0; b < x->blocks; b++) {
        int32_t word[8];
        _mm256_storeu_si256((void *)word, block_integers(row + b * (INDEX_BLOCK / 2)));
        __m512 row_scale = _mm512_set1_ps(mat_scale(row[x->dim / 2 + b]));
        for (uint32_t h = 0; h < x->heads; h += 16) {
            const int8_t *q = x->q + ((size_t)b * 8 * x->heads + h) * 4;
            __m512i even = _mm512_loadu_si512(x->bias + b * x->heads + h), odd = _mm512_setzero_si512();
            for (uint32_t j = 0; j < 8; j += 2) {
                even = _mm512_dpbusd_epi32(even, _mm512_set1_epi32(word[j]), _mm512_loadu_si512(q + (size_t)j * x->heads * 4));
                odd = _mm512_dpbusd_epi32(odd, _mm512_set1_epi32(word[j + 1]),
                                          _mm512_loadu_si512(q + (size_t)(j + 1) * x->heads * 4));
            }
            __m512 scale = _mm512_mul_ps(row_scale, _mm512_loadu_ps(x->scale + b * x->heads + h));
            _mm512_store_ps(dot + h, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scale,
                                                     _mm512_load_ps(dot + h)));
        }
    }
}

void index16_scores_avx512(const struct model_shape *shape, const void *iq, const float *weight, uint32_t n,
                           const uint8_t *row, size_t row_bytes, float *score, void *scratch)
{
    struct index16 x = index16_of(shape, iq);
    float *dot = scratch; /* [H] */

    for (uint32_t i = 0; i < n; i++, row += row_bytes) {
        __m512 sum = _mm512_setzero_ps();
        float lane[16];
        row_dots(&x, row, dot);
        for (uint32_t h = 0; h < shape->index_heads; h += 16) {
            uint32_t left = shape->index_heads - h;
            __mmask16 k = (__mmask16)(left >= 16 ? 0xffff : (1u << left) - 1);
            __m512 positive = _mm512_max_ps(_mm512_load_ps(dot + h), _mm512_setzero_ps());
            sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(k, weight + h), positive, sum, k);
        }
        _mm512_storeu_ps(lane, sum);
        score[i] = vec_tree(lane);
    }
}
