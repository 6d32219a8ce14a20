/* SPDX-License-Identifier: MIT */
/* Operations on sessions: window rows, compressor, indexer, attention; and that no cut of a prompt leaves a trace. */
#include "tests/backend/rig.h"

#define T_MAX 300

/* ---------------------------------------------------------------- reading what was stored, by the documented format */

static void row_values(const struct rig *r, const uint8_t *row, double *x)
{
    uint32_t rope = r->shape.rope_dim, n = r->shape.head_dim - rope;
    for (uint32_t i = 0; i < n; i++)
        x[i] = ref_e4m3(row[i]) * ref_scale(row[n + i / KV_BLOCK]);
    const uint8_t *at = row + align_up(n + n / KV_BLOCK, 8);
    for (uint32_t i = 0; i < rope; i++) {
        float f;
        uint16_t h;
        memcpy(&f, at + 4 * i, r->kv.rope_f32 ? 4 : 0);
        memcpy(&h, at + 2 * i, 2);
        x[n + i] = r->kv.rope_f32 ? (double)f : ref_bf16(h);
    }
}

static void index_values(const struct rig *r, const uint8_t *row, double *x)
{
    uint32_t dim = r->shape.index_dim;
    for (uint32_t i = 0; i < dim; i++)
        x[i] = ref_e2m1(row[i / 2] >> (i % 2 * 4) & 15) * ref_scale(row[dim / 2 + i / INDEX_BLOCK]);
}

/* A stored value is the rounding of something near x: off by half a step of a format with `steps` per power of two, or
 * of the block's smallest step. */
static void assert_rounded(const struct rig *r, const double *found, const double *x, uint32_t n, uint32_t block,
                           double steps, double top, double smallest)
{
    for (uint32_t i = 0; i < n; i++) {
        double amax = 0;
        for (uint32_t k = i / block * block; k < MIN(i / block * block + block, n); k++)
            amax = fmax(amax, fabs(x[k]));
        double tiny = r->config->numerics == NUMERICS_EXACT ? 1e-5 : 1e-2;
        double unit = 2 * fmax(amax / top, 3e-7 * (block == KV_BLOCK)) * smallest;
        assert_near(found[i], x[i], fmax(fabs(x[i]) / steps, unit) * (0.5 + tiny) + amax * tiny);
    }
}

static void assert_row(const struct rig *r, const uint8_t *row, const double *x)
{
    double found[512];
    uint32_t n = r->shape.head_dim - r->shape.rope_dim;
    row_values(r, row, found);
    assert_rounded(r, found, x, n, KV_BLOCK, 8, 448, 0x1p-9);
    for (uint32_t i = n; i < r->shape.head_dim; i++)
        assert_near(found[i], x[i], fabs(x[i]) * (r->kv.rope_f32 ? 0 : 0x1p-8) + 3e-6);
}

/* ---------------------------------------------------------------- batches */

struct part {
    uint32_t session, count;
};

/* A batch of parts that go on where their sessions are; the sessions move on. */
static void begin(struct rig *r, struct sessions *s, const struct part *part, uint32_t n)
{
    static struct backend_seq seq[8];
    static const uint32_t zeros[4096];
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct test_session *t = &s->s[part[i].session];
        seq[i] = (struct backend_seq){.first = at, .count = part[i].count, .position = t->position, .state = t->state,
                                      .page = t->page};
        at += part[i].count;
        t->position += part[i].count;
    }
    r->batch = (struct backend_batch){.tokens = at, .id = zeros, .n_seqs = n, .seq = seq, .pages = s->pages};
    assert_int_equal(r->ops->batch_begin(r->b, &r->batch), 0);
}

static float *filled(struct rig *r, enum style style, size_t n)
{
    float *x = floats(n);
    rnd_fill(&r->rnd, style, x, (uint32_t)n);
    return x;
}

/* ---------------------------------------------------------------- norm, rope, rounding */

static void to_double(const float *x, double *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = (double)x[i];
}

