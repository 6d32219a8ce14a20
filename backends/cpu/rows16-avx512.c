/* SPDX-License-Identifier: MIT */
/* Products of layout "rows16" with AVX-512 (F, BW, VL, VNNI): 16 lanes are 16 rows. Compare rows16-plain.c. */
#include "backends/cpu/rows16.h"

#include <immintrin.h>
#include <string.h>

#define TILE 12u          /* tokens: 2 groups x 12 accumulators leave registers for weights */
#define AHEAD 1024        /* bytes of prefetch distance per stream */
#define INLINE static inline __attribute__((always_inline))

/* Two columns of 16 e4m3 codes, times 2^-8: by way of fp16, which holds every e4m3 value, subnormals too. */
INLINE void fp8_columns(const uint8_t *p, __m512 *a, __m512 *b)
{
    __m512i v = _mm512_slli_epi16(_mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)p)), 8);
    v = _mm512_and_si512(_mm512_srai_epi16(v, 1), _mm512_set1_epi16((short)0xbfff));
    *a = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
    *b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1));
}

INLINE __m512 fp8_column(const uint8_t *p)
{
    __m256i v = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)), 8);
    v = _mm256_and_si256(_mm256_srai_epi16(v, 1), _mm256_set1_epi16((short)0xbfff));
    return _mm512_cvtph_ps(v);
}

INLINE __m512 bf16_column(const uint8_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

INLINE __m512 fp4_scale(const uint8_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)), 23));
}

/* The integers 2w + 12 of 16 rows x 4 columns, from the low or high nibbles. */
INLINE __m512i fp4_integers(__m512i nibbles)
{
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)));
}

/* ---------------------------------------------------------------- one token */

INLINE void one_fp8(const struct weight *w, uint32_t first, const uint32_t n, const float *x, float *out)
{
    const uint8_t *d[ROWS16_STREAMS], *s[ROWS16_STREAMS];
    __m512 y[ROWS16_STREAMS], p[ROWS16_STREAMS];

    UNROLL
    for (uint32_t i = 0; i < n; i++) {
        d[i] = rows16_data(w, first + i);
        s[i] = rows16_fp8_scales(w, first + i);
        y[i] = _mm512_setzero_ps();
    }
    for (uint32_t k0 = 0; k0 < w->cols; k0 += FP8_BLOCK) {
        uint32_t k = k0, end = MIN(k0 + FP8_BLOCK, w->cols);
        UNROLL
        for (uint32_t i = 0; i < n; i++)
            p[i] = _mm512_setzero_ps();
        for (; k + 4 <= end; k += 4)
            UNROLL
            for (uint32_t i = 0; i < n; i++) {
                __m512 a, b;
                const uint8_t *at = d[i] + (size_t)k * ROWS16;
                _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
                fp8_columns(at, &a, &b);
                p[i] = _mm512_fmadd_ps(a, _mm512_set1_ps(x[k]), p[i]);
                p[i] = _mm512_fmadd_ps(b, _mm512_set1_ps(x[k + 1]), p[i]);
                fp8_columns(at + 2 * ROWS16, &a, &b);
                p[i] = _mm512_fmadd_ps(a, _mm512_set1_ps(x[k + 2]), p[i]);
                p[i] = _mm512_fmadd_ps(b, _mm512_set1_ps(x[k + 3]), p[i]);
            }
        for (; k < end; k++)
            UNROLL
            for (uint32_t i = 0; i < n; i++)
                p[i] = _mm512_fmadd_ps(fp8_column(d[i] + (size_t)k * ROWS16), _mm512_set1_ps(x[k]), p[i]);
        UNROLL
        for (uint32_t i = 0; i < n; i++)
            y[i] = _mm512_fmadd_ps(p[i], _mm512_set1_ps(rows16_fp8_scale(s[i][k0 / FP8_BLOCK])), y[i]);
    }
    UNROLL
    for (uint32_t i = 0; i < n; i++)
        _mm512_storeu_ps(out + i * ROWS16, y[i]);
}

