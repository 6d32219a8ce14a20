/* SPDX-License-Identifier: MIT */
#include "tests/backend/rig.h"

#include <errno.h>

/* fast: released kernels round activations to e4m3 in blocks (relative 2^-4) and keep them in BF16 (2^-9) otherwise. */
const struct config configs[] = {
    {"exact", "cpu", NULL, NUMERICS_EXACT, 1e-5, 0, 2e-5, 1e-5},
    {"fast/plain", "cpu", "plain", NUMERICS_FAST, 0x1p-8, 1 / 250.0, 0x1p-7, 1e-4},
    {"fast/avx2", "cpu", "avx2", NUMERICS_FAST, 0x1p-8, 1 / 250.0, 0x1p-7, 1e-4},
    {"fast/avx512", "cpu", "avx512", NUMERICS_FAST, 0x1p-8, 1 / 250.0, 0x1p-7, 1e-4},
};
const size_t n_configs = ELEMENTS(configs);

float *floats(size_t n)
{
    float *p = calloc(n ? n : 1, sizeof(*p));
    assert_non_null(p);
    return p;
}

/* Sizes that are no multiples of each other or of a vector's length, as far as backend.h allows. */
void rig_shape(struct rig *r)
{
    *r = (struct rig){
        .rnd = 42,
        .shape = {
            .vocab = 333, .hidden = 160, .layers = LAYERS, .hc = 3, .hc_iterations = 20,
            .heads = 10, .head_dim = 138, .rope_dim = 10, .q_rank = 96, .o_groups = 2, .o_rank = 24,
            .experts = 9, .experts_used = 3, .expert_hidden = 96, .hash_layers = 1, .window = 13,
            .index_heads = 3, .index_dim = 64, .index_topk = 6, .max_position = 4096,
            .rms_eps = 1e-6f, .hc_eps = 1e-6f, .swiglu_limit = 10, .routed_scale = 1.5f,
            .ratio = {[LAYER_PLAIN] = 0, [LAYER_4] = 4, [LAYER_8] = 8, [LAYER_128] = 128},
        },
    };
}

/* As backend.h says; engine/kv.c does the same for the engine. */
static void layout_init(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    struct kv_layout *l = &r->kv;
    uint32_t n = s->head_dim - s->rope_dim;
    l->rope_f32 = r->config->numerics == NUMERICS_EXACT;
    l->row_bytes = align_up(n + n / KV_BLOCK, 8) + s->rope_dim * (l->rope_f32 ? 4u : 2u);
    l->index_row_bytes = s->index_dim / 2 + s->index_dim / INDEX_BLOCK;
    for (uint32_t i = 0; i < s->layers; i++) {
        l->state_ring[i] = l->state_bytes;
        l->state_bytes += align_up(s->window * l->row_bytes, 64);
        if (!s->ratio[i])
            continue;
        bool overlap = s->ratio[i] == 4;
        l->state_open[i] = l->state_bytes;
        l->state_bytes += align_up((overlap ? 6u : 3u) * s->head_dim * sizeof(float), 64);
        l->page_rows[i] = l->page_bytes;
        l->page_bytes += KV_PAGE_TOKENS / s->ratio[i] * l->row_bytes;
        if (!overlap)
            continue;
        l->state_open_index[i] = l->state_bytes;
        l->state_bytes += align_up(6 * s->index_dim * sizeof(float), 64);
        l->page_index[i] = l->page_bytes;
        l->page_bytes += KV_PAGE_TOKENS / s->ratio[i] * l->index_row_bytes;
    }
    l->page_bytes = align_up(l->page_bytes, 64);
    l->state_bytes = align_up(l->state_bytes, 64);
}

