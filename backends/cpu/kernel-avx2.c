/* SPDX-License-Identifier: MIT */
/* Attention of the fast numerics with AVX2. */
#include <immintrin.h>

#include "backends/cpu/attend.h"
#include "backends/cpu/fast.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"

static void unpack(const struct model_shape *s, const uint8_t *row, float *x)
{
    uint32_t r = s->rope_dim, n = s->head_dim - r, i = 0;
    const uint8_t *rope = row + row_rope_offset(s);

    for (; i < n; i += 8) { /* e4m3 through fp16 (rows16.h) */
        __m128i v = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)(row + i))), 8);
        v = _mm_and_si128(_mm_srai_epi16(v, 1), _mm_set1_epi16((short)0xbfff));
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_cvtph_ps(v), _mm256_set1_ps(mat_scale(row[n + i / KV_BLOCK]) * 0x1p8f)));
    }
    for (i = 0; i < r; i++) {
        uint16_t v;
        memcpy(&v, rope + 2 * i, sizeof(v));
        x[n + i] = mat_bf16(v);
    }
}

void attend_avx2(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch)
{
    float *key = scratch; /* [ATTEND_KEYS][c] */

    for (uint32_t i = 0; i < n; i++)
        if (a->kv->rope_f32)
            row_unpack(a->shape, a->kv, row[i], key + (size_t)i * a->shape->head_dim);
        else
            unpack(a->shape, row[i], key + (size_t)i * a->shape->head_dim);
    for (uint32_t head = 0; head < a->heads; head++)
        attend_head(a, head, n, key);
}

void matmul_f32_avx2(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_f32(m, first, end);
}
