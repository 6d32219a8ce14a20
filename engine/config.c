/* SPDX-License-Identifier: MIT */
/*
 * See config.h. Ranges are generous, but such that every product of two sizes used anywhere fits 48 bits: no row or
 * column count passes 2^24. What the engine does not compute is refused by name, never ignored.
 */
#include "engine/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "engine/json.h"
#include "engine/rope.h"

#define CONFIG_FILE "config.json"
#define GENERATION_FILE "generation_config.json"
#define CONFIG_BYTES_MAX (4u << 20)
#define WIDTH_MAX (1u << 24) /* rows or columns of one matrix */
#define MTP_MAX 16u
#define REQUIRED (-1)

struct config {
    struct model_config public;
    float theta[]; /* [2][rope_dim / 2] */
};

struct int_key {
    const char *name;
    size_t offset; /* of the uint32_t in struct model_config */
    uint32_t min, max, multiple;
    int64_t fallback; /* the released value, or REQUIRED */
};
#define SHAPE(member) offsetof(struct model_config, shape.member)

static const struct int_key int_keys[] = {
    {"vocab_size", SHAPE(vocab), 1, WIDTH_MAX, 1, REQUIRED},
    {"hidden_size", SHAPE(hidden), 32, 65536, 32, REQUIRED},
    {"num_hidden_layers", SHAPE(layers), 1, MAX_LAYERS, 1, REQUIRED},
    {"num_attention_heads", SHAPE(heads), 1, 4096, 1, REQUIRED},
    {"head_dim", SHAPE(head_dim), KV_BLOCK + 2, 8192, 2, REQUIRED},
    {"qk_rope_head_dim", SHAPE(rope_dim), 2, 4096, 2, REQUIRED},
    {"q_lora_rank", SHAPE(q_rank), 1, 65536, 1, REQUIRED},
    {"o_groups", SHAPE(o_groups), 1, 4096, 1, REQUIRED},
    {"o_lora_rank", SHAPE(o_rank), 1, 65536, 1, REQUIRED},
    {"n_routed_experts", SHAPE(experts), 1, 4096, 1, REQUIRED},
    {"num_experts_per_tok", SHAPE(experts_used), 1, 256, 1, REQUIRED},
    {"moe_intermediate_size", SHAPE(expert_hidden), 32, 65536, 32, REQUIRED},
    {"num_hash_layers", SHAPE(hash_layers), 0, MAX_LAYERS, 1, REQUIRED},
    {"sliding_window", SHAPE(window), 1, 65536, 1, REQUIRED},
    {"index_n_heads", SHAPE(index_heads), 1, 4096, 1, REQUIRED},
    {"index_head_dim", SHAPE(index_dim), INDEX_BLOCK, INDEX_DIM_MAX, 1, REQUIRED},
    {"index_topk", SHAPE(index_topk), 1, 65536, 1, REQUIRED},
    {"max_position_embeddings", SHAPE(max_position), 1, 1u << 30, 1, 1048576},
    {"hc_mult", SHAPE(hc), 1, HC_MAX, 1, 4},
    {"hc_sinkhorn_iters", SHAPE(hc_iterations), 1, 1000, 1, 20},
    {"num_nextn_predict_layers", offsetof(struct model_config, mtp_layers), 0, MTP_MAX, 1, 1},
    {"bos_token_id", offsetof(struct model_config, bos), 0, WIDTH_MAX - 1, 1, 0},
    {"eos_token_id", offsetof(struct model_config, eos), 0, WIDTH_MAX - 1, 1, 1},
};

struct float_key {
    const char *name;
    size_t offset; /* of the float in struct model_config */
    double min, max, fallback;
};
static const struct float_key float_keys[] = {
    {"rms_norm_eps", SHAPE(rms_eps), 1e-30, 1, 1e-6},
    {"hc_eps", SHAPE(hc_eps), 1e-30, 1, 1e-6},
    {"swiglu_limit", SHAPE(swiglu_limit), 1e-3, 1e6, 10},
    {"routed_scaling_factor", SHAPE(routed_scale), 1e-6, 1e6, 1.5},
};