static void norm_and_rope(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    uint32_t c = s->head_dim, h = s->heads, T = 20, position = 1000;
    struct sessions ss;
    sessions_init(r, &ss, 1, 2048);
    for (uint32_t layer = 0; layer < 2; layer++)
        for (enum style style = STYLE_NORMAL; style < STYLES; style++) {
            float *q = filled(r, style, T * h * c), *q0 = floats(T * h * c), *kv = filled(r, style, T * c);
            float *norm = filled(r, STYLE_NORMAL, c);
            uint8_t *rows = calloc(T, r->kv.row_bytes);
            memcpy(q0, q, T * h * c * sizeof(float));
            ss.s[0].position = position;
            begin(r, &ss, &(struct part){0, T}, 1);
            assert_int_equal(r->ops->q_norm_rope(r->b, layer, q), 0);
            assert_int_equal(r->ops->kv_norm_rope_store(r->b, layer, kv, norm, rows), 0);
            double e[512];
            for (uint32_t i = 0; i < T * h; i++) {
                to_double(q0 + i * c, e, c);
                ref_rms(e, NULL, c, (double)s->rms_eps);
                ref_rope(e + c - s->rope_dim, r->theta[layer], s->rope_dim, position + i / h, false);
                for (uint32_t k = 0; k < c; k++)
                    assert_near((double)q[i * c + k], e[k], 1e-5 * sqrt(c) + fabs(e[k]) * r->config->scalar);
            }
            for (uint32_t t = 0; t < T; t++) {
                to_double(kv + t * c, e, c);
                ref_rms(e, norm, c, (double)s->rms_eps);
                ref_rope(e + c - s->rope_dim, r->theta[layer], s->rope_dim, position + t, false);
                assert_row(r, rows + t * r->kv.row_bytes, e);
            }
            free(q), free(q0), free(kv), free(norm), free(rows);
        }
    sessions_deinit(r, &ss);
}

/* The ring holds the last `window` rows, wherever the chunk began. */
static void commit(struct rig *r)
{
    const uint32_t counts[] = {1, 5, 12, 13, 14, 40, 1};
    uint32_t window = r->shape.window, position = 0;
    size_t bytes = r->kv.row_bytes;
    struct sessions ss;
    sessions_init(r, &ss, 2, 256);
    for (size_t i = 0; i < ELEMENTS(counts); i++) {
        uint8_t *rows = calloc(counts[i] + 1, bytes);
        for (uint32_t k = 0; k <= counts[i]; k++)
            memset(rows + k * bytes, (int)(k == 0 ? 0xff : position + k), bytes);
        begin(r, &ss, (struct part[]){{1, 1}, {0, counts[i]}}, 2); /* row 0 is the other session's */
        assert_int_equal(r->ops->kv_commit(r->b, LAYER_8, rows), 0);
        position += counts[i];
        for (uint32_t p = position > window ? position - window : 0; p < position; p++)
            assert_int_equal(ss.s[0].state[r->kv.state_ring[LAYER_8] + p % window * bytes + bytes - 1], p + 1);
        free(rows);
    }
    sessions_deinit(r, &ss);
}

/* ---------------------------------------------------------------- compressor */

/* Entry w from all tokens' k and s ([T][row]), in double. */
static void ref_entry(const struct rig *r, uint32_t layer, bool index, uint32_t w, const float *k, const float *s,
                      const struct compressor_weights *cw, double *x)
{
    uint32_t ratio = r->shape.ratio[layer], width = index ? r->shape.index_dim : r->shape.head_dim;
    uint32_t halves = ratio == 4 ? 2 : 1, row = width * halves;
    for (uint32_t e = 0; e < width; e++) {
        double max = -INFINITY, sum = 0, acc = 0;
        for (int pass = 0; pass < 2; pass++)
            for (uint32_t half = 0; half < halves; half++) {
                if (halves == 2 && half == 0 && w == 0)
                    continue;
                uint32_t from = (halves == 2 && half == 0 ? w - 1 : w) * ratio;
                for (uint32_t i = 0; i < ratio; i++) {
                    uint32_t at = (from + i) * row + half * width + e;
                    double score = (double)(s[at] + cw->ape[i * row + half * width + e]);
                    max = pass ? max : fmax(max, score);
                    sum += pass ? exp(score - max) : 0;
                    acc += pass ? exp(score - max) * (double)k[at] : 0;
                }
            }
        x[e] = acc / sum;
    }
    ref_rms(x, cw->norm, width, (double)r->shape.rms_eps);
    ref_rope(x + width - r->shape.rope_dim, r->theta[1], r->shape.rope_dim, w * ratio, false);
    if (index)
        ref_hadamard(x, width);
}

