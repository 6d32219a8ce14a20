/* SPDX-License-Identifier: MIT */
/* Index scores of the fast numerics with AVX2. Compare index16-plain.c. */
#include "backends/cpu/index16.h"

#include <immintrin.h>
#include <math.h>

#include "backends/cpu/mat.h"
#include "backends/cpu/vec.h"

/* One block of a row as 2v + 12, 32 bytes in order. */
static inline __m256i block_integers(const uint8_t *packed)
{
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    __m128i v = _mm_loadu_si128((const void *)packed), low = _mm_and_si128(v, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
    return _mm256_shuffle_epi8(table, _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high)));
}

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
