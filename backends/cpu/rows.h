/* SPDX-License-Identifier: MIT */
/*
 * KV rows and index rows: rounding, packing, unpacking (formats: backend.h, struct kv_layout), and what happens to a
 * row just before: norm, rope, Hadamard.
 */
#pragma once

#include "backends/backend.h"

/* Where the rope values begin in a KV row. */
static inline size_t row_rope_offset(const struct model_shape *s)
{
    uint32_t n = s->head_dim - s->rope_dim;
    return (n + n / KV_BLOCK + 7u) & ~7u;
}

/* x: [c], the first c - r dims are rounded, the others stored as they are (BF16 unless kv->rope_f32). */
void row_pack(const struct model_shape *s, const struct kv_layout *kv, const float *x, uint8_t *row);
void row_unpack(const struct model_shape *s, const struct kv_layout *kv, const uint8_t *row, float *x);

/* x: [index_dim] */
void index_row_pack(uint32_t dim, const float *x, uint8_t *row);
void index_row_unpack(uint32_t dim, const uint8_t *row, float *x);
/* Pack and unpack again. */
void index_round(uint32_t dim, float *x);

/* x / sqrt(mean(x^2) + eps) * weight, in place; weight may be NULL. */
void rms_norm(float *x, const float *weight, uint32_t n, float eps);

/* cos and sin of position * theta: [r], the cosines first. */
void rotation_init(const float *theta, uint32_t r, uint32_t position, float *rotation);
/* Rotates adjacent pairs of the r values at x, backwards if inverse. */
void rope(float *x, const float *rotation, uint32_t r, bool inverse);

/* Normalised Walsh-Hadamard transform in place; n a power of two. */
void hadamard(float *x, uint32_t n);
