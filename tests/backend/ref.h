/* SPDX-License-Identifier: MIT */
/*
 * What the formats and formulas of docs/model.md mean, in double precision and straight from their definition. Shares
 * no code with any backend: the tests compare the two.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

double ref_e4m3(uint8_t code);  /* NaN for 0x7f and 0xff */
double ref_e2m1(uint8_t code);  /* low four bits */
double ref_scale(uint8_t code); /* ue8m0 */
double ref_bf16(uint16_t code);

/* Nearest value of a format, ties to the even code, saturating; found by looking at all codes. */
double ref_round_e4m3(double x);
double ref_round_e2m1(double x);
/* In blocks, with the smallest power-of-two scale >= max(amax, floor) / top. */
void ref_round_row(double *x, uint32_t n);   /* e4m3, KV_BLOCK */
void ref_round_index(double *x, uint32_t n); /* e2m1, INDEX_BLOCK */

void ref_rms(double *x, const float *weight, uint32_t n, double eps);
/* Rotates the r values at x by float32 angles position * theta. */
void ref_rope(double *x, const float *theta, uint32_t r, uint32_t position, bool inverse);
void ref_hadamard(double *x, uint32_t n);

/* splitmix64; uniform in (-1, 1); about normal. */
uint64_t rnd(uint64_t *state);
uint32_t rnd_below(uint64_t *state, uint32_t n);
float rnd_float(uint64_t *state);
float rnd_normal(uint64_t *state);

/* Vectors that go wrong easily. */
enum style { STYLE_NORMAL, STYLE_ZERO, STYLE_DENORMAL, STYLE_OUTLIER, STYLE_CANCEL, STYLE_POWERS, STYLE_LARGE, STYLES };
void rnd_fill(uint64_t *state, enum style style, float *x, uint32_t n);
