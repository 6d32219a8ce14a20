/* SPDX-License-Identifier: MIT */
/*
 * The kernels of the fast numerics: each instruction set gives the bits of the plain C ones, for one token and for many,
 * and all are near the product computed in double precision.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backends/cpu/cpu.h"
#include "backends/cpu/mat.h"
#include "backends/cpu/rows.h"
#include "base/size.h"

#define TOKENS 31 /* two whole tiles of 12 and a rest */

static uint64_t seed = 88172645463325252u;

static uint32_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 20);
}

static float rnd_float(void)
{
    return ((float)(rnd() % 20001) - 10000) / 3000;
}

static void *zeroed(size_t bytes)
{
    void *p = aligned_alloc(64, align_up(bytes + 64, 64));
    assert_non_null(p);
    memset(p, 0, align_up(bytes + 64, 64));
    return p;
}

/* Kernels of an isa, or NULL where this CPU lacks it. */
static const struct cpu_kernels *kernels(const char *isa)
{
    const struct cpu_kernels *k = NULL;
    struct fail f = FAIL_INIT;
    int r = cpu_kernels_fast(isa, &k, &f);

    assert_true(r == 0 || r == -ENOTSUP);
    if (r < 0)
        print_message("skipped: %s\n", f.message);
    return k;
}
static const char *const isas[] = {"plain", "avx2", "avx512"};

/* ---------------------------------------------------------------- matrices */

struct matrix {
    enum weight_type type;
    uint32_t rows, cols;
    uint8_t *data, *scale; /* as stored */
    size_t row_bytes, scale_rows, scale_row_bytes;
    struct weight w;       /* as packed */
};

static void matrix_init(struct matrix *m, enum weight_type type, uint32_t rows, uint32_t cols, const struct cpu_kernels *k)
{
    static const size_t half_bytes[] = {[WEIGHT_BF16] = 4, [WEIGHT_FP8] = 2, [WEIGHT_FP4] = 1, [WEIGHT_F32] = 8};
    struct weight_layout l;

    *m = (struct matrix){.type = type, .rows = rows, .cols = cols, .row_bytes = cols * half_bytes[type] / 2};
    m->scale_rows = type == WEIGHT_FP4 ? rows : type == WEIGHT_FP8 ? div_up(rows, FP8_BLOCK) : 0;
    m->scale_row_bytes = type == WEIGHT_FP4 ? cols / INDEX_BLOCK : div_up(cols, FP8_BLOCK);
    m->data = zeroed(rows * m->row_bytes);
    m->scale = zeroed(m->scale_rows * m->scale_row_bytes);
    for (size_t i = 0; i < rows * m->row_bytes; i++) {
        m->data[i] = (uint8_t)rnd();
        if (type == WEIGHT_FP8 && (m->data[i] & 0x7f) == 0x7f)
            m->data[i] ^= 1; /* not NaN */
        if (type == WEIGHT_BF16 && i % 2)
            m->data[i] = (uint8_t)(0x3e + (rnd() & 0x81));
    }
    for (size_t i = 0; type == WEIGHT_F32 && i < (size_t)rows * cols; i++) {
        float v = rnd_float();
        memcpy(m->data + i * 4, &v, 4);
    }
    for (size_t i = 0; i < m->scale_rows * m->scale_row_bytes; i++)
        m->scale[i] = (uint8_t)(110 + rnd() % 20);

    assert_int_equal(k->layout(type, rows, cols, &l), 0);
    uint8_t *data = zeroed(l.data_bytes), *scale = zeroed(l.scale_bytes);
    for (uint32_t row = 0; row < rows; row += 2 * l.row_group)
        k->pack(type, rows, cols, WEIGHT_DATA, row, MIN(2 * l.row_group, rows - row), m->data + row * m->row_bytes, data);
    for (uint32_t row = 0; row < m->scale_rows; row += l.scale_group)
        k->pack(type, rows, cols, WEIGHT_SCALE, row, MIN(l.scale_group, (uint32_t)m->scale_rows - row),
                m->scale + row * m->scale_row_bytes, scale);
    m->w = (struct weight){.type = type, .rows = rows, .cols = cols, .data = data, .scale = scale};
}

static void matrix_deinit(struct matrix *m)
{
    free(m->data);
    free(m->scale);
    free((void *)(uintptr_t)m->w.data);
    free((void *)(uintptr_t)m->w.scale);
}