INLINE void one_bf16(const struct weight *w, uint32_t first, const uint32_t n, const float *x, float *out)
{
    const uint8_t *d[ROWS16_STREAMS];
    __m512 y[ROWS16_STREAMS];

    UNROLL
    for (uint32_t i = 0; i < n; i++) {
        d[i] = rows16_data(w, first + i);
        y[i] = _mm512_setzero_ps();
    }
    for (uint32_t k = 0; k < w->cols; k++)
        UNROLL
        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *at = d[i] + (size_t)k * ROWS16 * 2;
            _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
            y[i] = _mm512_fmadd_ps(bf16_column(at), _mm512_set1_ps(x[k]), y[i]);
        }
    UNROLL
    for (uint32_t i = 0; i < n; i++)
        _mm512_storeu_ps(out + i * ROWS16, y[i]);
}

INLINE void one_fp4(const struct weight *w, uint32_t first, const uint32_t n, const struct rows16_act *a, float *out)
{
    const uint8_t *d[ROWS16_STREAMS], *s[ROWS16_STREAMS];
    __m512 y[ROWS16_STREAMS];

    UNROLL
    for (uint32_t i = 0; i < n; i++) {
        d[i] = rows16_data(w, first + i);
        s[i] = rows16_fp4_scales(w, first + i);
        y[i] = _mm512_setzero_ps();
    }
    for (uint32_t b = 0; b < w->cols / INDEX_BLOCK; b++) {
        const int32_t *q = (const void *)(a->q + b * INDEX_BLOCK);
        __m512 a_scale = _mm512_set1_ps(a->q_scale[b]);
        UNROLL
        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *at = d[i] + (size_t)b * 256;
            __m512i low = _mm512_set1_epi32(a->q_bias[b]), high = _mm512_setzero_si512();
            UNROLL
            for (uint32_t j = 0; j < 4; j++) {
                __m512i v = _mm512_loadu_si512(at + j * 64);
                _mm_prefetch((const char *)at + j * 64 + AHEAD, _MM_HINT_T0);
                low = _mm512_dpbusd_epi32(low, fp4_integers(v), _mm512_set1_epi32(q[j * 2]));
                high = _mm512_dpbusd_epi32(high, fp4_integers(_mm512_srli_epi16(v, 4)), _mm512_set1_epi32(q[j * 2 + 1]));
            }
            __m512 scale = _mm512_mul_ps(fp4_scale(s[i] + b * ROWS16), a_scale);
            y[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(low, high)), scale, y[i]);
        }
    }
    UNROLL
    for (uint32_t i = 0; i < n; i++)
        _mm512_storeu_ps(out + i * ROWS16, y[i]);
}

/* Constant n and type, so that the accumulators stay in registers. */
INLINE void one_n(const struct weight *w, uint32_t first, const uint32_t n, const struct rows16_act *a, float *out)
{
    if (w->type == WEIGHT_FP8)
        one_fp8(w, first, n, a->x, out);
    else if (w->type == WEIGHT_FP4)
        one_fp4(w, first, n, a, out);
    else
        one_bf16(w, first, n, a->x, out);
}

static void matmul_one(const struct cpu_matmul *m, uint32_t first, uint32_t end)
{
    struct rows16_act a = rows16_act(m, 0);

    for (uint32_t row = first; row < end; row += ROWS16 * ROWS16_STREAMS) {
        uint32_t rows = MIN(end - row, ROWS16 * ROWS16_STREAMS);
        float out[ROWS16 * ROWS16_STREAMS];
        switch ((rows + ROWS16 - 1) / ROWS16) {
        case 4:
            one_n(m->w, row / ROWS16, 4, &a, out);
            break;
        case 3:
            one_n(m->w, row / ROWS16, 3, &a, out);
            break;
        case 2:
            one_n(m->w, row / ROWS16, 2, &a, out);
            break;
        default:
            one_n(m->w, row / ROWS16, 1, &a, out);
            break;
        }
        memcpy(rows16_out(m, 0, row), out, rows * sizeof(float));
    }
}

/* ---------------------------------------------------------------- two to four tokens */

/* A step of a few sessions: too few products per weight to pay for decoding into memory first. */
#define FEW 4u
#define FEW_SUMS 8u /* tokens x groups: as many sums as hide the latency of an FMA */

