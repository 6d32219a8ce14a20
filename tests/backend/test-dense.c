/* SPDX-License-Identifier: MIT */
/* Operations without sessions: embed, linear, grouped_linear, logits, norm, hyper-connections, route, moe. */
#include <errno.h>

#include "tests/backend/rig.h"

#define T_MAX 33

/* ---------------------------------------------------------------- matrices */

static const struct size {
    uint32_t rows, cols;
} sizes[] = {{1, 32}, {15, 160}, {129, 96}, {48, 128}, {300, 160}, {17, 32}};

/* Each result of `tokens` rows against double; then each token alone must give the same bits. */
static void check_linear(struct rig *r, enum weight_type type, struct size size, enum style style, uint32_t tokens)
{
    struct test_weight w;
    weight_init(r, &w, type, size.rows, size.cols);
    const struct weight *one = &w.w;
    float *x = floats(tokens * size.cols), *y = floats(tokens * size.rows), *alone = floats(size.rows);
    for (uint32_t t = 0; t < tokens; t++)
        rnd_fill(&r->rnd, style, x + t * size.cols, size.cols);
    rig_tokens(r, tokens, NULL);
    assert_int_equal(r->ops->linear(r->b, x, 1, &one, &y), 0);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t i = 0; i < size.rows; i++) {
            double bound, expected = weight_dot(r, &w, i, x + t * size.cols, &bound);
            assert_near((double)y[t * size.rows + i], expected, bound);
        }
    for (uint32_t t = 0; t < tokens; t++) {
        rig_tokens(r, 1, NULL);
        assert_int_equal(r->ops->linear(r->b, x + t * size.cols, 1, &one, &alone), 0);
        assert_memory_equal(alone, y + t * size.rows, size.rows * sizeof(float));
    }
    weight_deinit(r, &w);
    free(x);
    free(y);
    free(alone);
}

static void linear(struct rig *r)
{
    const uint32_t tokens[] = {1, 2, 7, T_MAX};
    for (enum weight_type type = WEIGHT_BF16; type <= WEIGHT_F32; type++)
        for (size_t i = 0; i < ELEMENTS(sizes); i++)
            for (enum style style = STYLE_NORMAL; style < STYLES; style++)
                check_linear(r, type, sizes[i], style, tokens[(i + style) % ELEMENTS(tokens)]);
    /* columns that are no multiple of anything (FP4 has 32 at least) */
    check_linear(r, WEIGHT_BF16, (struct size){19, 7}, STYLE_NORMAL, 3);
    check_linear(r, WEIGHT_F32, (struct size){15, 77}, STYLE_NORMAL, 3);
    check_linear(r, WEIGHT_FP8, (struct size){131, 137}, STYLE_NORMAL, 3);
}

/* Several matrices of all types at once give what each gives alone. */
static void linear_many(struct rig *r)
{
    enum { N = 20, COLS = 96 };
    struct test_weight w[N];
    const struct weight *p[N];
    float *x = floats(5 * COLS), *y[N], *alone = floats(5 * 64);
    rnd_fill(&r->rnd, STYLE_NORMAL, x, 5 * COLS);
    for (uint32_t i = 0; i < N; i++) {
        weight_init(r, &w[i], (enum weight_type)(i % 4), 3 + i * 3, COLS);
        p[i] = &w[i].w;
        y[i] = floats(5 * w[i].w.rows);
    }
    rig_tokens(r, 5, NULL);
    assert_int_equal(r->ops->linear(r->b, x, N, p, y), 0);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(r->ops->linear(r->b, x, 1, &p[i], &alone), 0);
        assert_memory_equal(alone, y[i], 5 * w[i].w.rows * sizeof(float));
        double bound, expected = weight_dot(r, &w[i], 2, x, &bound);
        assert_near((double)y[i][2], expected, bound);
        free(y[i]);
        weight_deinit(r, &w[i]);
    }
    free(x);
    free(alone);
}