bool rig_open_shape(struct rig *r, const struct config *config, uint32_t threads, uint32_t max_tokens)
{
    r->config = config;
    r->max_tokens = max_tokens;
    for (uint32_t kind = 0; kind < 2; kind++) {
        for (uint32_t i = 0; i < r->shape.rope_dim / 2; i++)
            r->theta[kind][i] = powf(kind ? 160000 : 10000, -2.0f * (float)i / (float)r->shape.rope_dim);
        r->shape.theta[kind] = r->theta[kind];
    }
    layout_init(r);
    r->ops = backend_find(config->device);
    if (!r->ops)
        return false;
    struct backend_params params = {.numerics = config->numerics, .shape = &r->shape, .kv = &r->kv,
                                    .max_tokens = max_tokens, .threads = threads, .isa = config->isa};
    struct fail f = FAIL_INIT;
    int e = r->ops->open(&params, &r->b, &f);
    if (e == -ENOTSUP || e == -EINVAL) {
        print_message("%s: not here: %s\n", config->name, f.message);
        assert_true(f.message[0] && config->isa && strcmp(config->isa, "plain") != 0);
        return false;
    }
    if (e < 0)
        fail_msg("%s: %s", config->name, f.message);
    return true;
}

bool rig_open(struct rig *r, const struct config *config, uint32_t threads, uint32_t max_tokens)
{
    rig_shape(r);
    return rig_open_shape(r, config, threads, max_tokens);
}

void rig_close(struct rig *r)
{
    if (r->ops)
        r->ops->close(r->b);
    r->b = NULL;
}

void rig_tokens(struct rig *r, uint32_t tokens, const uint32_t *id)
{
    static const uint32_t zeros[4096];
    static struct backend_seq nobody;
    nobody = (struct backend_seq){.count = tokens};
    r->batch = (struct backend_batch){.tokens = tokens, .id = id ? id : zeros, .n_seqs = 1, .seq = &nobody};
    assert_int_equal(r->ops->batch_begin(r->b, &r->batch), 0);
}

/* ---------------------------------------------------------------- weights */

static uint8_t random_e4m3(struct rig *r)
{
    uint8_t code;
    do
        code = (uint8_t)rnd(&r->rnd);
    while ((code & 0x7f) == 0x7f);
    return code;
}

static size_t stored_row(enum weight_type type, uint32_t cols)
{
    return type == WEIGHT_F32 ? cols * 4u : type == WEIGHT_BF16 ? cols * 2u : type == WEIGHT_FP8 ? cols : cols / 2;
}

/* The stored tensor, random, and what it means. */
static void random_data(struct rig *r, enum weight_type type, uint32_t rows, uint32_t cols, uint8_t *data,
                        const uint8_t *scale, double *value)
{
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t k = 0; k < cols; k++) {
            uint8_t *row = data + i * stored_row(type, cols);
            double *v = &value[(size_t)i * cols + k];
            if (type == WEIGHT_F32 || type == WEIGHT_BF16) {
                float x = rnd_normal(&r->rnd) * 0.05f;
                uint32_t bits;
                memcpy(&bits, &x, 4);
                bits &= type == WEIGHT_BF16 ? 0xffff0000 : 0xffffffff;
                memcpy(&x, &bits, 4);
                *v = (double)x;
                memcpy(row + k * (type == WEIGHT_F32 ? 4 : 2), (uint8_t *)&bits + (type == WEIGHT_F32 ? 0 : 2),
                       type == WEIGHT_F32 ? 4 : 2);
            } else if (type == WEIGHT_FP8) {
                row[k] = random_e4m3(r);
                *v = ref_e4m3(row[k]) * ref_scale(scale[i / 128 * div_up(cols, 128) + k / 128]);
            } else {
                uint8_t code = (uint8_t)rnd_below(&r->rnd, 16);
                row[k / 2] = (uint8_t)(k % 2 ? row[k / 2] | code << 4 : code);
                *v = ref_e2m1(code) * ref_scale(scale[i * (cols / 32) + k / 32]);
            }
        }
}

/* Runs of whole groups, not all of one length, the last one first: pack may be called in any order. */
static void pack_in_runs(struct rig *r, const struct test_weight *t, enum weight_part part, const uint8_t *src,
                         uint32_t rows, size_t row_bytes, uint32_t group, void *dst)
{
    uint32_t half = (uint32_t)align_up(rows / 2, group);
    uint32_t at[] = {MIN(half, rows), 0}, n[] = {rows - MIN(half, rows), MIN(half, rows)};
    uint8_t *unaligned = malloc(rows * row_bytes + 1);
    assert_non_null(unaligned);
    memcpy(unaligned + 1, src, rows * row_bytes);
    for (int i = 0; i < 2; i++)
        if (n[i])
            r->ops->pack(r->b, t->w.type, t->w.rows, t->w.cols, part, at[i], n[i], unaligned + 1 + at[i] * row_bytes,
                         dst);
    free(unaligned);
}

