/* SPDX-License-Identifier: MIT */
/* Small formats of the CPU backend: all codes, all borders of rounding, rows packed and unpacked. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"
#include "base/macros.h"
#include "tests/backend/ref.h"

static void assert_same(double found, double expected)
{
    if (isnan(expected) ? !isnan(found) : found != expected || signbit(found) != signbit(expected))
        fail_msg("found %a, expected %a", found, expected);
}

static void all_codes(void **unused)
{
    (void)unused;
    for (int c = 0; c < 256; c++) {
        assert_same((double)mat_e4m3[c], ref_e4m3((uint8_t)c));
        assert_same((double)mat_scale((uint8_t)c), ref_scale((uint8_t)c));
    }
    for (int c = 0; c < 16; c++)
        assert_same((double)mat_e2m1[c], ref_e2m1((uint8_t)c));
    for (uint32_t c = 0; c < 65536; c++)
        assert_same((double)mat_bf16((uint16_t)c), ref_bf16((uint16_t)c));
}

static void to_bf16(void **unused)
{
    (void)unused;
    for (uint32_t c = 0; c < 0x7f80; c++) { /* every finite positive code and the points between it and the next */
        float v = mat_bf16((uint16_t)c), half = mat_from_bits(c << 16 | 0x8000);
        assert_int_equal(mat_to_bf16(v), c);
        assert_int_equal(mat_to_bf16(mat_from_bits(mat_bits(half) - 1)), c);
        assert_int_equal(mat_to_bf16(half), c + (c & 1));
        assert_int_equal(mat_to_bf16(mat_from_bits(mat_bits(half) + 1)), c + 1);
        assert_int_equal(mat_to_bf16(-v), c | 0x8000);
    }
    assert_true(isnan(mat_bf16(mat_to_bf16(mat_from_bits(0x7f800001)))));
    assert_true(isinf(mat_bf16(mat_to_bf16(INFINITY))));
}

/* A KV row of one block. The amax is in the last place, so that the scale is known. */
static const struct model_shape one_block = {.head_dim = KV_BLOCK + 2, .rope_dim = 2};
static const struct kv_layout exact = {.rope_f32 = true, .row_bytes = 80}, brief = {.row_bytes = 76};

static void e4m3_of(const float *x, float *y)
{
    uint8_t row[80];
    float in[KV_BLOCK + 2] = {0}, out[KV_BLOCK + 2];
    memcpy(in, x, KV_BLOCK * sizeof(float));
    row_pack(&one_block, &exact, in, row);
    row_unpack(&one_block, &exact, row, out);
    memcpy(y, out, KV_BLOCK * sizeof(float));
}

/* Each border between two neighbours, one float32 below and above it, at several scales, with both signs. */
static void e4m3_borders(void **unused)
{
    (void)unused;
    const int exponents[] = {-20, -3, 0, 5, 60, 110};
    for (size_t k = 0; k < ELEMENTS(exponents); k++) {
        float scale = ldexpf(1, exponents[k]), x[KV_BLOCK] = {0}, y[KV_BLOCK];
        x[KV_BLOCK - 1] = 448 * scale;
        for (uint8_t c = 0; c < 0x7e; c++) {
            float border = (float)((ref_e4m3(c) + ref_e4m3((uint8_t)(c + 1))) / 2) * scale;
            x[0] = border;
            x[1] = nextafterf(border, 0);
            x[2] = nextafterf(border, INFINITY);
            x[3] = (float)ref_e4m3(c) * scale;
            for (int i = 0; i < 4; i++)
                x[4 + i] = -x[i];
            e4m3_of(x, y);
            for (int i = 0; i < KV_BLOCK; i++)
                assert_same((double)y[i], ref_round_e4m3((double)x[i] / (double)scale) * (double)scale);
        }
    }
}

/* Scales around every border of amax: the power of two changes just above 448 * 2^e. */
static void e4m3_scales(void **unused)
{
    (void)unused;
    for (int e = -40; e < 118; e++)
        for (int step = -1; step <= 1; step++) {
            float x[KV_BLOCK] = {0}, y[KV_BLOCK];
            x[5] = ldexpf(448, e);
            x[5] = step < 0 ? nextafterf(x[5], 0) : step > 0 ? nextafterf(x[5], INFINITY) : x[5];
            x[6] = ldexpf(1.1f, e);
            x[7] = ldexpf(-1.7f, e - 6);
            double r[KV_BLOCK];
            for (int i = 0; i < KV_BLOCK; i++)
                r[i] = (double)x[i];
            ref_round_row(r, KV_BLOCK);
            e4m3_of(x, y);
            for (int i = 0; i < KV_BLOCK; i++)
                assert_same((double)y[i], r[i]);
        }
}

