/* SPDX-License-Identifier: MIT */
/* Rotation per position of the rope dimensions (docs/model.md, "YaRN"). */
#pragma once

#include <stdint.h>

struct yarn {
    double factor, original_positions, beta_fast, beta_slow;
};

/* theta: [rope_dim / 2]; yarn NULL: plain. Computed in float32 steps, as the released code does. */
void rope_theta(float *theta, uint32_t rope_dim, double base, const struct yarn *yarn);