static const uint8_t *stored_entry(const struct rig *r, const struct sessions *ss, uint32_t session, uint32_t layer,
                                   bool index, uint32_t w)
{
    uint32_t per_page = KV_PAGE_TOKENS / r->shape.ratio[layer];
    const uint8_t *page = ss->pages + ss->s[session].page[w / per_page] * r->kv.page_bytes;
    return index ? page + r->kv.page_index[layer] + w % per_page * r->kv.index_row_bytes
                 : page + r->kv.page_rows[layer] + w % per_page * r->kv.row_bytes;
}

static void check_compressor(struct rig *r, uint32_t layer, bool index, float spread, uint32_t chunk)
{
    const struct model_shape *s = &r->shape;
    uint32_t ratio = s->ratio[layer], width = index ? s->index_dim : s->head_dim, T = 270;
    uint32_t row = width * (ratio == 4 ? 2 : 1);
    float *k = filled(r, STYLE_NORMAL, T * row), *sc = filled(r, STYLE_NORMAL, T * row);
    float *ape = filled(r, STYLE_NORMAL, ratio * row), *norm = filled(r, STYLE_NORMAL, width);
    for (uint32_t i = 0; i < T * row; i++)
        sc[i] *= spread;
    struct compressor_weights cw = {ape, norm};
    struct sessions ss;
    sessions_init(r, &ss, 2, 384);
    for (uint32_t at = 0; at < T; at += chunk) {
        begin(r, &ss, &(struct part){1, MIN(chunk, T - at)}, 1);
        assert_int_equal(r->ops->compress_store(r->b, layer, index, k + at * row, sc + at * row, &cw), 0);
    }
    for (uint32_t w = 0; w < T / ratio; w++) {
        double x[512], found[512];
        const uint8_t *stored = stored_entry(r, &ss, 1, layer, index, w);
        ref_entry(r, layer, index, w, k, sc, &cw, x);
        if (index) {
            index_values(r, stored, found);
            assert_rounded(r, found, x, width, INDEX_BLOCK, 2, 6, 0.5);
        } else {
            assert_row(r, stored, x);
        }
    }
    sessions_deinit(r, &ss);
    free(k), free(sc), free(ape), free(norm);
}

static void compressor(struct rig *r)
{
    const uint32_t chunks[] = {1, 7, 270};
    for (size_t i = 0; i < ELEMENTS(chunks); i++) {
        check_compressor(r, LAYER_4, false, 1, chunks[i]);
        check_compressor(r, LAYER_4, true, 1, chunks[i]);
        check_compressor(r, LAYER_8, false, 30, chunks[i]);
        check_compressor(r, LAYER_128, false, 1, chunks[i]);
        check_compressor(r, LAYER_128, false, 500, chunks[i]); /* exp would overflow without the maximum */
    }
}

/* ---------------------------------------------------------------- indexer */

/* The k highest of n in double, ties to the lower number, ascending. */
static void ref_topk(const double *score, uint32_t n, uint32_t k, uint32_t *chosen)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = 0; /* how many go before i */
        for (uint32_t j = 0; j < n && before < k; j++)
            before += score[j] > score[i] || (score[j] == score[i] && j < i);
        if (before < k)
            chosen[at++] = i;
    }
    while (at < k)
        chosen[at++] = UINT32_MAX;
}

/* Scores that are exact in any arithmetic: entries with one non-zero value, queries whose transform is one value too.
 * There are few different ones, so most choices are between equals. */