/* out: [nt][ng][16] */
INLINE void few_float(const struct weight *w, const enum weight_type type, const uint32_t *group, const uint32_t ng,
                      const uint32_t nt, const struct rows16_act *a, float *out)
{
    const uint32_t block = type == WEIGHT_FP8 ? FP8_BLOCK : UINT32_MAX;
    const size_t bytes = type == WEIGHT_FP8 ? 1 : 2;
    __m512 y[FEW_SUMS], p[FEW_SUMS]; /* [nt][ng] */
    const uint8_t *d[FEW];

    UNROLL
    for (uint32_t g = 0; g < ng; g++)
        d[g] = rows16_data(w, group[g]);
    UNROLL
    for (uint32_t i = 0; i < nt * ng; i++)
        y[i] = _mm512_setzero_ps();
    for (uint32_t k = 0, k0, end; k < w->cols;) {
        k0 = k;
        end = block < w->cols - k ? k + block : w->cols;
        UNROLL
        for (uint32_t i = 0; i < nt * ng; i++)
            p[i] = _mm512_setzero_ps();
        for (; k < end; k += 2) {
            UNROLL
            for (uint32_t g = 0; g < ng; g++) {
                const uint8_t *at = d[g] + (size_t)k * ROWS16 * bytes;
                const bool second = k + 1 < end;
                __m512 c0, c1 = _mm512_setzero_ps();
                if (type == WEIGHT_FP8 && second) {
                    fp8_columns(at, &c0, &c1);
                } else {
                    c0 = type == WEIGHT_FP8 ? fp8_column(at) : bf16_column(at);
                    if (second)
                        c1 = bf16_column(at + ROWS16 * 2);
                }
                _mm_prefetch((const char *)at + AHEAD, _MM_HINT_T0);
                UNROLL
                for (uint32_t t = 0; t < nt; t++) {
                    p[t * ng + g] = _mm512_fmadd_ps(c0, _mm512_set1_ps(a[t].x[k]), p[t * ng + g]);
                    if (second)
                        p[t * ng + g] = _mm512_fmadd_ps(c1, _mm512_set1_ps(a[t].x[k + 1]), p[t * ng + g]);
                }
            }
        }
        k = end;
        UNROLL
        for (uint32_t i = 0; i < nt * ng; i++) {
            if (type != WEIGHT_FP8) {
                y[i] = p[i];
                continue;
            }
            float scale = rows16_fp8_scale(rows16_fp8_scales(w, group[i % ng])[k0 / FP8_BLOCK]);
            y[i] = _mm512_fmadd_ps(p[i], _mm512_set1_ps(scale), y[i]);
        }
    }
    UNROLL
    for (uint32_t i = 0; i < nt * ng; i++)
        _mm512_storeu_ps(out + i * ROWS16, y[i]);
}

INLINE void few_n(const struct weight *w, const uint32_t *group, const uint32_t ng, const uint32_t nt,
                  const struct rows16_act *a, float *out)
{
    if (w->type == WEIGHT_FP8)
        few_float(w, WEIGHT_FP8, group, ng, nt, a, out);
    else
        few_float(w, WEIGHT_BF16, group, ng, nt, a, out);
}

/* BF16 and FP8, 2 to FEW tokens */
static void matmul_few(const struct cpu_matmul *m, uint32_t first, uint32_t end)
{
    const uint32_t ng = m->n == 2 ? 4 : 2;
    struct rows16_act a[FEW];

    for (uint32_t t = 0; t < m->n; t++)
        a[t] = rows16_act(m, t);
    for (uint32_t row = first; row < end; row += ng * ROWS16) {
        uint32_t group[FEW];
        float out[FEW_SUMS * ROWS16];
        for (uint32_t g = 0; g < ng; g++) /* past the end the last one stands in */
            group[g] = MIN(row / ROWS16 + g, (end - 1) / ROWS16);
        if (m->n == 2)
            few_n(m->w, group, 4, 2, a, out);
        else if (m->n == 3)
            few_n(m->w, group, 2, 3, a, out);
        else
            few_n(m->w, group, 2, 4, a, out);
        for (uint32_t t = 0; t < m->n; t++)
            memcpy(rows16_out(m, t, row), out + t * ng * ROWS16, MIN(ng * ROWS16, end - row) * sizeof(float));
    }
}

/* ---------------------------------------------------------------- many tokens */

/*
 * Blocks of TOKENS tokens and ROWS rows. Weights are decoded once per block of columns into the second cache, then each
 * tile of tokens meets each pair of groups with all its sums in registers. Between column blocks the sums are in y.
 */
