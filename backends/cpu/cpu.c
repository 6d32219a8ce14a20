/* SPDX-License-Identifier: MIT */
/* Opening and closing the CPU backend, its memory, and the table of its operations. */
#include "backends/cpu/cpu.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backends/cpu/ops.h"
#include "backends/cpu/rows.h"
#include "base/size.h"

/* Scores of at least so many entries are held at once (4 MiB), so that short contexts score many tokens in one go. */
#define SCORES_MIN (1u << 20)

/* ---------------------------------------------------------------- memory */

/* calloc leaves big memory untouched until it is used; the block's own start is kept in front of the aligned one. */
static int cpu_alloc(struct backend *b, size_t bytes, void **ret)
{
    (void)b;
    size_t size;
    if (!size_add(bytes, WEIGHT_ALIGN + sizeof(void *), &size))
        return -ENOMEM;
    void *raw = calloc(1, size);
    if (!raw)
        return -ENOMEM;
    uintptr_t at = align_up((uintptr_t)raw + sizeof(void *), WEIGHT_ALIGN);
    memcpy((void *)(at - sizeof(void *)), &raw, sizeof(raw));
    *ret = (void *)at;
    return 0;
}

static void cpu_free(struct backend *b, void *p)
{
    (void)b;
    if (!p)
        return;
    void *raw;
    memcpy(&raw, (uint8_t *)p - sizeof(raw), sizeof(raw));
    free(raw);
}

static int cpu_copy(struct backend *b, void *dst, const void *src, size_t n)
{
    (void)b;
    memcpy(dst, src, n);
    return 0;
}

static int cpu_zero(struct backend *b, void *dst, size_t n)
{
    (void)b;
    memset(dst, 0, n);
    return 0;
}

static int cpu_map_arena(struct backend *b, void *host, size_t n, void **ret)
{
    (void)b, (void)n;
    *ret = host;
    return 0;
}

static int cpu_sync(struct backend *b)
{
    (void)b;
    return 0;
}

static int cpu_layout(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols, struct weight_layout *ret)
{
    return b->k->layout(type, rows, cols, ret);
}

static void cpu_pack(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part,
                     uint32_t row, uint32_t n, const void *src, void *dst)
{
    b->k->pack(type, rows, cols, part, row, n, src, dst);
}

/* ---------------------------------------------------------------- open, close */

static void cpu_close(struct backend *b)
{
    if (!b)
        return;
    pool_free(b->pool);
    moe_scratch_free(b->moe);
    void *blocks[] = {b->token, b->rotation[0], b->rotation[1], b->scratch, b->activation, b->small, b->compressed,
                      b->score, b->index_query, b->index_item, b->index_score};
    for (size_t i = 0; i < ELEMENTS(blocks); i++)
        cpu_free(b, blocks[i]);
    free(b);
}

static struct backend *backend_free(struct backend *b)
{
    cpu_close(b);
    return NULL;
}
DEFINE_CLEANUP(struct backend *, backend_free)

/* rows * bytes of zeroed memory, none if either is 0. */
static bool reserve(struct backend *b, void *ret, size_t rows, size_t bytes)
{
    void *p = NULL;
    size_t size;
    if (!size_mul(rows, bytes, &size) || (size && cpu_alloc(b, size, &p) < 0))
        return false;
    memcpy(ret, &p, sizeof(p));
    return true;
}

/* Bytes of one row's activations, for the type that needs most. */
static size_t activation_max(const struct cpu_kernels *k, size_t cols)
{
    size_t most = 0;
    for (enum weight_type type = WEIGHT_BF16; type <= WEIGHT_F32; type++)
        most = MAX(most, k->activation_bytes(type, (uint32_t)cols));
    return most;
}

/* The same per token of a batch, for the operation that needs most. */
static size_t activation_per_token(const struct backend *b)
{
    const struct model_shape *s = b->shape;
    const struct cpu_kernels *k = b->k;
    size_t most = 0, linear[] = {s->hidden, s->q_rank, (size_t)s->o_rank * s->o_groups, (size_t)s->hidden * s->hc};
    for (size_t i = 0; i < ELEMENTS(linear); i++)
        most = MAX(most, activation_max(k, linear[i]));
    most = MAX(most, s->o_groups * activation_max(k, (size_t)s->heads * s->head_dim / s->o_groups));
    most = MAX(most, 2 * activation_max(k, s->hidden)); /* moe: routed and shared */
    return MAX(most, (s->experts_used + 1) * activation_max(k, s->expert_hidden));
}