static void index_exact(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    uint32_t ih = s->index_heads, dim = s->index_dim, k = s->index_topk, T = 37, position = 900;
    struct sessions ss;
    sessions_init(r, &ss, 1, 1024);
    float *iq = floats(T * ih * dim), *weight = floats(T * ih);
    uint32_t *chosen = calloc(T * k, sizeof(*chosen)), expected[64];
    uint8_t code[256];
    for (uint32_t w = 0; w < 256; w++) {
        uint8_t *row = (uint8_t *)(uintptr_t)stored_entry(r, &ss, 0, LAYER_4, true, w);
        memset(row, 0, r->kv.index_row_bytes);
        memset(row + dim / 2, 127, dim / INDEX_BLOCK);
        /* the highest ones of either sign are rare, so that the last places go to some of many equals */
        code[w] = (uint8_t)(rnd_below(&r->rnd, 2) * 8 + (rnd_below(&r->rnd, 40) ? rnd_below(&r->rnd, 5) : 6));
        row[0] = code[w];
    }
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t head = 0; head < ih; head++) {
            weight[t * ih + head] = ldexpf(t % 3 == 0 ? -1 : 1, (int)head);
            for (uint32_t i = 0; i < dim - s->rope_dim; i++) /* all equal: the transform has its weight in place 0 */
                iq[(t * ih + head) * dim + i] = head % 2 ? -1 : 1;
        }
    ss.s[0].position = position;
    begin(r, &ss, &(struct part){0, T}, 1);
    assert_int_equal(r->ops->index_topk(r->b, LAYER_4, iq, weight, chosen), 0);
    for (uint32_t t = 0; t < T; t++) {
        double score[256];
        uint32_t n = (position + t + 1) / 4;
        for (uint32_t w = 0; w < n; w++) {
            score[w] = 0;
            for (uint32_t head = 0; head < ih; head++)
                score[w] += (double)weight[t * ih + head] * fmax(0, ref_e2m1(code[w]) * (head % 2 ? -1 : 1));
        }
        ref_topk(score, n, k, expected);
        assert_memory_equal(chosen + t * k, expected, k * sizeof(*chosen));
    }
    sessions_deinit(r, &ss);
    free(iq), free(weight), free(chosen);
}

/* Random rows and queries: no entry left out may score clearly more than one chosen. Begins below top-k entries. */
static void index_random(struct rig *r)
{
    const struct model_shape *s = &r->shape;
    uint32_t ih = s->index_heads, dim = s->index_dim, k = s->index_topk, T = 290;
    struct sessions ss;
    sessions_init(r, &ss, 1, 384);
    float *iq = filled(r, STYLE_NORMAL, T * ih * dim), *iq0 = floats(T * ih * dim);
    float *weight = filled(r, STYLE_NORMAL, T * ih);
    memcpy(iq0, iq, T * ih * dim * sizeof(float));
    uint32_t *chosen = calloc(T * k, sizeof(*chosen));
    double (*key)[64] = calloc(96, sizeof(*key));
    for (uint32_t w = 0; w < 96; w++) {
        uint8_t *row = (uint8_t *)(uintptr_t)stored_entry(r, &ss, 0, LAYER_4, true, w);
        for (uint32_t i = 0; i < r->kv.index_row_bytes; i++)
            row[i] = i < dim / 2 ? (uint8_t)rnd(&r->rnd) : (uint8_t)(120 + rnd_below(&r->rnd, 5));
        index_values(r, row, key[w]);
    }
    begin(r, &ss, &(struct part){0, T}, 1);
    assert_int_equal(r->ops->index_topk(r->b, LAYER_4, iq, weight, chosen), 0);
    for (uint32_t t = 0; t < T; t++) {
        uint32_t n = (t + 1) / 4, in = 0;
        double score[96] = {0}, q[64], least = INFINITY, size = 0;
        for (uint32_t head = 0; head < ih; head++) {
            to_double(iq0 + (t * ih + head) * dim, q, dim);
            ref_rope(q + dim - s->rope_dim, r->theta[1], s->rope_dim, t, false);
            ref_hadamard(q, dim);
            ref_round_index(q, dim);
            for (uint32_t w = 0; w < n; w++) {
                double dot = 0, terms = 0;
                for (uint32_t i = 0; i < dim; i++) {
                    dot += q[i] * key[w][i];
                    terms += fabs(q[i] * key[w][i]);
                }
                score[w] += (double)weight[t * ih + head] * fmax(dot, 0) / sqrt(dim) / sqrt(ih);
                size = fmax(size, terms * fabs((double)weight[t * ih + head]));
            }
        }
        bool taken[96] = {false};
        for (uint32_t i = 0; i < k; i++) {
            uint32_t w = chosen[t * k + i];
            if (i >= MIN(n, k)) {
                assert_int_equal(w, UINT32_MAX);
                continue;
            }
            assert_true(w < n && (i == 0 || w > chosen[t * k + i - 1]));
            taken[w] = true;
            least = fmin(least, score[w]);
            in++;
        }
        assert_int_equal(in, MIN(n, k));
        for (uint32_t w = 0; w < n; w++)
            assert_true(taken[w] || score[w] <= least + size * 1e-2);
    }
    sessions_deinit(r, &ss);
    free(iq), free(iq0), free(weight), free(chosen), free(key);
}

/* As many entries as a context of a million tokens has. All pages but one are the same, so that scores come 8191 times;
 * the other one, late, has the highest. */
