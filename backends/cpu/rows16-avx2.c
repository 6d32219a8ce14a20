/* SPDX-License-Identifier: MIT */
/* Products of layout "rows16" with AVX2, FMA and F16C: a group is two vectors of 8 rows. Compare rows16-plain.c. */
#include "backends/cpu/rows16.h"

#include <immintrin.h>
#include <string.h>

#define TILE 4u    /* tokens: 4 x 2 accumulators of the 16 registers */
#define AHEAD 1024 /* bytes of prefetch distance */
#define INLINE static inline __attribute__((always_inline))

struct pair {
    __m256 v[2]; /* rows 0-7 and 8-15 of a group */
};

/* One column of a group as floats; FP8 times 2^-8, by way of fp16. */
INLINE struct pair column(const uint8_t *d, const enum weight_type type, uint32_t k)
{
    struct pair r;

    if (type == WEIGHT_FP8) {
        __m256i v = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(d + (size_t)k * ROWS16))), 8);
        v = _mm256_and_si256(_mm256_srai_epi16(v, 1), _mm256_set1_epi16((short)0xbfff));
        r.v[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
        r.v[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
        return r;
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
        const void *at = d + ((size_t)k * ROWS16 + (size_t)i * 8) * 2;
        r.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16));
    }
    return r;
}

/* nt tokens of one group. out: [nt][16] */
INLINE void group_float(const struct weight *w, const enum weight_type type, uint32_t group, const uint32_t nt,
                        const struct rows16_act *a, float *out)
{
    const uint8_t *d = rows16_data(w, group), *s = type == WEIGHT_FP8 ? rows16_fp8_scales(w, group) : NULL;
    const uint32_t block = type == WEIGHT_FP8 ? FP8_BLOCK : UINT32_MAX;
    struct pair y[TILE], p[TILE];

    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        y[t].v[0] = y[t].v[1] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < w->cols;) {
        uint32_t k0 = k, end = block < w->cols - k ? k + block : w->cols;
        UNROLL
        for (uint32_t t = 0; t < nt; t++)
            p[t].v[0] = p[t].v[1] = _mm256_setzero_ps();
        for (; k < end; k++) {
            struct pair c = column(d, type, k);
            _mm_prefetch((const char *)d + (size_t)k * ROWS16 * (type == WEIGHT_FP8 ? 1 : 2) + AHEAD,
                         _MM_HINT_T0);
            UNROLL
            for (uint32_t t = 0; t < nt; t++) {
                __m256 v = _mm256_set1_ps(a[t].x[k]);
                p[t].v[0] = _mm256_fmadd_ps(c.v[0], v, p[t].v[0]);
                p[t].v[1] = _mm256_fmadd_ps(c.v[1], v, p[t].v[1]);
            }
        }
        UNROLL
        for (uint32_t t = 0; t < nt; t++)
            UNROLL
            for (int i = 0; i < 2; i++)
                y[t].v[i] = s ? _mm256_fmadd_ps(p[t].v[i], _mm256_set1_ps(rows16_fp8_scale(s[k0 / FP8_BLOCK])), y[t].v[i])
                              : p[t].v[i];
    }
    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        UNROLL
        for (uint32_t i = 0; i < 2; i++)
            _mm256_storeu_ps(out + t * ROWS16 + i * 8, y[t].v[i]);
}

INLINE __m256i fp4_integers(__m256i nibbles)
{
    const __m256i table = _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0, 12, 13, 14, 15, 16, 18,
                                           20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi8(15)));
}

/* 24 * 127 * 2 fits 16 bits, so the saturating product is exact. */
INLINE __m256i dot4(__m256i sum, __m256i w, int32_t q)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, _mm256_set1_epi32(q)), _mm256_set1_epi16(1)));
}