#define TOKENS (TILE * 8u)
#define ROWS 128u
#define PAIRS (ROWS / (2 * ROWS16))

struct work {
    _Alignas(64) float decoded[PAIRS][FP8_BLOCK * 2 * ROWS16]; /* per pair [128 columns][2][16] */
    _Alignas(64) float x[TILE * FP8_BLOCK];                    /* of one tile: [12][128] */
    _Alignas(64) float y[PAIRS][TOKENS * 2 * ROWS16];          /* per pair [96][2][16] */
};
_Static_assert(sizeof(struct work) <= ROWS16_SCRATCH_BYTES, "scratch");

/* n columns from k0 of two groups as floats: decoded [n][2][16]. */
static void decode(const struct weight *w, const uint32_t group[2], uint32_t k0, uint32_t n, float *decoded)
{
    for (uint32_t g = 0; g < 2; g++) {
        const uint8_t *d = rows16_data(w, group[g]);
        float *out = decoded + g * ROWS16;
        if (w->type == WEIGHT_FP8)
            for (uint32_t k = 0; k < n; k++)
                _mm512_store_ps(out + k * 2 * ROWS16, fp8_column(d + (size_t)(k0 + k) * ROWS16));
        else
            for (uint32_t k = 0; k < n; k++)
                _mm512_store_ps(out + k * 2 * ROWS16, bf16_column(d + (size_t)(k0 + k) * ROWS16 * 2));
    }
}

/* What memcpy does with this little data costs more than the copy. */
INLINE void copy_floats(float *to, const float *from, uint32_t n)
{
    uint32_t i = 0;

    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_loadu_ps(from + i));
    __mmask16 rest = (__mmask16)((1u << (n - i)) - 1);
    _mm512_mask_storeu_ps(to + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
}

/* Adds n columns of two groups to y [nt][2][16]: y's chain goes on, or (scaled) a chain of its own is added by scale. */
INLINE void tile_n(const uint32_t nt, const bool scaled, const float *decoded, uint32_t n, const float *x, const float scale[2],
                   float *y)
{
    __m512 p[TILE][2];

    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        UNROLL
        for (uint32_t g = 0; g < 2; g++)
            p[t][g] = scaled ? _mm512_setzero_ps() : _mm512_load_ps(y + (t * 2 + g) * ROWS16);
    for (uint32_t k = 0; k < n; k++) {
        __m512 w0 = _mm512_load_ps(decoded + k * 2 * ROWS16), w1 = _mm512_load_ps(decoded + (k * 2 + 1) * ROWS16);
        UNROLL
        for (uint32_t t = 0; t < nt; t++) {
            __m512 v = _mm512_set1_ps(x[t * FP8_BLOCK + k]);
            p[t][0] = _mm512_fmadd_ps(w0, v, p[t][0]);
            p[t][1] = _mm512_fmadd_ps(w1, v, p[t][1]);
        }
    }
    UNROLL
    for (uint32_t t = 0; t < nt; t++)
        UNROLL
        for (uint32_t g = 0; g < 2; g++) {
            float *at = y + (t * 2 + g) * ROWS16;
            _mm512_store_ps(at, scaled ? _mm512_fmadd_ps(p[t][g], _mm512_set1_ps(scale[g]), _mm512_load_ps(at)) : p[t][g]);
        }
}

#define EVERY_TILE(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)

static void tile(uint32_t nt, bool scaled, const float *decoded, uint32_t n, const float *x, const float scale[2], float *y)
{
    switch (nt) {
#define CASE(i)                                          \
    case i:                                              \
        if (scaled)                                      \
            tile_n(i, true, decoded, n, x, scale, y);    \
        else                                             \
            tile_n(i, false, decoded, n, x, scale, y);   \
        return;
        EVERY_TILE(CASE)
#undef CASE
    }
}

/* The groups of a pair; without a second one the first stands in for it. */
static void pair_groups(uint32_t first, uint32_t end, uint32_t pair, uint32_t group[2])
{
    group[0] = first / ROWS16 + pair * 2;
    group[1] = MIN(group[0] + 1, (end - 1) / ROWS16);
}

static void block_float(const struct weight *w, uint32_t first, uint32_t end, const struct rows16_act *a, uint32_t tokens,
                        struct work *work)
{
    uint32_t pairs = (end - first + 2 * ROWS16 - 1) / (2 * ROWS16);