static void index_long(struct rig *r)
{
    enum { PAGES = 8192, PER_PAGE = 32, OTHER = 8000 };
    const struct model_shape *s = &r->shape;
    uint32_t ih = s->index_heads, dim = s->index_dim, k = s->index_topk;
    struct sessions ss;
    sessions_init(r, &ss, 1, PAGES * KV_PAGE_TOKENS);
    for (uint32_t page = 0; page < 2; page++)
        for (uint32_t w = 0; w < PER_PAGE; w++) {
            uint8_t *row = ss.pages + page * r->kv.page_bytes + r->kv.page_index[LAYER_4] + w * r->kv.index_row_bytes;
            memset(row, 0, r->kv.index_row_bytes);
            memset(row + dim / 2, 127, dim / INDEX_BLOCK);
            row[0] = w == 5 ? 3 : w == 9 ? 2 : w == 7 && page == 1 ? 4 : 1;
        }
    memset(ss.s[0].page, 0, PAGES * sizeof(uint32_t));
    ss.s[0].page[OTHER] = 1;
    float *iq = floats(2 * ih * dim), *weight = floats(2 * ih);
    for (uint32_t i = 0; i < 2 * ih; i++) {
        weight[i] = 1;
        for (uint32_t e = 0; e < dim - s->rope_dim; e++)
            iq[i * dim + e] = 1;
    }
    uint32_t chosen[2 * 8];
    ss.s[0].position = PAGES * KV_PAGE_TOKENS - 2;
    begin(r, &ss, &(struct part){0, 2}, 1);
    assert_int_equal(r->ops->index_topk(r->b, LAYER_4, iq, weight, chosen), 0);
    for (uint32_t i = 0; i < 2 * k; i++) /* the second highest are many: the first of them */
        assert_int_equal(chosen[i], i % k == k - 1 ? OTHER * PER_PAGE + 7 : 5 + i % k * PER_PAGE);
    sessions_deinit(r, &ss);
    free(iq), free(weight);
}

/* ---------------------------------------------------------------- attention */

/* Random valid rows in a place of n of them. */
static void random_rows(struct rig *r, uint8_t *rows, uint32_t n)
{
    uint32_t rope = r->shape.rope_dim, codes = r->shape.head_dim - rope;
    size_t at = align_up(codes + codes / KV_BLOCK, 8);
    for (uint32_t w = 0; w < n; w++) {
        uint8_t *row = rows + w * r->kv.row_bytes;
        for (uint32_t i = 0; i < codes; i++)
            do
                row[i] = (uint8_t)rnd(&r->rnd);
            while ((row[i] & 0x7f) == 0x7f);
        for (uint32_t i = 0; i < codes / KV_BLOCK; i++)
            row[codes + i] = (uint8_t)(118 + rnd_below(&r->rnd, 3));
        for (uint32_t i = 0; i < rope; i++) {
            float v = rnd_normal(&r->rnd);
            memcpy(row + at + i * (r->kv.rope_f32 ? 4 : 2), (uint8_t *)&v + (r->kv.rope_f32 ? 0 : 2),
                   r->kv.rope_f32 ? 4 : 2);
        }
    }
}

struct attention_case {
    struct sessions ss;
    uint8_t *rows;
    float *q, *o, *sink;
    uint32_t *chosen, layer, before, T; /* before: tokens that are in the ring already */
};

/* Which rows a query at `position` reads, in order. */
static uint32_t rows_of(const struct rig *r, const struct attention_case *a, uint32_t t, const uint8_t **row)
{
    uint32_t position = a->before + t, window = r->shape.window, ratio = r->shape.ratio[a->layer], n = 0;
    for (uint32_t p = position + 1 > window ? position + 1 - window : 0; p <= position; p++)
        row[n++] = p >= a->before ? a->rows + (p - a->before) * r->kv.row_bytes
                                  : a->ss.s[0].state + r->kv.state_ring[a->layer] + p % window * r->kv.row_bytes;
    for (uint32_t w = 0; ratio && w < (position + 1) / ratio; w++) {
        bool see = ratio != 4;
        for (uint32_t i = 0; i < r->shape.index_topk && !see; i++)
            see = a->chosen[t * r->shape.index_topk + i] == w;
        if (see)
            row[n++] = stored_entry(r, &a->ss, 0, a->layer, false, w);
    }
    return n;
}

