/* SPDX-License-Identifier: MIT */
/* What the x86 kernels for index scores share; needs AVX2. */
#pragma once

#include <immintrin.h>

/* One block of a row as 2v + 12, 32 bytes in order. */
static inline __m256i block_integers(const uint8_t *packed)
{
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    __m128i v = _mm_loadu_si128((const void *)packed), low = _mm_and_si128(v, _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
    return _mm256_shuffle_epi8(table, _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high)));
}