/* Keys that may only say what is computed anyway. Absent ones are taken to say so. `object` NULL: top level. */
struct fixed_key {
    const char *object, *name, *expected; /* JSON text */
};
static const struct fixed_key fixed_keys[] = {
    {NULL, "model_type", "\"deepseek_v4\""},
    {NULL, "scoring_func", "\"sqrtsoftplus\""},
    {NULL, "topk_method", "\"noaux_tc\""},
    {NULL, "norm_topk_prob", "true"},
    {NULL, "hidden_act", "\"silu\""},
    {NULL, "tie_word_embeddings", "false"},
    {NULL, "attention_bias", "false"},
    {NULL, "n_shared_experts", "1"},
    {NULL, "num_key_value_heads", "1"},
    {"rope_scaling", "type", "\"yarn\""},
    {"rope_scaling", "rope_type", "\"yarn\""},
    {"quantization_config", "quant_method", "\"fp8\""},
    {"quantization_config", "fmt", "\"e4m3\""},
    {"quantization_config", "scale_fmt", "\"ue8m0\""},
    {"quantization_config", "activation_scheme", "\"dynamic\""},
    {"quantization_config", "weight_block_size", "[128, 128]"},
};

/* ---------------------------------------------------------------- one value */

static int wrong(struct fail *f, const char *file, const char *key, const json_t *found, const char *expected)
{
    char shown[JSON_SHOWN];

    fail_set(f, EINVAL, "CONFIG", "%s: key %s: found %s, expected %s", file, key, json_show(found, shown), expected);
    fail_field(f, key);
    return -EINVAL;
}

static int read_int(const json_t *root, const struct int_key *k, uint32_t *ret, struct fail *f)
{
    const json_t *j = json_object_get(root, k->name);
    char expected[96];

    if (!j && k->fallback != REQUIRED) {
        *ret = (uint32_t)k->fallback;
        return 0;
    }
    if (json_is_integer(j)) {
        json_int_t v = json_integer_value(j);
        if (v >= k->min && v <= k->max && v % k->multiple == 0) {
            *ret = (uint32_t)v;
            return 0;
        }
    }
    if (k->multiple > 1)
        snprintf(expected, sizeof(expected), "a multiple of %u from %u to %u", k->multiple, k->min, k->max);
    else
        snprintf(expected, sizeof(expected), "a whole number from %u to %u", k->min, k->max);
    return wrong(f, CONFIG_FILE, k->name, j, expected);
}

static int read_number(const json_t *object, const char *file, const char *key, double min, double max, double fallback,
                       double *ret, struct fail *f)
{
    const json_t *j = json_object_get(object, key);
    char expected[96];

    if (!j) {
        *ret = fallback;
        return 0;
    }
    double v = json_number_value(j);
    if (json_is_number(j) && isfinite(v) && v >= min && v <= max) {
        *ret = v;
        return 0;
    }
    snprintf(expected, sizeof(expected), "a number from %g to %g", min, max);
    return wrong(f, file, key, j, expected);
}

static int check_fixed(const json_t *root, const struct fixed_key *k, struct fail *f)
{
    const json_t *object = k->object ? json_object_get(root, k->object) : root;
    const json_t *found = json_object_get(object, k->name);
    char key[96];

    snprintf(key, sizeof(key), "%s%s%s", k->object ? k->object : "", k->object ? "." : "", k->name);
    if (!found)
        return 0;
    _cleanup_json_ json_t *expected = json_loads(k->expected, JSON_DECODE_ANY, NULL);
    if (!expected)
        return fail_oom(f);
    return json_equal(found, expected) ? 0 : wrong(f, CONFIG_FILE, key, found, k->expected);
}

/* ---------------------------------------------------------------- groups of values */

static int read_architecture(const json_t *root, struct fail *f)
{
    const json_t *list = json_object_get(root, "architectures");

    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (s && strcmp(s, "DeepseekV4ForCausalLM") == 0)
            return 0;
    }
    return list ? wrong(f, CONFIG_FILE, "architectures", json_array_size(list) ? json_array_get(list, 0) : list,
                        "\"DeepseekV4ForCausalLM\"") : 0;
}

static int read_expert_type(const json_t *root, enum weight_type *ret, struct fail *f)
{
    const json_t *j = json_object_get(root, "expert_dtype");
    const char *s = json_string_value(j);

    if (j && !json_is_null(j) && (!s || (strcmp(s, "fp4") != 0 && strcmp(s, "fp8") != 0)))
        return wrong(f, CONFIG_FILE, "expert_dtype", j, "\"fp4\", \"fp8\" or no such key (FP8)");
    *ret = s && strcmp(s, "fp4") == 0 ? WEIGHT_FP4 : WEIGHT_FP8;
    return 0;
}