/* From the definition of the formats, with exp2: nothing of the backend's. */
static double stored_value(const struct matrix *m, uint32_t row, uint32_t col)
{
    static const double e2m1[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    const uint8_t *d = m->data + row * m->row_bytes;

    if (m->type == WEIGHT_FP8) {
        int e = d[col] >> 3 & 15, f = d[col] & 7;
        double v = e ? (1 + f / 8.) * exp2(e - 7) : f / 8. * exp2(-6);
        return (d[col] & 128 ? -v : v) * exp2(m->scale[row / 128 * m->scale_row_bytes + col / 128] - 127);
    }
    if (m->type == WEIGHT_FP4) {
        uint8_t c = d[col / 2] >> (col % 2 * 4) & 15;
        return (c & 8 ? -1 : 1) * e2m1[c & 7] * exp2(m->scale[row * m->scale_row_bytes + col / 32] - 127);
    }
    if (m->type == WEIGHT_BF16)
        return mat_from_bits((uint32_t)(d[2 * col] | d[2 * col + 1] << 8) << 16);
    float v;
    memcpy(&v, d + 4 * col, 4);
    return v;
}

/* So many tokens at once; the work split at multiples of 16 rows as the operations do. */
static void multiply(const struct cpu_kernels *k, const struct weight *w, const float *x, uint32_t at_once, float *y)
{
    size_t bytes = k->activation_bytes(w->type, w->cols), stride = bytes ? bytes : w->cols * sizeof(float);
    struct model_shape shape = {.hidden = w->cols, .hc = 1, .head_dim = 64, .o_groups = 1, .index_dim = 32};
    void *scratch = zeroed(k->scratch_bytes(&shape));
    uint8_t *prepared = zeroed(TOKENS * stride);
    uint32_t xi[TOKENS], yi[TOKENS];

    for (uint32_t t = 0; t < TOKENS; t++) {
        if (bytes)
            k->activation(w->type, w->cols, x + (size_t)t * w->cols, prepared + t * stride);
        else
            memcpy(prepared + t * stride, x + (size_t)t * w->cols, stride);
        xi[t] = yi[t] = TOKENS - 1 - t; /* any order */
    }
    struct cpu_matmul m = {.w = w, .x = prepared, .x_stride = stride, .y = y, .y_stride = w->rows};
    for (uint32_t t = 0; t < TOKENS; t += at_once) {
        m.n = MIN(at_once, TOKENS - t);
        m.xi = xi + t;
        m.yi = yi + t;
        uint32_t step = at_once < TOKENS ? 80 : 208;
        for (uint32_t row = 0; row < w->rows; row += step)
            k->matmul[w->type](&m, row, MIN(row + step, w->rows), scratch);
    }
    free(prepared);
    free(scratch);
}

static const uint32_t batches[] = {1, 2, 3, 4, TOKENS}; /* kernels may have ways of their own for the small ones */

static void check_matrix(enum weight_type type, uint32_t rows, uint32_t cols, float scale_x)
{
    struct matrix m;
    size_t n = (size_t)TOKENS * rows;
    float *x = zeroed((size_t)TOKENS * cols * 4), *want = zeroed(n * 4), *y = zeroed(MAX(n, cols) * 4);

    matrix_init(&m, type, rows, cols, kernels("plain"));
    for (size_t i = 0; i < (size_t)TOKENS * cols; i++)
        x[i] = rnd_float() * scale_x;
    multiply(kernels("plain"), &m.w, x, 1, want);

    double error = 0, norm = 0;
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t row = 0; row < rows; row++) {
            double sum = 0;
            for (uint32_t col = 0; col < cols; col++)
                sum += stored_value(&m, row, col) * x[(size_t)t * cols + col];
            error += pow(sum - want[(size_t)t * rows + row], 2);
            norm += sum * sum;
        }
    /* INT8 activations per 32 lose about 4e-3; float sums of this length less than 1e-6. */
    if (scale_x == 1)
        assert_true(sqrt(error / norm) < (type == WEIGHT_FP4 ? 6e-3 : 1e-6));

    for (size_t i = 0; i < ELEMENTS(isas); i++) {
        const struct cpu_kernels *k = kernels(isas[i]);
        for (size_t j = 0; k && j < ELEMENTS(batches); j++) {
            memset(y, 0xff, n * 4);
            multiply(k, &m.w, x, batches[j], y);
            if (memcmp(y, want, n * 4) != 0)
                fail_msg("type %d %ux%u: %s gives other bits than plain C for %u tokens at once", type, rows, cols, k->isa,
                         batches[j]);
        }
        for (uint32_t row = 0; k && row < rows; row++) {
            k->row(&m.w, row, y);
            for (uint32_t col = 0; col < cols; col++)
                assert_true(y[col] == (float)stored_value(&m, row, col));
        }
    }
    matrix_deinit(&m);
    free(x);
    free(want);
    free(y);
}

