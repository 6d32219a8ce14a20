/* SPDX-License-Identifier: MIT */
/* Attention of the fast numerics with AVX2. */
#include <immintrin.h>

#include "backends/cpu/attend.h"
#include "backends/cpu/fast.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"

static void unpack(const struct model_shape *s, const struct kv_layout *kv, const uint8_t *row, float *x)
{
    uint32_t r = s->rope_dim, n = s->head_dim - r, i = 0;
    const uint8_t *rope = row + row_rope_offset(s);

    if (kv->rope_f32) {
        row_unpack(s, kv, row, x);
        return;
    }
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
    attend_rows(a, n, row, unpack, scratch);
}

void matmul_f32_avx2(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_f32(m, first, end);
}