static void check_query(struct rig *r, const struct attention_case *a, uint32_t t, uint32_t head)
{
    const struct model_shape *s = &r->shape;
    uint32_t c = s->head_dim;
    const uint8_t *row[256];
    uint32_t n = rows_of(r, a, t, row);
    double (*key)[512] = calloc(n, sizeof(*key)), p[256], sum, max = (double)a->sink[head], most = 0, o[512] = {0};
    for (uint32_t i = 0; i < n; i++) {
        row_values(r, row[i], key[i]);
        p[i] = 0;
        for (uint32_t e = 0; e < c; e++) {
            p[i] += (double)a->q[(t * s->heads + head) * c + e] * key[i][e] / sqrt(c);
            most = fmax(most, fabs(key[i][e]));
        }
        max = fmax(max, p[i]);
    }
    sum = exp((double)a->sink[head] - max);
    for (uint32_t i = 0; i < n; i++) {
        sum += p[i] = exp(p[i] - max);
        for (uint32_t e = 0; e < c; e++)
            o[e] += p[i] * key[i][e];
    }
    for (uint32_t e = 0; e < c; e++)
        o[e] /= sum;
    ref_rope(o + c - s->rope_dim, r->theta[s->ratio[a->layer] != 0], s->rope_dim, a->before + t, true);
    for (uint32_t e = 0; e < c; e++)
        assert_near((double)a->o[(t * s->heads + head) * c + e], o[e], r->config->row * most);
    free(key);
}

static void attention_case_init(struct rig *r, struct attention_case *a, uint32_t layer, uint32_t before, uint32_t T,
                                float size)
{
    const struct model_shape *s = &r->shape;
    *a = (struct attention_case){.layer = layer, .before = before, .T = T};
    sessions_init(r, &a->ss, 1, 640);
    random_rows(r, a->ss.s[0].state + r->kv.state_ring[layer], s->window);
    for (uint32_t page = 0; page < 5 && s->ratio[layer]; page++)
        random_rows(r, a->ss.pages + page * r->kv.page_bytes + r->kv.page_rows[layer], KV_PAGE_TOKENS / s->ratio[layer]);
    a->rows = calloc(T, r->kv.row_bytes);
    random_rows(r, a->rows, T);
    a->q = filled(r, STYLE_NORMAL, T * s->heads * s->head_dim);
    for (uint32_t i = 0; i < T * s->heads * s->head_dim; i++)
        a->q[i] *= size;
    a->sink = filled(r, STYLE_NORMAL, s->heads);
    a->sink[1] = 90;
    a->sink[2] = -90;
    a->sink[3] = -INFINITY;
    a->o = floats(T * s->heads * s->head_dim);
    a->chosen = calloc(T * s->index_topk, sizeof(uint32_t));
    for (uint32_t t = 0; t < T; t++) { /* every third entry, so far as complete */
        uint32_t n = 0;
        for (uint32_t w = t % 3; w < (before + t + 1) / 4 && n < s->index_topk; w += 3)
            a->chosen[t * s->index_topk + n++] = w;
        while (n < s->index_topk)
            a->chosen[t * s->index_topk + n++] = UINT32_MAX;
    }
}

static void attention_case_deinit(struct rig *r, struct attention_case *a)
{
    sessions_deinit(r, &a->ss);
    free(a->rows), free(a->q), free(a->sink), free(a->o), free(a->chosen);
}

static void attention(struct rig *r)
{
    const struct {
        uint32_t layer, before, T;
        float size;
    } cases[] = {
        {LAYER_PLAIN, 0, 1, 1}, {LAYER_PLAIN, 0, 30, 1}, {LAYER_PLAIN, 100, 5, 1}, {LAYER_4, 0, 40, 1},
        {LAYER_4, 511, 3, 1},   {LAYER_8, 0, 20, 1},     {LAYER_8, 613, 9, 1},     {LAYER_8, 600, 1, 30},
        {LAYER_128, 126, 3, 1}, {LAYER_128, 639, 1, 0},
    };
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        struct attention_case a;
        attention_case_init(r, &a, cases[i].layer, cases[i].before, cases[i].T, cases[i].size);
        a.ss.s[0].position = a.before;
        begin(r, &a.ss, &(struct part){0, a.T}, 1);
        assert_int_equal(r->ops->attention(r->b, a.layer, a.q, a.rows, r->shape.ratio[a.layer] == 4 ? a.chosen : NULL,
                                           a.sink, a.o), 0);
        for (uint32_t t = 0; t < a.T; t++)
            for (uint32_t head = 0; head < r->shape.heads; head++)
                check_query(r, &a, t, head);
        attention_case_deinit(r, &a);
    }
}