static void grouped_linear(struct rig *r)
{
    const uint32_t ranks[] = {24, 16, 5, 64};
    uint32_t groups = r->shape.o_groups, cols = r->shape.heads * r->shape.head_dim / groups;
    for (size_t k = 0; k < ELEMENTS(ranks); k++) {
        uint32_t rows = groups * ranks[k];
        struct test_weight w;
        weight_init(r, &w, k % 2 ? WEIGHT_BF16 : WEIGHT_FP8, rows, cols);
        float *x = floats(3 * groups * cols), *y = floats(3 * rows), *alone = floats(rows);
        rnd_fill(&r->rnd, STYLE_NORMAL, x, 3 * groups * cols);
        rig_tokens(r, 3, NULL);
        assert_int_equal(r->ops->grouped_linear(r->b, groups, x, &w.w, y), 0);
        for (uint32_t i = 0; i < 3 * rows; i++) {
            uint32_t t = i / rows, row = i % rows;
            double bound, expected = weight_dot(r, &w, row, x + (t * groups + row / ranks[k]) * cols, &bound);
            assert_near((double)y[i], expected, bound);
        }
        rig_tokens(r, 1, NULL);
        assert_int_equal(r->ops->grouped_linear(r->b, groups, x + 2 * groups * cols, &w.w, alone), 0);
        assert_memory_equal(alone, y + 2 * rows, rows * sizeof(float));
        weight_deinit(r, &w);
        free(x);
        free(y);
        free(alone);
    }
}

static void embed_and_logits(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    struct test_weight w;
    weight_init(r, &w, WEIGHT_BF16, s->vocab, s->hidden);
    const uint32_t id[] = {0, 332, 17, 17, 128, 16};
    float *X = floats(6 * s->hc * s->hidden), *out = floats(2 * s->vocab), *x = floats(2 * s->hidden);
    rig_tokens(r, 6, id);
    assert_int_equal(r->ops->embed(r->b, &w.w, X), 0);
    for (uint32_t i = 0; i < 6 * s->hc * s->hidden; i++)
        assert_true((double)X[i] == w.value[id[i / s->hidden / s->hc] * s->hidden + i % s->hidden]);
    rnd_fill(&r->rnd, STYLE_NORMAL, x, 2 * s->hidden);
    assert_int_equal(r->ops->logits(r->b, 2, x, &w.w, out), 0);
    for (uint32_t i = 0; i < 2 * s->vocab; i++) {
        double bound, expected = weight_dot(r, &w, i % s->vocab, x + i / s->vocab * s->hidden, &bound);
        assert_near((double)out[i], expected, bound);
    }
    weight_deinit(r, &w);
    free(X);
    free(out);
    free(x);
}

static void norm(struct rig *r)
{
    enum { W = 77 };
    float x[STYLES * W], w[W];
    double e[W];
    rnd_fill(&r->rnd, STYLE_NORMAL, w, W);
    for (enum style style = STYLE_NORMAL; style < STYLES; style++)
        rnd_fill(&r->rnd, style, x + style * W, W);
    float before[STYLES * W];
    memcpy(before, x, sizeof(x));
    rig_tokens(r, STYLES, NULL);
    assert_int_equal(r->ops->norm(r->b, W, w, x), 0);
    for (uint32_t t = 0; t < STYLES; t++) {
        for (uint32_t i = 0; i < W; i++)
            e[i] = (double)before[t * W + i];
        ref_rms(e, w, W, (double)r->shape.rms_eps);
        for (uint32_t i = 0; i < W; i++)
            assert_near((double)x[t * W + i], e[i], fabs(e[i]) * r->config->scalar + 1e-43);
    }
}

/* ---------------------------------------------------------------- hyper-connections */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* The whole of hc_pre in double from given m: pre [n], post [n], comb [n][n]. */
static void ref_mix(const struct model_shape *s, const struct hc_weights *w, const double *m, double *pre, double *post,
                    double *comb)
{
    uint32_t n = s->hc;
    double eps = (double)s->hc_eps;
    for (uint32_t i = 0; i < n; i++)
        pre[i] = sigmoid(m[i] * (double)w->scale[0] + (double)w->base[i]) + eps;
    if (!post)
        return;
    for (uint32_t i = 0; i < n; i++)
        post[i] = 2 * sigmoid(m[n + i] * (double)w->scale[1] + (double)w->base[n + i]);
    for (uint32_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < n; j++)
            sum += comb[i * n + j] = exp(m[2 * n + i * n + j] * (double)w->scale[2] +
                                         (double)w->base[2 * n + i * n + j]);
        for (uint32_t j = 0; j < n; j++)
            comb[i * n + j] = comb[i * n + j] / sum + eps;
    }
    for (uint32_t round = 0; round < 2 * s->hc_iterations - 1; round++)
        for (uint32_t i = 0; i < n; i++) {
            uint32_t step = round % 2 ? 1 : n, from = round % 2 ? i * n : i;
            double sum = eps;
            for (uint32_t j = 0; j < n; j++)
                sum += comb[from + j * step];
            for (uint32_t j = 0; j < n; j++)
                comb[from + j * step] /= sum;
        }
}