void weight_init(struct rig *r, struct test_weight *t, enum weight_type type, uint32_t rows, uint32_t cols)
{
    *t = (struct test_weight){.w = {.type = type, .rows = rows, .cols = cols}};
    struct weight_layout l;
    assert_int_equal(r->ops->layout(r->b, type, rows, cols, &l), 0);
    t->value = calloc((size_t)rows * cols, sizeof(*t->value));
    uint32_t scale_rows = type == WEIGHT_FP8 ? (uint32_t)div_up(rows, 128) : rows;
    size_t scale_cols = type == WEIGHT_FP8 ? div_up(cols, 128) : type == WEIGHT_FP4 ? cols / 32 : 0;
    uint8_t *data = calloc(rows, stored_row(type, cols)), *scale = calloc(scale_rows, scale_cols + 1);
    assert_true(t->value && data && scale);
    assert_int_equal(r->ops->alloc(r->b, l.data_bytes, &t->data), 0);
    for (size_t i = 0; i < scale_rows * scale_cols; i++)
        scale[i] = (uint8_t)(115 + rnd_below(&r->rnd, 8));
    random_data(r, type, rows, cols, data, scale, t->value);
    pack_in_runs(r, t, WEIGHT_DATA, data, rows, stored_row(type, cols), l.row_group, t->data);
    if (scale_cols) {
        assert_int_equal(r->ops->alloc(r->b, l.scale_bytes, &t->scale), 0);
        pack_in_runs(r, t, WEIGHT_SCALE, scale, scale_rows, scale_cols, l.scale_group, t->scale);
    }
    t->w.data = t->data;
    t->w.scale = t->scale;
    free(data);
    free(scale);
}

void weight_deinit(struct rig *r, struct test_weight *t)
{
    r->ops->free(r->b, t->data);
    r->ops->free(r->b, t->scale);
    free(t->value);
}

double weight_dot(const struct rig *r, const struct test_weight *t, uint32_t row, const float *x, double *ret_bound)
{
    const double *w = t->value + (size_t)row * t->w.cols;
    double sum = 0, terms = 0, weights = 0, max = 0;
    for (uint32_t k = 0; k < t->w.cols; k++) {
        sum += w[k] * (double)x[k];
        terms += fabs(w[k] * (double)x[k]);
        weights += fabs(w[k]);
        max = fmax(max, fabs((double)x[k]));
    }
    double denormal = r->config->numerics == NUMERICS_EXACT ? 1e-42 : 1e-37; /* fast may flush them to zero */
    *ret_bound = r->config->rel * terms + r->config->block * weights * max + denormal;
    return sum;
}

/* ---------------------------------------------------------------- sessions */

void sessions_init(struct rig *r, struct sessions *s, uint32_t n, uint32_t tokens)
{
    uint32_t each = (uint32_t)div_up(tokens, KV_PAGE_TOKENS);
    *s = (struct sessions){.n = n, .s = calloc(n, sizeof(*s->s))};
    assert_non_null(s->s);
    void *p;
    assert_int_equal(r->ops->alloc(r->b, (size_t)n * each * r->kv.page_bytes, &p), 0);
    s->pages = p;
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(r->ops->alloc(r->b, r->kv.state_bytes, &p), 0);
        s->s[i].state = p;
        memset(p, 0x55, r->kv.state_bytes); /* what another session left */
        assert_int_equal(r->ops->state_reset(r->b, p), 0);
        s->s[i].page = calloc(each, sizeof(uint32_t));
        for (uint32_t k = 0; k < each; k++) /* interleaved, backwards */
            s->s[i].page[k] = (each - 1 - k) * n + i;
    }
}

void sessions_deinit(struct rig *r, struct sessions *s)
{
    for (uint32_t i = 0; i < s->n; i++) {
        r->ops->free(r->b, s->s[i].state);
        free(s->s[i].page);
    }
    r->ops->free(r->b, s->pages);
    free(s->s);
}