/* ---------------------------------------------------------------- all of them, cut into chunks */

struct inputs {
    float *kv, *norm, *k, *s, *ik, *is, *iq, *iw, *q, *sink, *ape, *iape, *inorm;
};

/* Rows at[0], at[1], ... of x. */
static float *gather(const float *x, const uint32_t *at, uint32_t n, uint32_t width)
{
    float *y = floats(n * width);
    for (uint32_t i = 0; i < n; i++)
        memcpy(y + i * width, x + at[i] * width, width * sizeof(float));
    return y;
}

/* One layer's operations for a batch whose tokens are the inputs' numbers at[0], at[1], ... */
static void run_layer(struct rig *r, uint32_t layer, const struct inputs *in, const uint32_t *at, float *o_all,
                      uint32_t *chosen_all)
{
    const struct model_shape *s = &r->shape;
    uint32_t T = r->batch.tokens, c = s->head_dim, ratio = s->ratio[layer], topk = s->index_topk;
    uint32_t halves = ratio == 4 ? 2 : 1, ihd = s->index_heads * s->index_dim;
    float *kv = gather(in->kv, at, T, c), *q = gather(in->q, at, T, s->heads * c), *o = floats(T * s->heads * c);
    float *k = gather(in->k, at, T, c * halves), *sc = gather(in->s, at, T, c * halves);
    uint32_t *chosen = calloc(T * topk, sizeof(*chosen));
    uint8_t *rows = calloc(T, r->kv.row_bytes);
    int e = r->ops->q_norm_rope(r->b, layer, q) | r->ops->kv_norm_rope_store(r->b, layer, kv, in->norm, rows);
    struct compressor_weights main = {in->ape, in->norm}, index = {in->iape, in->inorm};
    if (ratio)
        e |= r->ops->compress_store(r->b, layer, false, k, sc, &main);
    if (ratio == 4) {
        float *ik = gather(in->ik, at, T, 2 * s->index_dim), *is = gather(in->is, at, T, 2 * s->index_dim);
        float *iq = gather(in->iq, at, T, ihd), *iw = gather(in->iw, at, T, s->index_heads);
        e |= r->ops->compress_store(r->b, layer, true, ik, is, &index);
        e |= r->ops->index_topk(r->b, layer, iq, iw, chosen);
        free(ik), free(is), free(iq), free(iw);
    }
    e |= r->ops->attention(r->b, layer, q, rows, ratio == 4 ? chosen : NULL, in->sink, o);
    e |= r->ops->kv_commit(r->b, layer, rows);
    assert_int_equal(e, 0);
    for (uint32_t t = 0; t < T; t++) {
        memcpy(o_all + at[t] * s->heads * c, o + t * s->heads * c, s->heads * c * sizeof(float));
        memcpy(chosen_all + at[t] * topk, chosen + t * topk, topk * sizeof(*chosen));
    }
    free(kv), free(q), free(o), free(k), free(sc), free(chosen), free(rows);
}