static void products_agree(void **state)
{
    (void)state;
    static const struct {
        enum weight_type type;
        uint32_t rows, cols;
    } cases[] = {
        {WEIGHT_FP8, 200, 300}, {WEIGHT_FP8, 64, 128}, {WEIGHT_FP8, 17, 129}, {WEIGHT_FP8, 300, 1}, {WEIGHT_FP4, 70, 96},
        {WEIGHT_FP4, 16, 32},   {WEIGHT_FP4, 1, 512},  {WEIGHT_BF16, 33, 77}, {WEIGHT_BF16, 160, 256}, {WEIGHT_F32, 24, 515},
    };
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        check_matrix(cases[i].type, cases[i].rows, cases[i].cols, 1);
        check_matrix(cases[i].type, cases[i].rows, cases[i].cols, 1e-38f); /* denormal activations and sums */
        check_matrix(cases[i].type, cases[i].rows, cases[i].cols, 1e30f);  /* near the top */
    }
}

/* Activations that are no numbers, or have no amax, must not differ between instruction sets either. */
static void odd_activations_agree(void **state)
{
    (void)state;
    float x[128] = {0};
    uint8_t want[512], got[512];

    for (int i = 32; i < 64; i++)
        x[i] = i == 40 ? NAN : (float)i;
    for (int i = 64; i < 96; i++)
        x[i] = i == 70 ? INFINITY : 1e-40f;
    for (int i = 96; i < 128; i++)
        x[i] = ((float)(i - 96) - 15.5f) * 8; /* ties when rounded */
    for (size_t i = 0; i < ELEMENTS(isas); i++) {
        const struct cpu_kernels *k = kernels(isas[i]);
        if (!k)
            continue;
        size_t bytes = k->activation_bytes(WEIGHT_FP4, 128);
        assert_true(bytes <= sizeof(got));
        memset(got, 0, sizeof(got));
        k->activation(WEIGHT_FP4, 128, x, got);
        if (i == 0)
            memcpy(want, got, sizeof(want));
        assert_memory_equal(got, want, bytes);
        assert_int_equal((int8_t)got[40], 0);
        assert_int_equal((int8_t)got[63], 127);
    }
}

/* ---------------------------------------------------------------- index */

static void index_scores_agree(void **state)
{
    (void)state;
    static const uint32_t heads[] = {4, 16, 19, 64}, dims[] = {32, 128, 256};
    enum { ROWS = 50 };

    for (size_t c = 0; c < ELEMENTS(heads) * ELEMENTS(dims); c++) {
        struct model_shape s = {.index_heads = heads[c % 4], .index_dim = dims[c / 4], .hidden = 64, .hc = 1, .head_dim = 64,
                                .o_groups = 1};
        size_t row_bytes = s.index_dim / 2 + s.index_dim / 32;
        uint8_t *rows = zeroed(ROWS * row_bytes);
        float *iq = zeroed((size_t)s.index_heads * s.index_dim * 4), *weight = zeroed(s.index_heads * 4), *x = zeroed(s.index_dim * 4);
        double want[ROWS] = {0};
        float first[ROWS], score[ROWS];
        for (uint32_t h = 0; h < s.index_heads; h++) {
            weight[h] = rnd_float();
            for (uint32_t k = 0; k < s.index_dim; k++)
                iq[h * s.index_dim + k] = h == 3 ? 0 : rnd_float() * (float)exp2((int)(k / 32 % 3) * 5);
            index_round(s.index_dim, iq + h * s.index_dim);
        }
        for (uint32_t i = 0; i < ROWS; i++) {
            for (uint32_t k = 0; k < s.index_dim; k++)
                x[k] = i == 7 ? 0 : rnd_float();
            index_row_pack(s.index_dim, x, rows + i * row_bytes);
            index_row_unpack(s.index_dim, rows + i * row_bytes, x);
            for (uint32_t h = 0; h < s.index_heads; h++) {
                double dot = 0;
                for (uint32_t k = 0; k < s.index_dim; k++)
                    dot += (double)x[k] * iq[h * s.index_dim + k];
                want[i] += dot > 0 ? dot * weight[h] : 0;
            }
        }
        for (size_t i = 0; i < ELEMENTS(isas); i++) {
            const struct cpu_kernels *k = kernels(isas[i]);
            if (!k)
                continue;
            void *query = zeroed(k->index_query_bytes(&s)), *scratch = zeroed(k->scratch_bytes(&s));
            k->index_query(&s, iq, query);
            k->index_scores(&s, query, weight, ROWS, rows, row_bytes, score, scratch);
            if (i == 0)
                memcpy(first, score, sizeof(first));
            assert_memory_equal(score, first, sizeof(score));
            for (uint32_t j = 0; j < ROWS; j++)
                assert_true(fabs(score[j] - want[j]) <= 1e-4 * (fabs(want[j]) + 1));
            free(query);
            free(scratch);
        }
        free(rows);
        free(iq);
        free(weight);
        free(x);
    }
}