static bool ratio_ok(json_int_t v)
{
    return v == 0 || v == 4 || (v >= 8 && v <= KV_PAGE_TOKENS && KV_PAGE_TOKENS % v == 0);
}

/* One entry per layer; entries beyond belong to MTP blocks, which have no compression (released files without MTP weights
 * keep its entry). */
static int read_ratios(const json_t *root, struct model_config *c, struct fail *f)
{
    const json_t *list = json_object_get(root, "compress_ratios");
    size_t n = json_array_size(list);
    char expected[96], key[40];

    if (!json_is_array(list) || n < c->shape.layers || n > c->shape.layers + MTP_MAX) {
        snprintf(expected, sizeof(expected), "an array of %u to %u: one per layer, then MTP blocks", c->shape.layers,
                 c->shape.layers + MTP_MAX);
        return wrong(f, CONFIG_FILE, "compress_ratios", list, expected);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(list, i);
        json_int_t v = json_integer_value(j);
        snprintf(key, sizeof(key), "compress_ratios[%zu]", i);
        if (!json_is_integer(j) || !ratio_ok(v))
            return wrong(f, CONFIG_FILE, key, j, "0, 4, 8, 16, 32, 64 or 128");
        if (i >= c->shape.layers && v != 0)
            return wrong(f, CONFIG_FILE, key, j, "0 for an MTP block");
        if (i < c->shape.layers)
            c->shape.ratio[i] = (uint16_t)v;
    }
    return 0;
}

/* What must hold between keys: `key` is to blame when it does not. */
static int check_together(const json_t *root, const struct model_config *c, struct fail *f)
{
    const struct model_shape *s = &c->shape;
    const struct {
        bool ok;
        const char *key, *expected;
    } rules[] = {
        {s->rope_dim < s->head_dim, "qk_rope_head_dim", "less than head_dim"},
        {s->rope_dim >= s->head_dim || (s->head_dim - s->rope_dim) % KV_BLOCK == 0, "head_dim",
         "qk_rope_head_dim and a multiple of 64"},
        {s->heads <= WIDTH_MAX / s->head_dim, "num_attention_heads", "at most 2^24 / head_dim"},
        {s->heads % s->o_groups == 0, "o_groups", "a divisor of num_attention_heads"},
        {s->o_groups <= WIDTH_MAX / s->o_rank, "o_lora_rank", "at most 2^24 / o_groups"},
        {s->experts_used <= s->experts, "num_experts_per_tok", "at most n_routed_experts"},
        {(s->index_dim & (s->index_dim - 1)) == 0, "index_head_dim", "a power of two"},
        {s->index_dim >= s->rope_dim, "index_head_dim", "at least qk_rope_head_dim"},
        {s->index_heads <= WIDTH_MAX / s->index_dim, "index_n_heads", "at most 2^24 / index_head_dim"},
        {c->bos < s->vocab, "bos_token_id", "less than vocab_size"},
        {c->eos < s->vocab, "eos_token_id", "less than vocab_size"},
    };

    for (size_t i = 0; i < ELEMENTS(rules); i++)
        if (!rules[i].ok)
            return wrong(f, CONFIG_FILE, rules[i].key, json_object_get(root, rules[i].key), rules[i].expected);
    return 0;
}

static int read_yarn(const json_t *root, struct yarn *y, struct fail *f)
{
    const json_t *o = json_object_get(root, "rope_scaling");
    int r;

    if (!json_is_object(o))
        return wrong(f, CONFIG_FILE, "rope_scaling", o, "an object with factor, beta_fast, beta_slow and "
                     "original_max_position_embeddings");
    if ((r = read_number(o, CONFIG_FILE, "factor", 1, 1e6, 16, &y->factor, f)) < 0 ||
        (r = read_number(o, CONFIG_FILE, "original_max_position_embeddings", 1, 1u << 30, 65536, &y->original_positions,
                         f)) < 0 ||
        (r = read_number(o, CONFIG_FILE, "beta_fast", 1e-3, 1e6, 32, &y->beta_fast, f)) < 0 ||
        (r = read_number(o, CONFIG_FILE, "beta_slow", 1e-3, 1e6, 1, &y->beta_slow, f)) < 0)
        return r;
    if (y->beta_fast < y->beta_slow)
        return wrong(f, CONFIG_FILE, "beta_fast", json_object_get(o, "beta_fast"), "at least beta_slow");
    return 0;
}

