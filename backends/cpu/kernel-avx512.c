/* SPDX-License-Identifier: MIT */
/* Attention of the fast numerics with AVX-512. */
#include <immintrin.h>

#include "backends/cpu/attend.h"
#include "backends/cpu/fast.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"

/* 16 e4m3 codes times 2^-8, through fp16 (rows16.h). */
static inline __m512 e4m3(const uint8_t *p)
{
    __m256i v = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)), 8);
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(v, 1), _mm256_set1_epi16((short)0xbfff)));
}

static void unpack(const struct model_shape *s, const struct kv_layout *kv, const uint8_t *row, float *x)
{
    uint32_t r = s->rope_dim, n = s->head_dim - r, i = 0;
    const uint8_t *rope = row + row_rope_offset(s);

    if (kv->rope_f32) {
        row_unpack(s, kv, row, x);
        return;
    }
    for (; i < n; i += 16)
        _mm512_storeu_ps(x + i, _mm512_mul_ps(e4m3(row + i), _mm512_set1_ps(mat_scale(row[n + i / KV_BLOCK]) * 0x1p8f)));
    for (i = 0; i + 16 <= r; i += 16) {
        __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(rope + 2 * i)));
        _mm512_storeu_ps(x + n + i, _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)));
    }
    for (; i < r; i++) {
        uint16_t v;
        memcpy(&v, rope + 2 * i, sizeof(v));
        x[n + i] = mat_bf16(v);
    }
}

void attend_avx512(const struct cpu_attend *a, uint32_t n, const uint8_t *const *row, void *scratch)
{
    attend_rows(a, n, row, unpack, scratch);
}

void matmul_f32_avx512(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    (void)scratch;
    matmul_f32(m, first, end);
}