/* ---------------------------------------------------------------- attention */

static void attention_agrees(void **state)
{
    (void)state;
    enum { KEYS = ATTEND_KEYS - 3, HEADS = 5 };
    static const uint32_t widths[] = {128, 192, 512};

    for (size_t c = 0; c < ELEMENTS(widths) * 2; c++) {
        struct model_shape s = {.head_dim = widths[c / 2], .rope_dim = 64, .hidden = 64, .hc = 1, .o_groups = 1, .index_dim = 32};
        struct kv_layout kv = {.rope_f32 = c % 2};
        size_t row_bytes = row_rope_offset(&s) + s.rope_dim * (kv.rope_f32 ? 4 : 2);
        uint8_t *rows = zeroed(KEYS * row_bytes);
        float *x = zeroed(s.head_dim * 4), *q = zeroed(HEADS * s.head_dim * 4);
        float *acc = zeroed(HEADS * s.head_dim * 4), *want = zeroed(HEADS * s.head_dim * 4);
        const uint8_t *row[KEYS];
        for (uint32_t i = 0; i < KEYS; i++) {
            for (uint32_t k = 0; k < s.head_dim; k++)
                x[k] = rnd_float() * (k < 64 ? 1e-3f : 1);
            row_pack(&s, &kv, x, rows + i * row_bytes);
            row[i] = rows + i * row_bytes;
        }
        for (uint32_t i = 0; i < HEADS * s.head_dim; i++)
            q[i] = rnd_float();
        for (size_t i = 0; i < ELEMENTS(isas); i++) {
            const struct cpu_kernels *k = kernels(isas[i]);
            if (!k)
                continue;
            float max[HEADS] = {0}, sum[HEADS] = {1, 1, 1, 1, 1};
            void *scratch = zeroed(k->scratch_bytes(&s));
            memset(acc, 0, HEADS * s.head_dim * 4);
            struct cpu_attend a = {.shape = &s, .kv = &kv, .heads = HEADS, .q = q, .scale = 0.05f, .max = max, .sum = sum, .acc = acc};
            k->attend(&a, KEYS, row, scratch);
            if (i == 0)
                memcpy(want, acc, HEADS * s.head_dim * 4);
            assert_memory_equal(acc, want, HEADS * s.head_dim * 4);
            free(scratch);
        }
        free(rows);
        free(x);
        free(q);
        free(acc);
        free(want);
    }
}

static void unknown_isa_is_refused(void **state)
{
    (void)state;
    const struct cpu_kernels *k = NULL;
    struct fail f = FAIL_INIT;

    assert_int_equal(cpu_kernels_fast("sse9", &k, &f), -EINVAL);
    assert_null(k);
    assert_non_null(strstr(f.message, "sse9"));
    assert_int_equal(cpu_kernels_fast(NULL, &k, &f), 0);
    assert_non_null(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree),  cmocka_unit_test(odd_activations_agree), cmocka_unit_test(index_scores_agree),
        cmocka_unit_test(attention_agrees), cmocka_unit_test(unknown_isa_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
