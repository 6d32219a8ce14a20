/* SPDX-License-Identifier: MIT */
/*
 * Layout "rows16" with SSE2, which every x86-64 has: whole groups of 16 rows, as many columns as fill the registers.
 * The rest, and other machines, are rows16-pack.c's plain loops; both do the same.
 */
#include "backends/cpu/rows16.h"

#include <emmintrin.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m128i load(const uint8_t *p)
{
    return _mm_loadu_si128((const void *)p);
}

INLINE void store(uint8_t *p, __m128i v)
{
    _mm_storeu_si128((void *)p, v);
}

/* One step of a transposition: register i and i + n/2 interleaved, in units of `bytes`, become 2i and 2i + 1. After as
 * many steps as n has bits, n rows of n units are n columns. */
INLINE void interleave(const uint32_t n, const int bytes, const __m128i *in, __m128i *out)
{
    UNROLL
    for (uint32_t i = 0; i < n / 2; i++) {
        __m128i a = in[i], b = in[i + n / 2];
        out[2 * i] = bytes == 1 ? _mm_unpacklo_epi8(a, b) : bytes == 2 ? _mm_unpacklo_epi16(a, b) : _mm_unpacklo_epi32(a, b);
        out[2 * i + 1] = bytes == 1   ? _mm_unpackhi_epi8(a, b)
                         : bytes == 2 ? _mm_unpackhi_epi16(a, b)
                                      : _mm_unpackhi_epi32(a, b);
    }
}

/* 16 rows of 16 bytes, row_bytes apart, to [16 columns][16] */
INLINE void block_bytes(const uint8_t *src, size_t row_bytes, uint8_t *dst)
{
    __m128i a[16], b[16];

    UNROLL
    for (uint32_t i = 0; i < 16; i++)
        a[i] = load(src + i * row_bytes);
    interleave(16, 1, a, b);
    interleave(16, 1, b, a);
    interleave(16, 1, a, b);
    interleave(16, 1, b, a);
    UNROLL
    for (uint32_t i = 0; i < 16; i++)
        store(dst + i * 16, a[i]);
}

/* 8 rows of 8 values of 2 bytes to half of [8 columns][16] */
INLINE void block_halves(const uint8_t *src, size_t row_bytes, uint8_t *dst)
{
    __m128i a[8], b[8];

    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        a[i] = load(src + i * row_bytes);
    interleave(8, 2, a, b);
    interleave(8, 2, b, a);
    interleave(8, 2, a, b);
    UNROLL
    for (uint32_t i = 0; i < 8; i++)
        store(dst + i * 32, b[i]);
}

/* 32 stored columns, 4 words of 8, low nibble first: in each word byte b shall hold columns b and b + 4. */
INLINE __m128i regroup(__m128i v)
{
    const __m128i low4 = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(v, low4), odd = _mm_and_si128(_mm_srli_epi16(v, 4), low4);
    __m128 a = _mm_castsi128_ps(_mm_unpacklo_epi8(even, odd)); /* words 0 and 1: columns 0-3, 4-7, 0-3, 4-7, a byte each */
    __m128 b = _mm_castsi128_ps(_mm_unpackhi_epi8(even, odd)); /* words 2 and 3 */
    __m128i low = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)));
    __m128i high = _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
    return _mm_or_si128(low, _mm_slli_epi16(high, 4));
}

/* 4 rows of 32 columns to a quarter of [4 words][16] */
INLINE void block_fp4(const uint8_t *src, size_t row_bytes, uint8_t *dst)
{
    __m128i a[4], b[4];

    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        a[i] = regroup(load(src + i * row_bytes));
    interleave(4, 4, a, b);
    interleave(4, 4, b, a);
    UNROLL
    for (uint32_t i = 0; i < 4; i++)
        store(dst + i * 64, a[i]);
}

uint32_t rows16_pack_sse2(enum weight_type type, uint32_t cols, const void *from, void *to)
{
    const uint8_t *src = from;
    uint8_t *dst = to;
    uint32_t k = 0;

    if (type == WEIGHT_FP8)
        for (; k + 16 <= cols; k += 16)
            block_bytes(src + k, cols, dst + (size_t)k * ROWS16);
    else if (type == WEIGHT_BF16)
        for (; k + 8 <= cols; k += 8)
            for (uint32_t row = 0; row < ROWS16; row += 8)
                block_halves(src + ((size_t)row * cols + k) * 2, (size_t)cols * 2, dst + ((size_t)k * ROWS16 + row) * 2);
    else if (type == WEIGHT_FP4)
        for (; k + 32 <= cols; k += 32)
            for (uint32_t row = 0; row < ROWS16; row += 4)
                block_fp4(src + ((size_t)row * cols + k) / 2, cols / 2, dst + (size_t)k * ROWS16 / 2 + row * 4);
    return k;
}
