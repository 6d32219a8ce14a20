/* SPDX-License-Identifier: MIT */
#include "tests/backend/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"

double ref_e4m3(uint8_t code)
{
    int e = code >> 3 & 15, m = code & 7;
    double v = e == 15 && m == 7 ? NAN : e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
    return code & 0x80 ? -v : v;
}

double ref_e2m1(uint8_t code)
{
    int e = code >> 1 & 3, m = code & 1;
    double v = e ? ldexp(1 + m / 2.0, e - 1) : m / 2.0;
    return code & 8 ? -v : v;
}

double ref_scale(uint8_t code)
{
    return code == 255 ? NAN : ldexp(1, code - 127);
}

double ref_bf16(uint16_t code)
{
    uint32_t u = (uint32_t)code << 16;
    float x;
    memcpy(&x, &u, sizeof(x));
    return x;
}

static double nearest(double x, double (*value)(uint8_t), uint8_t codes)
{
    double a = fabs(x), best = 0;
    for (uint8_t c = 0; c < codes; c++) {
        double v = value(c), now = fabs(v - a), before = fabs(best - a);
        if (now < before || (now == before && c % 2 == 0))
            best = v;
    }
    return copysign(best, x);
}

double ref_round_e4m3(double x)
{
    return nearest(x, ref_e4m3, 0x7f);
}

double ref_round_e2m1(double x)
{
    return nearest(x, ref_e2m1, 8);
}

static void round_blocks(double *x, uint32_t n, uint32_t block, double top, double floor, double (*round_to)(double))
{
    for (uint32_t i = 0; i < n; i += block) {
        double amax = floor, scale = 1;
        for (uint32_t k = i; k < i + block; k++)
            amax = fmax(amax, fabs(x[k]));
        while (scale < amax / top)
            scale *= 2;
        while (scale / 2 >= amax / top)
            scale /= 2;
        for (uint32_t k = i; k < i + block; k++)
            x[k] = round_to(x[k] / scale) * scale;
    }
}

void ref_round_row(double *x, uint32_t n)
{
    round_blocks(x, n, KV_BLOCK, 448, 1e-4f, ref_round_e4m3);
}

void ref_round_index(double *x, uint32_t n)
{
    round_blocks(x, n, INDEX_BLOCK, 6, ldexp(6, -126), ref_round_e2m1);
}

void ref_rms(double *x, const float *weight, uint32_t n, double eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        x[i] = x[i] / sqrt(sum / n + eps) * (weight ? (double)weight[i] : 1);
}

void ref_rope(double *x, const float *theta, uint32_t r, uint32_t position, bool inverse)
{
    for (uint32_t i = 0; i < r / 2; i++) {
        double angle = (float)((float)position * theta[i]), c = cos(angle), s = inverse ? -sin(angle) : sin(angle);
        double a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

/* y_i = sum_k (-1)^popcount(i & k) x_k / sqrt(n) */
void ref_hadamard(double *x, uint32_t n)
{
    double *y = calloc(n, sizeof(*y));
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n; k++)
            y[i] += __builtin_popcount(i & k) % 2 ? -x[k] : x[k];
    for (uint32_t i = 0; i < n; i++)
        x[i] = y[i] / sqrt(n);
    free(y);
}

uint64_t rnd(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

uint32_t rnd_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)(rnd(state) >> 32) % n;
}

float rnd_float(uint64_t *state)
{
    return (float)((double)(int64_t)rnd(state) * 0x1p-63);
}

float rnd_normal(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 6; i++)
        sum += rnd_float(state);
    return sum / 1.41421356f;
}

void rnd_fill(uint64_t *state, enum style style, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float v = rnd_normal(state);
        switch (style) {
        case STYLE_NORMAL:   x[i] = v; break;
        case STYLE_ZERO:     x[i] = i % 2 ? 0.0f : -0.0f; break;
        case STYLE_DENORMAL: x[i] = v * 0x1p-135f; break;
        case STYLE_OUTLIER:  x[i] = i == n / 2 ? 1000 * v : v * 0.01f; break;
        case STYLE_CANCEL:   x[i] = i % 2 ? -x[i - 1] * (1 + 0x1p-20f) : 100 * v; break;
        case STYLE_POWERS:   x[i] = ldexpf(v < 0 ? -1 : 1, (int)rnd_below(state, 21) - 10); break;
        case STYLE_LARGE:    x[i] = v * 1e6f; break;
        case STYLES:         break;
        }
    }
}