struct hc_case {
    struct test_weight fn;
    float base[HC_MAX * (HC_MAX + 2)], scale[3], norm[256];
    struct hc_weights w;
};

static void hc_case_init(struct rig *r, struct hc_case *c, bool head)
{
    const struct model_shape *s = &r->shape;
    uint32_t rows = head ? s->hc : s->hc * (s->hc + 2);
    weight_init(r, &c->fn, WEIGHT_F32, rows, s->hc * s->hidden);
    rnd_fill(&r->rnd, STYLE_NORMAL, c->base, rows);
    rnd_fill(&r->rnd, STYLE_NORMAL, c->scale, head ? 1 : 3);
    rnd_fill(&r->rnd, STYLE_NORMAL, c->norm, s->hidden);
    c->w = (struct hc_weights){c->fn.w, c->base, c->scale};
}

/* One token of hc_pre_norm or hc_head_norm (post NULL). */
static void check_hc(struct rig *r, const struct hc_case *c, const float *X, const float *x, const float *post,
                     const float *comb)
{
    const struct model_shape *s = &r->shape;
    uint32_t n = s->hc, d = s->hidden;
    double sq = 0, m[HC_MAX * (HC_MAX + 2)], pre[HC_MAX], rpost[HC_MAX], rcomb[HC_MAX * HC_MAX], e[256], most = 0;
    for (uint32_t i = 0; i < n * d; i++)
        sq += (double)X[i] * (double)X[i];
    for (uint32_t i = 0; i < c->fn.w.rows; i++) {
        double bound;
        m[i] = weight_dot(r, &c->fn, i, X, &bound) / sqrt(sq / (n * d) + (double)s->rms_eps);
    }
    ref_mix(s, &c->w, m, pre, post ? rpost : NULL, rcomb);
    for (uint32_t i = 0; i < d; i++) {
        e[i] = 0;
        for (uint32_t k = 0; k < n; k++)
            e[i] += pre[k] * (double)X[k * d + i];
    }
    ref_rms(e, c->norm, d, (double)s->rms_eps);
    for (uint32_t i = 0; i < d; i++)
        most = fmax(most, fabs(e[i]));
    double tolerance = r->config->numerics == NUMERICS_EXACT ? 5e-5 : 2e-2;
    for (uint32_t i = 0; i < d; i++)
        assert_near((double)x[i], e[i], tolerance * most + 1e-43);
    for (uint32_t i = 0; post && i < n; i++)
        assert_near((double)post[i], rpost[i], tolerance);
    for (uint32_t i = 0; post && i < n * n; i++)
        assert_near((double)comb[i], rcomb[i], tolerance);
}

static void hyper_connections(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    uint32_t n = s->hc, d = s->hidden, T = STYLES;
    struct hc_case c, head;
    hc_case_init(r, &c, false);
    hc_case_init(r, &head, true);
    float *X = floats(T * n * d), *x = floats(T * d), *post = floats(T * n), *comb = floats(T * n * n);
    for (enum style style = STYLE_NORMAL; style < STYLES; style++)
        rnd_fill(&r->rnd, style, X + style * n * d, n * d);
    rig_tokens(r, T, NULL);
    assert_int_equal(r->ops->hc_pre_norm(r->b, X, &c.w, c.norm, x, post, comb), 0);
    for (uint32_t t = 0; t < T; t++)
        check_hc(r, &c, X + t * n * d, x + t * d, post + t * n, comb + t * n * n);

    const uint32_t row[] = {6, 1, 3};
    float *h = floats(3 * d), *alone = floats(d);
    assert_int_equal(r->ops->hc_head_norm(r->b, X, 3, row, &head.w, head.norm, h), 0);
    for (uint32_t i = 0; i < 3; i++)
        check_hc(r, &head, X + row[i] * n * d, h + i * d, NULL, NULL);
    const uint32_t zero = 0;
    rig_tokens(r, 1, NULL);
    assert_int_equal(r->ops->hc_head_norm(r->b, X + 3 * n * d, 1, &zero, &head.w, head.norm, alone), 0);
    assert_memory_equal(alone, h + 2 * d, d * sizeof(float));

    float *y = floats(T * d), *old = floats(T * n * d);
    rnd_fill(&r->rnd, STYLE_NORMAL, y, T * d);
    memcpy(old, X, T * n * d * sizeof(float));
    rig_tokens(r, T, NULL);
    assert_int_equal(r->ops->hc_post(r->b, y, post, comb, X), 0);
    for (uint32_t i = 0; i < T * n * d; i++) {
        uint32_t t = i / (n * d), j = i / d % n, e = i % d;
        double sum = (double)post[t * n + j] * (double)y[t * d + e], terms = fabs(sum);
        for (uint32_t k = 0; k < n; k++) {
            double term = (double)comb[(t * n + k) * n + j] * (double)old[(t * n + k) * d + e];
            sum += term;
            terms += fabs(term);
        }
        assert_near((double)X[i], sum, terms * 1e-6 + 1e-43);
    }
    weight_deinit(r, &c.fn);
    weight_deinit(r, &head.fn);
    float *all[] = {X, x, post, comb, h, alone, y, old};
    for (size_t i = 0; i < ELEMENTS(all); i++)
        free(all[i]);
}

