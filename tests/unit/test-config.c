/* SPDX-License-Identifier: MIT */
/* config.json: what is read, what is refused and how it is said. Starts from the config of models/nano. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "engine/config.h"
#include "engine/json.h"
#include "engine/rope.h"
#include "engine/tensors.h"

static json_t *nano_json(void)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/models/nano/config.json", getenv("top_srcdir"));
    json_t *j = json_load_file(path, 0, NULL);
    assert_non_null(j);
    return j;
}

static int parse_text(const char *text, struct model_config **ret, struct fail *f)
{
    return model_config_parse(text, strlen(text), NULL, 0, ret, f);
}

/* nano with `key` (or object.key) set to a JSON value; NULL: removed. */
static int parse_with(const char *object, const char *key, const char *value, struct model_config **ret,
                      struct fail *f)
{
    _cleanup_json_ json_t *root = nano_json();
    json_t *o = object ? json_object_get(root, object) : root;

    assert_non_null(o);
    if (value)
        assert_int_equal(json_object_set_new(o, key, json_loads(value, JSON_DECODE_ANY, NULL)), 0);
    else
        assert_int_equal(json_object_del(o, key), 0);
    char *text = json_dumps(root, JSON_INDENT(2));
    assert_non_null(text);
    int r = parse_text(text, ret, f);
    free(text);
    return r;
}

static void assert_refused(const char *object, const char *key, const char *value, const char *field)
{
    struct model_config *c = NULL;
    struct fail f = FAIL_INIT;

    if (parse_with(object, key, value, &c, &f) != -EINVAL)
        fail_msg("%s = %s was accepted", key, value ? value : "nothing");
    assert_null(c);
    assert_string_equal(f.code, "CONFIG");
    assert_string_equal(f.field, field);
    assert_non_null(strstr(f.message, "config.json"));
    assert_non_null(strstr(f.message, field));
    assert_non_null(strstr(f.message, "found"));
    assert_non_null(strstr(f.message, "expected"));
}

static struct model_config *accepted(const char *object, const char *key, const char *value)
{
    struct model_config *c = NULL;
    struct fail f = FAIL_INIT;

    if (parse_with(object, key, value, &c, &f) < 0)
        fail_msg("%s = %s: %s", key, value ? value : "nothing", f.message);
    return c;
}

static void nano_is_read(void **state)
{
    (void)state;
    char path[4096];
    struct model_config *c = NULL;

    snprintf(path, sizeof(path), "%s/models/nano", getenv("top_srcdir"));
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY);
    assert_int_equal(model_config_read(fd, &c, NULL), 0);
    const struct model_shape *s = &c->shape;
    assert_int_equal(s->vocab, 512);
    assert_int_equal(s->hidden, 128);
    assert_int_equal(s->layers, 6);
    assert_int_equal(s->experts_used, 2);
    assert_int_equal(s->hash_layers, 2);
    assert_int_equal(s->window, 16);
    assert_int_equal(s->ratio[1], 0);
    assert_int_equal(s->ratio[2], 4);
    assert_int_equal(s->ratio[5], 128);
    assert_int_equal(s->max_position, 1048576);
    assert_true(s->routed_scale == 1.5f && s->swiglu_limit == 10 && s->hc_eps == 1e-6f);
    assert_int_equal(c->expert_type, WEIGHT_FP4);
    assert_int_equal(c->mtp_layers, 1);
    assert_int_equal(c->eos, 1);
    assert_true(c->sampling.temperature == 1 && c->sampling.top_p == 1);
    model_config_free(c);
}