    for (uint32_t k0 = 0; k0 < w->cols; k0 += FP8_BLOCK) {
        uint32_t n = MIN((uint32_t)FP8_BLOCK, w->cols - k0), group[2];
        float scale[PAIRS][2];
        for (uint32_t p = 0; p < pairs; p++) {
            pair_groups(first, end, p, group);
            UNROLL
            for (uint32_t g = 0; g < 2; g++)
                scale[p][g] = w->type == WEIGHT_FP8 ? rows16_fp8_scale(rows16_fp8_scales(w, group[g])[k0 / FP8_BLOCK]) : 1;
            decode(w, group, k0, n, work->decoded[p]);
        }
        for (uint32_t t = 0; t < tokens; t += TILE) {
            uint32_t nt = MIN(TILE, tokens - t);
            /* a copy, because rows of x are often a multiple of 4096 bytes apart: they would share the cache's sets */
            for (uint32_t i = 0; i < nt; i++)
                copy_floats(work->x + i * FP8_BLOCK, a[t + i].x + k0, n);
            for (uint32_t p = 0; p < pairs; p++)
                tile(nt, w->type == WEIGHT_FP8, work->decoded[p], n, work->x, scale[p], work->y[p] + t * 2 * ROWS16);
        }
    }
}

/* FP4: the integers of one block of two groups, [8][2] vectors of 16 rows x 4 columns. */
static void decode_fp4(const struct weight *w, const uint32_t group[2], uint32_t b, __m512i *decoded)
{
    UNROLL
    for (uint32_t g = 0; g < 2; g++)
        UNROLL
        for (uint32_t j = 0; j < 4; j++) {
            __m512i v = _mm512_loadu_si512(rows16_data(w, group[g]) + (size_t)b * 256 + j * 64);
            decoded[j * 4 + g] = fp4_integers(v);
            decoded[j * 4 + 2 + g] = fp4_integers(_mm512_srli_epi16(v, 4));
        }
}

INLINE void tile_fp4_n(const uint32_t nt, const __m512i *decoded, uint32_t b, const struct rows16_act *a, const __m512 scale[2],
                       float *y)
{
    __m512i p[TILE][2];
    _Alignas(32) int32_t q[TILE][8]; /* side by side, so that one register reaches all of them */

    UNROLL
    for (uint32_t t = 0; t < nt; t++) {
        p[t][0] = p[t][1] = _mm512_set1_epi32(a[t].q_bias[b]);
        _mm256_store_si256((void *)q[t], _mm256_loadu_si256((const void *)(a[t].q + b * INDEX_BLOCK)));
    }
    for (uint32_t j = 0; j < 8; j++)
        UNROLL
        for (uint32_t t = 0; t < nt; t++) {
            __m512i v = _mm512_set1_epi32(q[t][j]);
            p[t][0] = _mm512_dpbusd_epi32(p[t][0], decoded[j * 2], v);
            p[t][1] = _mm512_dpbusd_epi32(p[t][1], decoded[j * 2 + 1], v);
        }
    UNROLL
    for (uint32_t t = 0; t < nt; t++) {
        __m512 a_scale = _mm512_set1_ps(a[t].q_scale[b]);
        UNROLL
        for (uint32_t g = 0; g < 2; g++) {
            float *at = y + (t * 2 + g) * ROWS16;
            _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(p[t][g]), _mm512_mul_ps(scale[g], a_scale),
                                                _mm512_load_ps(at)));
        }
    }
}

static void tile_fp4(uint32_t nt, const __m512i *decoded, uint32_t b, const struct rows16_act *a, const __m512 scale[2], float *y)
{
    switch (nt) {
#define CASE(i)                                    \
    case i:                                        \
        tile_fp4_n(i, decoded, b, a, scale, y);    \
        return;
        EVERY_TILE(CASE)
#undef CASE
    }
}