/* ---------------------------------------------------------------- experts */

static void check_weights(struct rig *r, const double *score, const uint32_t *id, const float *weight)
{
    double sum = 0;
    for (uint32_t i = 0; i < r->shape.experts_used; i++)
        sum += score[id[i]];
    for (uint32_t i = 0; i < r->shape.experts_used; i++) {
        double e = score[id[i]] / sum * (double)r->shape.routed_scale;
        assert_near((double)weight[i], e, r->config->numerics == NUMERICS_EXACT ? 1e-5 : 2e-2);
    }
}

static void route_scores(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    uint32_t E = s->experts, used = s->experts_used, T = T_MAX;
    struct test_weight gate;
    weight_init(r, &gate, WEIGHT_BF16, E, s->hidden);
    float *x = floats(T * s->hidden), *weight = floats(T * used), bias[16];
    uint32_t *id = calloc(T * used, sizeof(*id)), table[333 * 3], tokens[T_MAX];
    rnd_fill(&r->rnd, STYLE_NORMAL, x, T * s->hidden);
    memset(x, 0, s->hidden * sizeof(float)); /* token 0: all scores equal */
    rnd_fill(&r->rnd, STYLE_NORMAL, bias, E);
    for (uint32_t i = 0; i < E; i++)
        bias[i] = i % 3 ? bias[i] * 0.05f : 0.25f;
    for (uint32_t i = 0; i < ELEMENTS(table); i++)
        table[i] = (i * 7 + i / 3) % E;
    for (uint32_t t = 0; t < T; t++)
        tokens[t] = rnd_below(&r->rnd, s->vocab);

    rig_tokens(r, T, tokens);
    for (int by_table = 0; by_table < 2; by_table++) {
        assert_int_equal(r->ops->route(r->b, x, &gate.w, by_table ? NULL : bias, by_table ? table : NULL, id, weight), 0);
        for (uint32_t t = 0; t < T; t++) {
            double score[16], bound;
            for (uint32_t e = 0; e < E; e++)
                score[e] = sqrt(log1p(exp(weight_dot(r, &gate, e, x + t * s->hidden, &bound))));
            check_weights(r, score, id + t * used, weight + t * used);
            for (uint32_t i = 0; i < used; i++) {
                if (by_table) {
                    assert_int_equal(id[t * used + i], table[tokens[t] * used + i]);
                    continue;
                }
                uint32_t better = 0; /* a choice has at most i others clearly above it */
                double margin = r->config->numerics == NUMERICS_EXACT ? 1e-5 : 5e-2;
                for (uint32_t e = 0; e < E; e++)
                    better += score[e] + (double)bias[e] >
                              score[id[t * used + i]] + (double)bias[id[t * used + i]] + margin;
                assert_true(better <= i);
                for (uint32_t k = 0; k < i; k++)
                    assert_int_not_equal(id[t * used + i], id[t * used + k]);
            }
        }
    }
    assert_int_equal(r->ops->route(r->b, x, &gate.w, bias, NULL, id, weight), 0);
    assert_int_equal(id[0], 0); /* equal scores, bias .25 at 0, 3, 6, all others less: ties by number */
    weight_deinit(r, &gate);
    free(x);
    free(weight);
    free(id);
}