static void e2m1_borders(void **unused)
{
    (void)unused;
    for (int e = -126; e < 120; e += 3)
        for (int top = -1; top <= 1; top++) {
            float scale = ldexpf(1, e), x[INDEX_BLOCK] = {0}, y[INDEX_BLOCK];
            double r[INDEX_BLOCK];
            for (uint8_t c = 0; c < 7; c++) {
                float border = (float)((ref_e2m1(c) + ref_e2m1((uint8_t)(c + 1))) / 2) * scale;
                x[4 * c] = border;
                x[4 * c + 1] = nextafterf(border, 0);
                x[4 * c + 2] = -nextafterf(border, INFINITY);
                x[4 * c + 3] = -border;
            }
            x[31] = 6 * scale;
            x[31] = top < 0 ? nextafterf(x[31], 0) : top > 0 ? nextafterf(x[31], INFINITY) : x[31];
            uint8_t row[INDEX_BLOCK / 2 + 1];
            index_row_pack(INDEX_BLOCK, x, row);
            index_row_unpack(INDEX_BLOCK, row, y);
            for (int i = 0; i < INDEX_BLOCK; i++)
                r[i] = (double)x[i];
            ref_round_index(r, INDEX_BLOCK);
            for (int i = 0; i < INDEX_BLOCK; i++)
                assert_same((double)y[i], r[i]);
            index_round(INDEX_BLOCK, x);
            assert_memory_equal(x, y, sizeof(x));
        }
}

static void rows_of_all_styles(void **unused)
{
    (void)unused;
    enum { C = 5 * KV_BLOCK + 6 };
    const struct model_shape s = {.head_dim = C, .rope_dim = 6};
    uint64_t state = 11;
    for (int round = 0; round < 70; round++) {
        float x[C], y[C];
        double r[C];
        uint8_t row[512];
        rnd_fill(&state, (enum style)(round % STYLES), x, C);
        for (int i = 0; i < C; i++)
            r[i] = (double)x[i];
        ref_round_row(r, C - 6);
        row_pack(&s, &exact, x, row);
        row_unpack(&s, &exact, row, y);
        for (int i = 0; i < C; i++)
            assert_same((double)y[i], r[i]);
        row_pack(&s, &brief, x, row);
        row_unpack(&s, &brief, row, y);
        for (int i = 0; i < C; i++)
            assert_same((double)y[i], i < C - 6 ? r[i] : (double)mat_bf16(mat_to_bf16(x[i])));
    }
}

static void row_bytes_are_as_documented(void **unused)
{
    (void)unused;
    const struct model_shape flash = {.head_dim = 512, .rope_dim = 64};
    assert_int_equal(row_rope_offset(&flash), 456);
    uint8_t row[584 + 1];
    float x[512];
    for (int i = 0; i < 512; i++)
        x[i] = 1;
    row[584] = 0xaa;
    memset(row, 0xee, 584);
    row_pack(&flash, &brief, x, row);
    assert_int_equal(row[0], 0x78);        /* 256 = 1 / 2^-8 */
    assert_int_equal(row[447], 0x78);
    assert_int_equal(row[448], 127 - 8);   /* 1/448 <= 2^-8 */
    assert_int_equal(row[454], 127 - 8);
    assert_int_equal(row[455], 0);         /* padding */
    assert_int_equal(row[456] | row[457] << 8, 0x3f80);
    assert_int_equal(row[582] | row[583] << 8, 0x3f80);
    assert_int_equal(row[584], 0xaa);
}

/* Numbers that no format has: nothing may crash or leave its block. */
static void not_numbers(void **unused)
{
    (void)unused;
    float x[KV_BLOCK] = {1, NAN, INFINITY, -INFINITY}, y[KV_BLOCK];
    e4m3_of(x, y);
    uint8_t row[INDEX_BLOCK / 2 + 1];
    index_row_pack(INDEX_BLOCK, x, row);
    float z[KV_BLOCK] = {1, NAN, 3};
    e4m3_of(z, y);
    assert_same((double)y[0], 1);
    assert_same((double)y[2], 3);
    assert_same((double)y[3], 0);
}

static void transforms(void **unused)
{
    (void)unused;
    uint64_t state = 5;
    for (uint32_t n = 1; n <= 256; n *= 2) {
        float x[256];
        double r[256];
        rnd_fill(&state, STYLE_NORMAL, x, n);
        for (uint32_t i = 0; i < n; i++)
            r[i] = (double)x[i];
        hadamard(x, n);
        ref_hadamard(r, n);
        for (uint32_t i = 0; i < n; i++)
            assert_true(fabs((double)x[i] - r[i]) < 2e-6);
    }
    const float theta[3] = {1, 0.01f, 3e-5f};
    for (uint32_t position = 0; position < 1u << 20; position += 99991) {
        float x[6], rotation[6], back[6];
        double r[6];
        rnd_fill(&state, STYLE_NORMAL, x, 6);
        for (uint32_t i = 0; i < 6; i++)
            r[i] = (double)x[i];
        memcpy(back, x, sizeof(x));
        rotation_init(theta, 6, position, rotation);
        rope(x, rotation, 6, false);
        ref_rope(r, theta, 6, position, false);
        for (uint32_t i = 0; i < 6; i++)
            assert_true(fabs((double)x[i] - r[i]) < 1e-6);
        rope(x, rotation, 6, true);
        for (uint32_t i = 0; i < 6; i++)
            assert_true(fabsf(x[i] - back[i]) < 1e-6f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_codes),
        cmocka_unit_test(to_bf16),
        cmocka_unit_test(e4m3_borders),
        cmocka_unit_test(e4m3_scales),
        cmocka_unit_test(e2m1_borders),
        cmocka_unit_test(rows_of_all_styles),
        cmocka_unit_test(row_bytes_are_as_documented),
        cmocka_unit_test(not_numbers),
        cmocka_unit_test(transforms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
