/* SPDX-License-Identifier: MIT */
/* What the stored codes mean: e4m3, e2m1, ue8m0 and BF16 as float32. */
#pragma once

#include <stdint.h>
#include <string.h>

extern const float mat_e4m3[256]; /* 0x7f and 0xff are NaN */
extern const float mat_e2m1[16];

static inline float mat_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline uint32_t mat_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float mat_bf16(uint16_t code)
{
    return mat_from_bits((uint32_t)code << 16);
}

/* To nearest, ties to even; a NaN stays one. */
static inline uint16_t mat_to_bf16(float x)
{
    uint32_t u = mat_bits(x);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ue8m0: 2^(code - 127); 255 is NaN. */
static inline float mat_scale(uint8_t code)
{
    if (code == 0)
        return 0x1p-127f;
    return mat_from_bits(code == 255 ? 0x7fc00000 : (uint32_t)code << 23);
}