static void route_ties(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    struct test_weight gate;
    weight_init(r, &gate, WEIGHT_BF16, s->experts, s->hidden);
    float *x = floats(2 * s->hidden), weight[2 * 3], bias[16] = {0, 1, 0, 2, 1, 1, 0, -1, 1};
    uint32_t id[2 * 3];
    x[s->hidden] = NAN; /* token 1: no score is a number; ids must still be experts, all different */
    rig_tokens(r, 2, NULL);
    assert_int_equal(r->ops->route(r->b, x, &gate.w, bias, NULL, id, weight), 0);
    assert_int_equal(id[0], 3);
    assert_int_equal(id[1], 1);
    assert_int_equal(id[2], 4);
    for (int i = 0; i < 3; i++)
        assert_near((double)weight[i], 0.5, 1e-6);
    for (int i = 3; i < 6; i++)
        assert_true(id[i] < s->experts && (i == 3 || id[i] != id[i - 1]));
    weight_deinit(r, &gate);
    free(x);
}

struct experts {
    struct test_weight w[16][3]; /* gate, up, down; the shared one is number E */
    struct expert_weights expert[16];
    struct moe_weights moe;
};

static void experts_init(struct rig *r, struct experts *x, enum weight_type routed)
{
    const struct model_shape *s = &r->shape;
    for (uint32_t e = 0; e <= s->experts; e++) {
        enum weight_type type = e < s->experts ? routed : WEIGHT_FP8;
        weight_init(r, &x->w[e][0], type, s->expert_hidden, s->hidden);
        weight_init(r, &x->w[e][1], type, s->expert_hidden, s->hidden);
        weight_init(r, &x->w[e][2], type, s->hidden, s->expert_hidden);
        x->expert[e] = (struct expert_weights){x->w[e][0].w, x->w[e][1].w, x->w[e][2].w};
    }
    x->moe = (struct moe_weights){x->expert, x->expert[s->experts]};
}

/* y += expert e of x with that weight; bound += how far off that may be. h's own error goes through |down|. */
static void ref_expert(const struct rig *r, const struct experts *m, uint32_t e, double weight, const float *x,
                       double *y, double *bound)
{
    const struct model_shape *s = &r->shape;
    double limit = (double)s->swiglu_limit, off[256], most = 0;
    float h[256];
    for (uint32_t i = 0; i < s->expert_hidden; i++) {
        double gb, ub, gate = weight_dot(r, &m->w[e][0], i, x, &gb), up = weight_dot(r, &m->w[e][1], i, x, &ub);
        double g = fmin(gate, limit), u = fmax(fmin(up, limit), -limit), silu = g * sigmoid(g);
        h[i] = (float)(weight * silu * u);
        off[i] = weight * (1.1 * fmin(gb, 2 * limit) * fabs(u) + (fabs(silu) + gb) * fmin(ub, 2 * limit)) + 1e-6;
        most = fmax(most, off[i]);
    }
    for (uint32_t i = 0; i < s->hidden; i++) {
        double b;
        y[i] += weight_dot(r, &m->w[e][2], i, h, &b);
        const double *down = m->w[e][2].value + (size_t)i * s->expert_hidden;
        for (uint32_t k = 0; k < s->expert_hidden; k++)
            b += fabs(down[k]) * (off[k] + r->config->block * most);
        bound[i] += b;
    }
}

static void check_moe(struct rig *r, enum weight_type routed, enum style style)
{
    const struct model_shape *s = &r->shape;
    uint32_t used = s->experts_used, T = 11, d = s->hidden;
    struct experts *m = calloc(1, sizeof(*m));
    experts_init(r, m, routed);
    float *x = floats(T * d), *y = floats(T * d), *alone = floats(d), *weight = floats(T * used);
    uint32_t *id = calloc(T * used, sizeof(*id));
    for (uint32_t t = 0; t < T; t++) {
        rnd_fill(&r->rnd, style, x + t * d, d);
        for (uint32_t i = 0; i < used; i++) { /* expert 0 is everyone's, the last one nobody's */
            id[t * used + i] = i == 1 ? 0 : 1 + (t * 5 + i * 3) % (s->experts - 2);
            weight[t * used + i] = fabsf(rnd_normal(&r->rnd));
        }
    }
    rig_tokens(r, T, NULL);
    assert_int_equal(r->ops->moe(r->b, x, id, weight, &m->moe, y), 0);
    for (uint32_t t = 0; t < T; t++) {
        double e[256] = {0}, bound[256] = {0};
        for (uint32_t i = 0; i < used; i++)
            ref_expert(r, m, id[t * used + i], (double)weight[t * used + i], x + t * d, e, bound);
        ref_expert(r, m, s->experts, 1, x + t * d, e, bound);
        for (uint32_t i = 0; i < d; i++)
            assert_near((double)y[t * d + i], e[i], bound[i]);
    }
    for (uint32_t t = 0; t < T; t++) {
        rig_tokens(r, 1, NULL);
        assert_int_equal(r->ops->moe(r->b, x + t * d, id + t * used, weight + t * used, &m->moe, alone), 0);
        assert_memory_equal(alone, y + t * d, d * sizeof(float));
    }
    for (uint32_t e = 0; e <= s->experts; e++)
        for (int i = 0; i < 3; i++)
            weight_deinit(r, &m->w[e][i]);
    free(m);
    float *all[] = {x, y, alone, weight, (float *)id};
    for (size_t i = 0; i < ELEMENTS(all); i++)
        free(all[i]);
}