static void theta_is_the_references(void **state)
{
    (void)state;
    /* float32 numpy, tests/golden/reference.py: base 160000, factor 16, 65536 positions, beta 32 and 1, r = 64 */
    static const struct {
        int i;
        float plain, yarn;
    } golden[] = {
        {0, 1.e+00f, 1.e+00f}, {1, 7.498942e-01f, 6.8765604e-01f},
        {7, 1.3335215e-01f, 7.2710775e-02f}, {15, 1.3335215e-02f, 3.6355385e-03f},
        {16, 1.e-02f, 2.265625e-03f}, {18, 5.6234132e-03f, 8.496897e-04f},
        {20, 3.1622779e-03f, 2.9697779e-04f}, {25, 7.498942e-04f, 5.3723124e-06f}, {31, 1.3335215e-04f, 5.6805294e-07f},
    };
    float plain[32], yarn[32];
    const struct yarn y = {.factor = 16, .original_positions = 65536, .beta_fast = 32, .beta_slow = 1};

    rope_theta(plain, 64, 10000, NULL);
    rope_theta(yarn, 64, 160000, &y);
    for (size_t k = 0; k < ELEMENTS(golden); k++) {
        assert_true(fabsf(plain[golden[k].i] / golden[k].plain - 1) < 3e-7f);
        assert_true(fabsf(yarn[golden[k].i] / golden[k].yarn - 1) < 3e-7f);
    }
}

static void released_defaults_fill_in(void **state)
{
    (void)state;
    struct model_config *c = accepted(NULL, "hc_sinkhorn_iters", NULL);
    assert_int_equal(c->shape.hc_iterations, 20);
    model_config_free(c);
    c = accepted(NULL, "swiglu_limit", NULL);
    assert_true(c->shape.swiglu_limit == 10);
    model_config_free(c);
    c = accepted(NULL, "expert_dtype", NULL);
    assert_int_equal(c->expert_type, WEIGHT_FP8);
    model_config_free(c);
    c = accepted(NULL, "something_new", "{\"a\": [1, 2]}");
    model_config_free(c);
    c = accepted(NULL, "scoring_func", NULL);
    model_config_free(c);
    c = accepted(NULL, "num_hash_layers", "7"); /* of 6 layers */
    assert_int_equal(c->shape.hash_layers, 6);
    model_config_free(c);
    c = accepted(NULL, "compress_ratios", "[0, 8, 16, 32, 64, 128]"); /* without the MTP block's */
    assert_int_equal(c->shape.ratio[4], 64);
    model_config_free(c);
}

static void values_out_of_range_are_refused(void **state)
{
    (void)state;
    static const char *const sizes[] = {
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "qk_rope_head_dim",
        "q_lora_rank", "o_groups", "o_lora_rank", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
        "sliding_window", "index_n_heads", "index_head_dim", "index_topk", "max_position_embeddings", "hc_mult",
        "hc_sinkhorn_iters",
    };
    static const char *const values[] = {"0", "-1", "128.0", "1.5", "\"128\"", "true", "null", "[]", "4294967424",
                                         "9223372036854775807"};

    for (size_t i = 0; i < ELEMENTS(sizes); i++)
        for (size_t k = 0; k < ELEMENTS(values); k++)
            assert_refused(NULL, sizes[i], values[k], sizes[i]);
    assert_refused(NULL, "hidden_size", NULL, "hidden_size");
    assert_refused(NULL, "hidden_size", "130", "hidden_size");
    assert_refused(NULL, "moe_intermediate_size", "48", "moe_intermediate_size");
    assert_refused(NULL, "num_hidden_layers", "513", "num_hidden_layers");
    assert_refused(NULL, "num_hash_layers", "-1", "num_hash_layers");
    assert_refused(NULL, "hc_mult", "9", "hc_mult");
    assert_refused(NULL, "bos_token_id", "512", "bos_token_id");
    assert_refused(NULL, "eos_token_id", "[1]", "eos_token_id");
    assert_refused(NULL, "rms_norm_eps", "0", "rms_norm_eps");
    assert_refused(NULL, "hc_eps", "-1e-6", "hc_eps");
    assert_refused(NULL, "routed_scaling_factor", "\"1.5\"", "routed_scaling_factor");
    assert_refused(NULL, "rope_theta", "1", "rope_theta");
}

