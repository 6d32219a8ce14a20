/* SPDX-License-Identifier: MIT */
/* Tables of the small formats, written out by the compiler from their definition. */
#include "backends/cpu/mat.h"

#include <math.h>

/* sign, 4 bits exponent (bias 7), 3 bits mantissa; exponent 0 is denormal; all ones is NaN, there is no infinity. */
#define E4M3_ABS(c)                                                                                    \
    (((c)&0x7f) == 0x7f ? NAN                                                                          \
     : ((c) >> 3 & 15)  ? (float)(8 + ((c)&7)) * (float)(1u << ((c) >> 3 & 15)) * 0x1p-10f             \
                        : (float)((c)&7) * 0x1p-9f)
#define E4M3(c) ((c)&0x80 ? -E4M3_ABS(c) : E4M3_ABS(c))
#define E4M3_4(c) E4M3(c), E4M3((c) + 1), E4M3((c) + 2), E4M3((c) + 3)
#define E4M3_16(c) E4M3_4(c), E4M3_4((c) + 4), E4M3_4((c) + 8), E4M3_4((c) + 12)
#define E4M3_64(c) E4M3_16(c), E4M3_16((c) + 16), E4M3_16((c) + 32), E4M3_16((c) + 48)

const float mat_e4m3[256] = {E4M3_64(0), E4M3_64(64), E4M3_64(128), E4M3_64(192)};

const float mat_e2m1[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