static void moe(struct rig *r)
{
    check_moe(r, WEIGHT_FP4, STYLE_NORMAL);
    check_moe(r, WEIGHT_FP4, STYLE_OUTLIER); /* reaches the limits of the clamps */
    check_moe(r, WEIGHT_FP8, STYLE_NORMAL);  /* the Base layout */
    check_moe(r, WEIGHT_FP4, STYLE_ZERO);
}

/* ---------------------------------------------------------------- */

typedef void (*check_fn)(struct rig *r);

static void for_all(check_fn check)
{
    for (size_t i = 0; i < n_configs; i++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            struct rig r;
            if (!rig_open(&r, &configs[i], threads, T_MAX))
                break;
            check(&r);
            rig_close(&r);
        }
}

#define CHECK(name)                   \
    static void test_##name(void **u) \
    {                                 \
        (void)u;                      \
        for_all(name);                \
    }
CHECK(linear)
CHECK(linear_many)
CHECK(grouped_linear)
CHECK(embed_and_logits)
CHECK(norm)
CHECK(hyper_connections)
CHECK(route_scores)
CHECK(route_ties)
CHECK(moe)

/* The same input gives the same bits with any number of threads, and on any instruction set. */
static void same_bits_everywhere(void **unused)
{
    (void)unused;
    enum { ROWS = 301, COLS = 160, T = 9 };
    for (enum weight_type type = WEIGHT_BF16; type <= WEIGHT_F32; type++) {
        float first[2][T * ROWS], *y = floats(T * ROWS), x[T * COLS];
        bool have[2] = {false, false};
        uint64_t state = 3;
        rnd_fill(&state, STYLE_NORMAL, x, T * COLS);
        for (size_t i = 0; i < n_configs; i++)
            for (uint32_t threads = 1; threads <= 3; threads++) {
                struct rig r;
                if (!rig_open(&r, &configs[i], threads, T))
                    break;
                struct test_weight w;
                weight_init(&r, &w, type, ROWS, COLS);
                const struct weight *one = &w.w;
                rig_tokens(&r, T, NULL);
                assert_int_equal(r.ops->linear(r.b, x, 1, &one, &y), 0);
                enum numerics n = configs[i].numerics;
                if (have[n])
                    assert_memory_equal(y, first[n], sizeof(first[n]));
                memcpy(first[n], y, sizeof(first[n]));
                have[n] = true;
                weight_deinit(&r, &w);
                rig_close(&r);
            }
        assert_true(have[NUMERICS_EXACT] && have[NUMERICS_FAST]);
        free(y);
    }
}

static void wrong_options(void **unused)
{
    (void)unused;
    struct rig r;
    struct fail f = FAIL_INIT;
    assert_true(rig_open(&r, &configs[0], 1, 1));
    struct backend *b = NULL;
    struct backend_params p = {.numerics = NUMERICS_FAST, .shape = &r.shape, .kv = &r.kv, .max_tokens = 1,
                               .threads = 1, .isa = "mmx"};
    assert_int_equal(r.ops->open(&p, &b, &f), -EINVAL);
    assert_null(b);
    assert_non_null(strstr(f.message, "mmx"));
    struct backend_info info;
    r.ops->info(r.b, &info);
    assert_string_equal(info.name, "cpu");
    assert_string_equal(info.layout_id, "plain");
    assert_int_equal(info.threads, 1);
    assert_true(info.memory_total >= info.memory_free && info.memory_free > 0);
    assert_null(backend_find("tpu"));
    r.ops->close(NULL);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_many),
        cmocka_unit_test(test_grouped_linear),
        cmocka_unit_test(test_embed_and_logits),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_hyper_connections),
        cmocka_unit_test(test_route_scores),
        cmocka_unit_test(test_route_ties),
        cmocka_unit_test(test_moe),
        cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(wrong_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