static void values_that_contradict_are_refused(void **state)
{
    (void)state;
    assert_refused(NULL, "qk_rope_head_dim", "128", "qk_rope_head_dim");
    assert_refused(NULL, "head_dim", "160", "head_dim");
    assert_refused(NULL, "o_groups", "3", "o_groups");
    assert_refused(NULL, "num_experts_per_tok", "9", "num_experts_per_tok");
    assert_refused(NULL, "num_hash_layers", "513", "num_hash_layers");
    assert_refused(NULL, "index_head_dim", "96", "index_head_dim");
    assert_refused(NULL, "index_head_dim", "32", "index_head_dim");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, 128, 4]", "compress_ratios");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, 5, 4, 128]", "compress_ratios[3]");
    assert_refused(NULL, "compress_ratios", "[2, 0, 4, 8, 4, 128]", "compress_ratios[0]");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, 256, 4, 128]", "compress_ratios[3]");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, -4, 4, 128]", "compress_ratios[3]");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, 4.0, 4, 128]", "compress_ratios[3]");
    assert_refused(NULL, "compress_ratios", "[0, 0, 4, 4, 4, 128, 4]", "compress_ratios[6]");
    assert_refused(NULL, "compress_ratios", "\"0\"", "compress_ratios");
}

static void what_is_not_computed_is_refused(void **state)
{
    (void)state;
    assert_refused(NULL, "model_type", "\"deepseek_v3\"", "model_type");
    assert_refused(NULL, "architectures", "[\"LlamaForCausalLM\"]", "architectures");
    assert_refused(NULL, "scoring_func", "\"sigmoid\"", "scoring_func");
    assert_refused(NULL, "hidden_act", "\"gelu\"", "hidden_act");
    assert_refused(NULL, "tie_word_embeddings", "true", "tie_word_embeddings");
    assert_refused(NULL, "attention_bias", "true", "attention_bias");
    assert_refused(NULL, "n_shared_experts", "2", "n_shared_experts");
    assert_refused(NULL, "num_key_value_heads", "4", "num_key_value_heads");
    assert_refused(NULL, "norm_topk_prob", "false", "norm_topk_prob");
    assert_refused(NULL, "expert_dtype", "\"int4\"", "expert_dtype");
    assert_refused("rope_scaling", "type", "\"linear\"", "rope_scaling.type");
    assert_refused("rope_scaling", "factor", "0.5", "factor");
    assert_refused("rope_scaling", "beta_fast", "0.5", "beta_fast");
    assert_refused(NULL, "rope_scaling", "null", "rope_scaling");
    assert_refused(NULL, "rope_scaling", NULL, "rope_scaling");
    assert_refused("quantization_config", "scale_fmt", "\"float32\"", "quantization_config.scale_fmt");
    assert_refused("quantization_config", "weight_block_size", "[64, 128]", "quantization_config.weight_block_size");
}

/* The published sizes: Flash 284 billion parameters, 13 of them active; Pro 1.6 trillion, 49 billion. */
static void published_models_have_their_sizes(void **state)
{
    (void)state;
    static const char flash[] = "{\"hidden_size\":4096,\"moe_intermediate_size\":2048,\"num_hidden_layers\":43,"
        "\"num_attention_heads\":64,\"head_dim\":512,\"q_lora_rank\":1024,\"o_groups\":8,\"o_lora_rank\":1024,"
        "\"n_routed_experts\":256,\"num_experts_per_tok\":6,\"num_hash_layers\":3,\"sliding_window\":128,"
        "\"index_n_heads\":64,\"index_topk\":512,\"vocab_size\":129280}";
    static const char pro[] = "{\"hidden_size\":7168,\"moe_intermediate_size\":3072,\"num_hidden_layers\":61,"
        "\"num_attention_heads\":128,\"head_dim\":512,\"q_lora_rank\":1536,\"o_groups\":16,\"o_lora_rank\":1024,"
        "\"n_routed_experts\":384,\"num_experts_per_tok\":6,\"num_hash_layers\":3,\"sliding_window\":128,"
        "\"index_n_heads\":64,\"index_topk\":1024,\"vocab_size\":129280}";
    static const struct {
        const char *keys;
        int first;
        double total, active; /* billions */
    } models[] = {{flash, 0, 284, 13}, {pro, 128, 1600, 49}};

    for (size_t i = 0; i < ELEMENTS(models); i++) {
        _cleanup_json_ json_t *root = nano_json(), *keys = json_loads(models[i].keys, 0, NULL);
        struct model_config *c = NULL;
        struct parameter_count n;
        json_t *ratios = json_array();
        assert_int_equal(json_object_update(root, keys), 0);
        for (int l = 0; l < json_integer_value(json_object_get(root, "num_hidden_layers")); l++)
            json_array_append_new(ratios, json_integer(l < 2 ? models[i].first : l % 2 ? 128 : 4));
        json_object_set_new(root, "compress_ratios", ratios);
        char *text = json_dumps(root, 0);
        assert_int_equal(parse_text(text, &c, NULL), 0);
        assert_int_equal(tensors_count(c, &n), 0);
        if (fabs((double)n.total / 1e9 / models[i].total - 1) > 0.02 ||
            fabs((double)n.active / 1e9 / models[i].active - 1) > 0.05)
            fail_msg("%.1f billion, %.1f active", (double)n.total / 1e9, (double)n.active / 1e9);
        model_config_free(c);
        free(text);
    }
}