static int read_theta(const json_t *root, struct config *c, struct fail *f)
{
    struct model_shape *s = &c->public.shape;
    double base[2];
    struct yarn yarn;
    int r;

    if ((r = read_yarn(root, &yarn, f)) < 0 ||
        (r = read_number(root, CONFIG_FILE, "rope_theta", 2, 1e12, 10000, &base[0], f)) < 0 ||
        (r = read_number(root, CONFIG_FILE, "compress_rope_theta", 2, 1e12, 160000, &base[1], f)) < 0)
        return r;
    rope_theta(c->theta, s->rope_dim, base[0], NULL);
    rope_theta(c->theta + s->rope_dim / 2, s->rope_dim, base[1], &yarn);
    s->theta[0] = c->theta;
    s->theta[1] = c->theta + s->rope_dim / 2;
    return 0;
}

static int read_keys(const json_t *root, struct model_config *c, struct fail *f)
{
    int r;

    for (size_t i = 0; i < ELEMENTS(fixed_keys); i++)
        if ((r = check_fixed(root, &fixed_keys[i], f)) < 0)
            return r;
    for (size_t i = 0; i < ELEMENTS(int_keys); i++)
        if ((r = read_int(root, &int_keys[i], (uint32_t *)(void *)((char *)c + int_keys[i].offset), f)) < 0)
            return r;
    for (size_t i = 0; i < ELEMENTS(float_keys); i++) {
        const struct float_key *k = &float_keys[i];
        double v;
        if ((r = read_number(root, CONFIG_FILE, k->name, k->min, k->max, k->fallback, &v, f)) < 0)
            return r;
        *(float *)(void *)((char *)c + k->offset) = (float)v;
    }
    if ((r = read_architecture(root, f)) < 0 || (r = read_expert_type(root, &c->expert_type, f)) < 0 ||
        (r = read_ratios(root, c, f)) < 0)
        return r;
    c->shape.hash_layers = MIN(c->shape.hash_layers, c->shape.layers); /* a model cut short keeps the whole one's number */
    return check_together(root, c, f);
}

static int read_generation(const char *json, size_t size, struct model_config *c, struct fail *f)
{
    _cleanup_json_ json_t *root = NULL;
    double temperature = 1, top_p = 1;
    int r;

    if (json && ((r = json_parse_object(json, size, GENERATION_FILE, &root, f)) < 0 ||
                 (r = read_number(root, GENERATION_FILE, "temperature", 0, 2, 1, &temperature, f)) < 0 ||
                 (r = read_number(root, GENERATION_FILE, "top_p", 1e-6, 1, 1, &top_p, f)) < 0))
        return r;
    c->sampling.temperature = (float)temperature;
    c->sampling.top_p = (float)top_p;
    return 0;
}

/* ---------------------------------------------------------------- whole files */

int model_config_parse(const char *json, size_t size, const char *generation_json, size_t generation_size,
                       struct model_config **ret, struct fail *f)
{
    _cleanup_json_ json_t *root = NULL;
    struct model_config read = {0};
    int r;

    if ((r = json_parse_object(json, size, CONFIG_FILE, &root, f)) < 0 || (r = read_keys(root, &read, f)) < 0 ||
        (r = read_generation(generation_json, generation_size, &read, f)) < 0)
        return r;
    _cleanup_free_ struct config *c = calloc(1, sizeof(*c) + read.shape.rope_dim * sizeof(float));
    if (!c)
        return fail_oom(f);
    c->public = read;
    if ((r = read_theta(root, c, f)) < 0)
        return r;
    *ret = &TAKE_PTR(c)->public;
    return 0;
}

int model_config_read(int dir_fd, struct model_config **ret, struct fail *f)
{
    _cleanup_free_ char *json = NULL, *generation = NULL;
    size_t size, generation_size = 0;

    int r = fd_read_file(dir_fd, CONFIG_FILE, CONFIG_BYTES_MAX, &json, &size, f);
    if (r < 0)
        return r;
    r = fd_read_file(dir_fd, GENERATION_FILE, CONFIG_BYTES_MAX, &generation, &generation_size, f);
    if (r < 0 && r != -ENOENT)
        return r;
    return model_config_parse(json, size, generation, generation_size, ret, f);
}

struct model_config *model_config_free(struct model_config *c)
{
    if (c)
        free(CONTAINER_OF(c, struct config, public));
    return NULL;
}