static uint64_t digest(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

/* Two sessions of N tokens each (inputs 0 .. N-1 and N .. 2N-1), chunk[0] and chunk[1] tokens per step; chunk[1] 0: the
 * second one runs alone afterwards. States, pages and results together are what must be equal. */
static uint64_t run_cut(struct rig *r, const struct inputs *in, uint32_t N, const uint32_t chunk[2])
{
    const struct model_shape *s = &r->shape;
    uint64_t h = 1;
    size_t o_size = (size_t)2 * N * s->heads * s->head_dim, chosen_size = (size_t)2 * N * s->index_topk;
    float *o = floats(LAYERS * o_size);
    uint32_t *chosen = calloc(LAYERS * chosen_size, sizeof(*chosen));
    struct sessions ss;
    sessions_init(r, &ss, 2, N);
    while (ss.s[0].position < N || ss.s[1].position < N) {
        struct part part[2];
        uint32_t n = 0, at[2 * T_MAX], T = 0;
        for (uint32_t i = 0; i < 2; i++) {
            bool waits = i == 1 && chunk[1] == 0 && ss.s[0].position < N;
            uint32_t size = chunk[i] ? chunk[i] : chunk[0], left = N - ss.s[i].position;
            if (waits || left == 0)
                continue;
            part[n++] = (struct part){i, MIN(size, left)};
            for (uint32_t k = 0; k < MIN(size, left); k++)
                at[T++] = i * N + ss.s[i].position + k;
        }
        begin(r, &ss, part, n);
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            run_layer(r, layer, in, at, o + layer * o_size, chosen + layer * chosen_size);
    }
    h = digest(h, o, LAYERS * o_size * sizeof(*o));
    h = digest(h, chosen, LAYERS * chosen_size * sizeof(*chosen));
    for (uint32_t i = 0; i < 2; i++)
        h = digest(h, ss.s[i].state, r->kv.state_bytes);
    h = digest(h, ss.pages, 2 * div_up(N, KV_PAGE_TOKENS) * r->kv.page_bytes);
    sessions_deinit(r, &ss);
    free(o), free(chosen);
    return h;
}

static void inputs_init(struct rig *r, struct inputs *in, uint32_t n)
{
    const struct model_shape *s = &r->shape;
    uint32_t c = s->head_dim, ic = s->index_dim;
    *in = (struct inputs){
        .kv = filled(r, STYLE_NORMAL, n * c), .norm = filled(r, STYLE_NORMAL, c),
        .k = filled(r, STYLE_NORMAL, n * 2 * c), .s = filled(r, STYLE_NORMAL, n * 2 * c),
        .ik = filled(r, STYLE_NORMAL, n * 2 * ic), .is = filled(r, STYLE_NORMAL, n * 2 * ic),
        .iq = filled(r, STYLE_NORMAL, n * s->index_heads * ic), .iw = filled(r, STYLE_NORMAL, n * s->index_heads),
        .q = filled(r, STYLE_NORMAL, n * s->heads * c), .sink = filled(r, STYLE_NORMAL, s->heads),
        .ape = filled(r, STYLE_NORMAL, 128 * c), .iape = filled(r, STYLE_NORMAL, 8 * ic),
        .inorm = filled(r, STYLE_NORMAL, ic),
    };
}

static void inputs_deinit(struct inputs *in)
{
    float *all[] = {in->kv, in->norm, in->k, in->s, in->ik, in->is, in->iq, in->iw, in->q, in->sink, in->ape, in->iape,
                    in->inorm};
    for (size_t i = 0; i < ELEMENTS(all); i++)
        free(all[i]);
}

static void same_bits_however_cut(void **unused)
{
    (void)unused;
    enum { N = 270 };
    const uint32_t cuts[][2] = {{N, 0}, {1, 0}, {7, 0}, {1, 7}, {64, 1}, {129, 33}, {5, N}};
    uint64_t expected[2];
    bool have[2] = {false, false};
    for (size_t i = 0; i < n_configs; i++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            struct rig r;
            if (!rig_open(&r, &configs[i], threads, 2 * T_MAX))
                break;
            struct inputs in;
            inputs_init(&r, &in, 2 * N);
            for (size_t k = 0; k < ELEMENTS(cuts); k++) {
                enum numerics n = configs[i].numerics;
                uint64_t h = run_cut(&r, &in, N, cuts[k]);
                if (have[n] && h != expected[n])
                    fail_msg("%s, %u threads, chunks of %u and %u: other bits than the first run", configs[i].name,
                             threads, cuts[k][0], cuts[k][1]);
                expected[n] = h;
                have[n] = true;
            }
            inputs_deinit(&in);
            rig_close(&r);
        }
    assert_true(have[NUMERICS_EXACT] && have[NUMERICS_FAST]);
}

/* ---------------------------------------------------------------- */

typedef void (*check_fn)(struct rig *r);

static void for_all(check_fn check)
{
    for (size_t i = 0; i < n_configs; i++)
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
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
CHECK(norm_and_rope)
CHECK(commit)
CHECK(compressor)
CHECK(index_exact)
CHECK(index_random)
CHECK(attention)

static void test_index_long(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < n_configs; i++) {
        struct rig r;
        rig_shape(&r);
        r.shape.max_position = 1u << 20;
        if (!rig_open_shape(&r, &configs[i], 2, 2))
            continue;
        index_long(&r);
        rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_and_rope),
        cmocka_unit_test(test_commit),
        cmocka_unit_test(test_compressor),
        cmocka_unit_test(test_index_exact),
        cmocka_unit_test(test_index_random),
        cmocka_unit_test(test_index_long),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(same_bits_however_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