static void block_fp4(const struct weight *w, uint32_t first, uint32_t end, const struct rows16_act *a, uint32_t tokens,
                      struct work *work)
{
    for (uint32_t p = 0; p < (end - first + 2 * ROWS16 - 1) / (2 * ROWS16); p++) {
        uint32_t group[2];
        pair_groups(first, end, p, group);
        for (uint32_t b = 0; b < w->cols / INDEX_BLOCK; b++) {
            __m512i decoded[16];
            __m512 scale[2];
            UNROLL
            for (uint32_t g = 0; g < 2; g++)
                scale[g] = fp4_scale(rows16_fp4_scales(w, group[g]) + b * ROWS16);
            decode_fp4(w, group, b, decoded);
            for (uint32_t t = 0; t < tokens; t += TILE)
                tile_fp4(MIN(TILE, tokens - t), decoded, b, a + t, scale, work->y[p] + t * 2 * ROWS16);
        }
    }
}

static void store(const struct cpu_matmul *m, uint32_t t0, uint32_t tokens, uint32_t first, uint32_t end, const struct work *work)
{
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t row = first; row < end; row += 2 * ROWS16)
            memcpy(rows16_out(m, t0 + t, row), work->y[(row - first) / (2 * ROWS16)] + t * 2 * ROWS16,
                   MIN(2 * ROWS16, end - row) * sizeof(float));
}

static void matmul_many(const struct cpu_matmul *m, uint32_t first, uint32_t end, struct work *work)
{
    struct rows16_act a[TOKENS];

    for (uint32_t t0 = 0; t0 < m->n; t0 += TOKENS) {
        uint32_t tokens = MIN(TOKENS, m->n - t0);
        for (uint32_t t = 0; t < tokens; t++)
            a[t] = rows16_act(m, t0 + t);
        for (uint32_t row = first; row < end; row += ROWS) {
            uint32_t row_end = MIN(row + ROWS, end);
            for (uint32_t p = 0; p < PAIRS; p++)
                memset(work->y[p], 0, tokens * 2 * ROWS16 * sizeof(float));
            if (m->w->type == WEIGHT_FP4)
                block_fp4(m->w, row, row_end, a, tokens, work);
            else
                block_float(m->w, row, row_end, a, tokens, work);
            store(m, t0, tokens, row, row_end, work);
        }
    }
}

void rows16_matmul_avx512(const struct cpu_matmul *m, uint32_t first, uint32_t end, void *scratch)
{
    if (m->n == 1)
        matmul_one(m, first, end);
    else if (m->n <= FEW && m->w->type != WEIGHT_FP4)
        matmul_few(m, first, end);
    else
        matmul_many(m, first, end, scratch);
}

/* ---------------------------------------------------------------- activations */

void rows16_activation_avx512(enum weight_type type, uint32_t cols, const float *x, void *to)
{
    int8_t *q = to;
    float *q_scale = (float *)(void *)(q + cols);
    int32_t *q_bias = (int32_t *)(void *)(q_scale + cols / INDEX_BLOCK);

    (void)type;
    for (uint32_t b = 0; b < cols / INDEX_BLOCK; b++) {
        __m512 u = _mm512_loadu_ps(x + b * INDEX_BLOCK), v = _mm512_loadu_ps(x + b * INDEX_BLOCK + 16);
        /* max(NaN, 0) is 0: the second operand, as in the plain code */
        __m512 a = _mm512_max_ps(_mm512_abs_ps(u), _mm512_setzero_ps());
        float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v), a));
        __m512 inverse = _mm512_set1_ps(amax >= 0x1p-100f ? 127 / amax : 0);
        __m512 limit = _mm512_set1_ps(127), minus = _mm512_set1_ps(-127);
        u = _mm512_mul_ps(u, inverse);
        v = _mm512_mul_ps(v, inverse);
        __mmask16 ku = _mm512_cmp_ps_mask(u, u, _CMP_ORD_Q), kv = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
        __m512i i = _mm512_maskz_cvtps_epi32(ku, _mm512_min_ps(_mm512_max_ps(u, minus), limit));
        __m512i j = _mm512_maskz_cvtps_epi32(kv, _mm512_min_ps(_mm512_max_ps(v, minus), limit));
        _mm_storeu_si128((void *)(q + b * INDEX_BLOCK), _mm512_cvtepi32_epi8(i));
        _mm_storeu_si128((void *)(q + b * INDEX_BLOCK + 16), _mm512_cvtepi32_epi8(j));
        q_scale[b] = amax * (1.0f / 254);
        q_bias[b] = -12 * _mm512_reduce_add_epi32(_mm512_add_epi32(i, j));
    }
}
