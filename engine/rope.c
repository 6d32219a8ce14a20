/* SPDX-License-Identifier: MIT */
/* See rope.h. */
#include "engine/rope.h"

#include <math.h>

#include "base/macros.h"

/* The (fractional) dimension that turns n times over the original length. */
static double turns_at(double n, uint32_t r, double base, double positions)
{
    return r * log(positions / (n * 2 * M_PI)) / (2 * log(base));
}

void rope_theta(float *theta, uint32_t rope_dim, double base, const struct yarn *yarn)
{
    const float r = (float)rope_dim;
    double low = 0, high = 0;

    if (yarn) {
        low = MAX(floor(turns_at(yarn->beta_fast, rope_dim, base, yarn->original_positions)), 0.0);
        high = MIN(ceil(turns_at(yarn->beta_slow, rope_dim, base, yarn->original_positions)), (double)rope_dim - 1);
    }
    const float width = (float)(low == high ? 0.001 : high - low);
    for (uint32_t i = 0; i < rope_dim / 2; i++) {
        theta[i] = 1.0f / powf((float)base, (float)(2 * i) / r);
        if (!yarn)
            continue;
        float ramp = ((float)i - (float)low) / width;
        ramp = MIN(MAX(ramp, 0.0f), 1.0f);
        theta[i] = theta[i] / (float)yarn->factor * ramp + theta[i] * (1 - ramp);
    }
}