static void broken_json_names_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } broken[] = {
        {"", "line 1"},
        {"[]", "expected an object"},
        {"{\n\"vocab_size\": NaN}", "line 2"},
        {"{\n\n\"vocab_size\": Infinity}", "line 3"},
        {"{\"vocab_size\": 1e999}", "line 1"},
        {"{\"vocab_size\": 99999999999999999999}", "line 1"},
        {"{\n\"vocab_size\": 1,\n\"vocab_size\": 2}", "line 3"},
        {"{\"vocab_size\": 1} x", "line 1"},
        {"{\"vocab_size\": \"\\u0000\"}", "line 1"},
        {"{\"a\": \"\x1b[31m\"}", "line 1"},
        {"{\"\xff\": 1}", "line 1"},
    };

    for (size_t i = 0; i < ELEMENTS(broken); i++) {
        struct model_config *c;
        struct fail f = FAIL_INIT;
        assert_int_equal(parse_text(broken[i].text, &c, &f), -EINVAL);
        assert_string_equal(f.code, "CONFIG");
        if (!strstr(f.message, broken[i].says))
            fail_msg("%s: not in '%s'", broken[i].says, f.message);
        for (const char *p = f.message; *p; p++)
            assert_true(*p >= 0x20 && *p <= 0x7e);
    }
}

static void depth_is_limited(void **state)
{
    (void)state;
    const int depth = 10000;
    struct model_config *c;
    struct fail f = FAIL_INIT;
    char *text = malloc(2 * depth + 16);

    assert_non_null(text);
    strcpy(text, "{\"a\":");
    memset(text + 5, '[', depth);
    memset(text + 5 + depth, ']', depth);
    strcpy(text + 5 + 2 * depth, "}");
    assert_int_equal(parse_text(text, &c, &f), -EINVAL);
    assert_string_equal(f.code, "CONFIG");
    free(text);
}

static void generation_is_read(void **state)
{
    (void)state;
    _cleanup_json_ json_t *root = nano_json();
    char *text = json_dumps(root, 0);
    const char good[] = "{\"temperature\": 0.6, \"top_p\": 0.95}", bad[] = "{\"temperature\": -1}";
    struct model_config *c;
    struct fail f = FAIL_INIT;

    assert_int_equal(model_config_parse(text, strlen(text), good, strlen(good), &c, &f), 0);
    assert_true(c->sampling.temperature == 0.6f && c->sampling.top_p == 0.95f);
    model_config_free(c);
    assert_int_equal(model_config_parse(text, strlen(text), bad, strlen(bad), &c, &f), -EINVAL);
    assert_non_null(strstr(f.message, "generation_config.json: key temperature: found -1"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nano_is_read),
        cmocka_unit_test(theta_is_the_references),
        cmocka_unit_test(released_defaults_fill_in),
        cmocka_unit_test(values_out_of_range_are_refused),
        cmocka_unit_test(values_that_contradict_are_refused),
        cmocka_unit_test(what_is_not_computed_is_refused),
        cmocka_unit_test(published_models_have_their_sizes),
        cmocka_unit_test(broken_json_names_the_line),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(generation_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