INLINE void group_fp4(const struct weight *w, uint32_t group, const uint32_t nt, const struct rows16_act *a, float *out)
{
    const uint8_t *d = rows16_data(w, group), *s = rows16_fp4_scales(w, group);
    struct pair y[TILE];

    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        y[t].v[0] = y[t].v[1] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < w->cols / INDEX_BLOCK; b++)
        UNROLL
        for (uint32_t i = 0; i < 2; i++) {
            __m256i sum[TILE];
            __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(
                _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(s + b * ROWS16 + i * 8))), 23));
            UNROLL
            for (uint32_t t = 0; t < nt; t++)
                sum[t] = _mm256_set1_epi32(a[t].q_bias[b]);
            UNROLL
            for (uint32_t j = 0; j < 4; j++) {
                const uint8_t *at = d + (size_t)b * 256 + j * 64 + i * 32;
                __m256i v = _mm256_loadu_si256((const void *)at);
                __m256i low = fp4_integers(v), high = fp4_integers(_mm256_srli_epi16(v, 4));
                _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
                UNROLL
                for (uint32_t t = 0; t < nt; t++) {
                    int32_t q[2];
                    __builtin_memcpy(q, a[t].q + b * INDEX_BLOCK + j * 8, sizeof(q));
                    sum[t] = dot4(dot4(sum[t], low, q[0]), high, q[1]);
                }
            }
            UNROLL
            for (uint32_t t = 0; t < nt; t++)
                y[t].v[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), _mm256_mul_ps(scale, _mm256_set1_ps(a[t].q_scale[b])),
                                            y[t].v[i]);
        }
    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        UNROLL
        for (uint32_t i = 0; i < 2; i++)
            _mm256_storeu_ps(out + t * ROWS16 + i * 8, y[t].v[i]);
}

/* Constant nt and type, so that accumulators stay in registers. */
INLINE void group_n(const struct weight *w, uint32_t group, const uint32_t nt, const struct rows16_act *a, float *out)
{
    if (w->type == WEIGHT_FP8)
        group_float(w, WEIGHT_FP8, group, nt, a, out);
    else if (w->type == WEIGHT_BF16)
        group_float(w, WEIGHT_BF16, group, nt, a, out);
    else
        group_fp4(w, group, nt, a, out);
}

void rows16_matmul_avx2(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    (void)scratch;
    for (uint32_t i = 0, nt; i < m->n; i += nt) {
        struct rows16_act a[TILE];
        nt = m->n - i >= TILE ? TILE : 1;
        for (uint32_t t = 0; t < nt; t++)
            a[t] = rows16_act(m, i + t);
        for (uint32_t row = first; row < end; row += ROWS16) {
            float out[TILE * ROWS16];
            if (nt == TILE)
                group_n(m->w, row / ROWS16, TILE, a, out);
            else
                group_n(m->w, row / ROWS16, 1, a, out);
            for (uint32_t t = 0; t < nt; t++)
                memcpy(rows16_out(m, i + t, row), out + t * ROWS16, MIN(ROWS16, end - row) * sizeof(float));
        }
    }
}

void rows16_activation_avx2(enum weight_type type, uint32_t cols, const float *x, void *to)
{
    int8_t *q = to;
    float *q_scale = (float *)(void *)(q + cols);
    int32_t *q_bias = (int32_t *)(void *)(q_scale + cols / INDEX_BLOCK);

    (void)type;
    for (uint32_t b = 0; b < cols / INDEX_BLOCK; b++) {
        const __m256 limit = _mm256_set1_ps(127), minus = _mm256_set1_ps(-127), sign = _mm256_set1_ps(-0.0f);
        __m256 m = _mm256_setzero_ps();
        __m256i sum = _mm256_setzero_si256();
        float lane[8];
        for (uint32_t i = 0; i < 4; i++) /* max(NaN, m) is m, as in the plain code */
            m = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + b * INDEX_BLOCK + i * 8)), m);
        _mm256_storeu_ps(lane, m);
        float amax = 0;
        for (uint32_t i = 0; i < 8; i++)
            amax = lane[i] > amax ? lane[i] : amax;
        __m256 inverse = _mm256_set1_ps(amax >= 0x1p-100f ? 127 / amax : 0);
        for (uint32_t i = 0; i < 4; i++) {
            __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + b * INDEX_BLOCK + i * 8), inverse);
            __m256 keep = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
            __m256i n = _mm256_cvtps_epi32(_mm256_and_ps(keep, _mm256_min_ps(_mm256_max_ps(v, minus), limit)));
            int32_t out[8];
            _mm256_storeu_si256((void *)out, n);
            sum = _mm256_add_epi32(sum, n);
            for (uint32_t k = 0; k < 8; k++)
                q[b * INDEX_BLOCK + i * 8 + k] = (int8_t)out[k];
        }
        int32_t sums[8], total = 0;
        _mm256_storeu_si256((void *)sums, sum);
        for (uint32_t i = 0; i < 8; i++)
            total += sums[i];
        q_scale[b] = amax * (1.0f / 254);
        q_bias[b] = -12 * total;
    }
}