static bool reserve_scratch(struct backend *b)
{
    const struct model_shape *s = b->shape;
    size_t T = b->max_tokens, weights = align_up(s->index_heads * sizeof(float), WEIGHT_ALIGN);
    size_t own = MAX((size_t)s->head_dim, s->rope_dim) * sizeof(float); /* what operations keep there themselves */
    b->scratch_bytes = align_up(MAX(b->k->scratch_bytes(s), own) + weights, WEIGHT_ALIGN);
    b->small_width = MAX(s->hc * (s->hc + 2), s->experts);
    b->score_count = MAX(s->max_position / 4, SCORES_MIN);
    b->index_scale = (float)(pow(s->index_dim, -0.5) * pow(s->index_heads, -0.5));
    b->moe = moe_scratch_new(s, b->max_tokens);
    return b->moe && reserve(b, &b->token, T, sizeof(*b->token)) &&
           reserve(b, &b->rotation[0], T, s->rope_dim * sizeof(float)) &&
           reserve(b, &b->rotation[1], T, s->rope_dim * sizeof(float)) &&
           reserve(b, &b->scratch, pool_threads(b->pool), b->scratch_bytes) &&
           reserve(b, &b->activation, T, activation_per_token(b)) &&
           reserve(b, &b->small, T, b->small_width * sizeof(float)) &&
           reserve(b, &b->compressed, T, MAX(s->head_dim, s->index_dim) * sizeof(float)) &&
           reserve(b, &b->score, b->score_count, sizeof(float)) &&
           reserve(b, &b->index_query, T, b->k->index_query_bytes(s)) &&
           reserve(b, &b->index_item, T, sizeof(*b->index_item)) &&
           reserve(b, &b->index_score, T, sizeof(*b->index_score));
}

static int cpu_open(const struct backend_params *params, struct backend **ret, struct fail *f)
{
    _cleanup_(backend_freep) struct backend *b = calloc(1, sizeof(*b));
    if (!b)
        return fail_oom(f);
    b->numerics = params->numerics;
    b->shape = params->shape;
    b->kv = params->kv;
    b->max_tokens = params->max_tokens;
    b->k = &cpu_kernels_exact; /* the same for every isa: exact results are everywhere the same */
    if (b->numerics == NUMERICS_FAST) {
        int r = cpu_kernels_fast(params->isa, &b->k, f);
        if (r < 0)
            return r;
    }
    int r = pool_new(params->threads, &b->pool);
    if (r < 0)
        return fail_set(f, -r, "INTERNAL", "cannot start the CPU backend's threads: %s", strerror(-r));
    if (!reserve_scratch(b))
        return fail_oom(f);
    *ret = TAKE_PTR(b);
    return 0;
}

/* ---------------------------------------------------------------- info */

/* The rest of the first line of /proc/NAME that begins with key, after ':' and blanks; "" if there is none. */
static void proc_value(const char *path, const char *key, char *ret, size_t size)
{
    char line[256];
    ret[0] = '\0';
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (!ret[0] && fgets(line, sizeof(line), file)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(ret, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
    }
    fclose(file);
}

static uint64_t meminfo(const char *key)
{
    char text[64];
    uint64_t kib = 0;
    proc_value("/proc/meminfo", key, text, sizeof(text));
    return sscanf(text, "%" SCNu64, &kib) == 1 ? kib * 1024 : 0;
}

static void cpu_info(struct backend *b, struct backend_info *ret)
{
    *ret = (struct backend_info){
        .memory_total = meminfo("MemTotal"),
        .memory_free = meminfo("MemAvailable"),
        .threads = pool_threads(b->pool),
    };
    snprintf(ret->name, sizeof(ret->name), "cpu");
    snprintf(ret->layout_id, sizeof(ret->layout_id), "%s", b->k->layout_id);
    char model[64];
    proc_value("/proc/cpuinfo", "model name", model, sizeof(model));
    snprintf(ret->product, sizeof(ret->product), "%s (%s)", model[0] ? model : "CPU", b->k->isa);
}

/* ---------------------------------------------------------------- a step */

static int cpu_batch_begin(struct backend *b, const struct backend_batch *batch)
{
    b->batch = batch;
    uint32_t r = b->shape->rope_dim;
    for (uint32_t i = 0; i < batch->n_seqs; i++)
        for (uint32_t k = 0; k < batch->seq[i].count; k++) {
            uint32_t t = batch->seq[i].first + k;
            b->token[t] = (struct cpu_token){.seq = i, .position = batch->seq[i].position + k};
            for (int kind = 0; kind < 2; kind++)
                if (b->shape->theta[kind])
                    rotation_init(b->shape->theta[kind], r, b->token[t].position, b->rotation[kind] + (size_t)t * r);
        }
    return 0;
}

const struct backend_ops backend_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .layout = cpu_layout,
    .pack = cpu_pack,
    .map_arena = cpu_map_arena,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .state_reset = cpu_state_reset,
    .sync = cpu_sync,
    .batch_begin = cpu_batch_begin,
    .embed = cpu_embed,
    .hc_pre_norm = cpu_hc_pre_norm,
    .hc_post = cpu_hc_post,
    .linear = cpu_linear,
    .norm = cpu_norm,
    .q_norm_rope = cpu_q_norm_rope,
    .kv_norm_rope_store = cpu_kv_norm_rope_store,
    .compress_store = cpu_compress_store,
    .index_topk = cpu_index_topk,
    .attention = cpu_attention,
    .kv_commit = cpu_kv_commit,
    .grouped_linear = cpu_grouped_linear,
    .route = cpu_route,
    .moe = cpu_moe,
    .hc_head_norm = cpu_hc_head_norm,
    .logits = cpu_logits,
};
