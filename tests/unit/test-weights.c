/* SPDX-License-Identifier: MIT */
/* Loading: every tensor of the file is in the arena, the same by both ways, and bad contents are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fd.h"
#include "engine/weights.h"
#include "tests/unit/fake-backend.h"

static const char *nano(void)
{
    static char path[4096];

    snprintf(path, sizeof(path), "%s/models/nano", getenv("top_srcdir"));
    return path;
}

static struct checkpoint *open_nano(void)
{
    struct checkpoint *c = NULL;
    struct fail f = FAIL_INIT;

    if (checkpoint_open(nano(), &c, &f) < 0)
        fail_msg("%s: %s", f.code, f.message);
    return c;
}

static struct model_weights *load(const struct checkpoint *c, struct load_options *o)
{
    struct model_weights *w = NULL;
    struct fail f = FAIL_INIT;

    if (weights_load(c, &fake_ops, NULL, o, &w, &f) < 0)
        fail_msg("%s: %s", f.code, f.message);
    return w;
}

/* The file's bytes of a tensor; the caller frees. */
static uint8_t *stored(const struct checkpoint *c, const char *name)
{
    const struct tensor *t = checkpoint_find(c, name);
    assert_non_null(t);
    uint8_t *p = malloc((size_t)t->bytes);
    assert_non_null(p);
    assert_int_equal(fd_pread_full(c->shards[t->shard].fd, p, (size_t)t->bytes, t->offset), 0);
    return p;
}

static void assert_stored(const struct checkpoint *c, const char *name, const void *data)
{
    uint8_t *p = stored(c, name);
    assert_memory_equal(p, data, checkpoint_find(c, name)->bytes);
    free(p);
}

static void assert_bf16(const struct checkpoint *c, const char *name, const float *data)
{
    uint8_t *p = stored(c, name);
    for (size_t i = 0; i < checkpoint_find(c, name)->bytes / 2; i++) {
        uint32_t u;
        memcpy(&u, &data[i], 4);
        assert_int_equal(u, (uint32_t)p[2 * i] << 16 | (uint32_t)p[2 * i + 1] << 24);
    }
    free(p);
}

static void assert_table(const struct checkpoint *c, const char *name, const uint32_t *data)
{
    uint8_t *p = stored(c, name);
    for (size_t i = 0; i < checkpoint_find(c, name)->bytes / 8; i++) {
        int64_t v;
        memcpy(&v, p + 8 * i, 8);
        assert_true(v == (int64_t)data[i]);
    }
    free(p);
}

static void everything_arrives(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();
    struct load_options o = {.threads = 3};
    _cleanup_(weights_freep) struct model_weights *w = load(c, &o);

    assert_false(fake_broken);
    assert_stored(c, "embed.weight", w->embed.data);
    assert_null(w->embed.scale);
    assert_stored(c, "head.weight", w->head.data);
    assert_int_equal(w->head.rows, 512);
    assert_bf16(c, "norm.weight", w->norm);
    assert_stored(c, "hc_head_fn", w->hc_head.fn.data);
    assert_stored(c, "hc_head_scale", w->hc_head.scale);
    assert_stored(c, "layers.1.attn.wq_b.weight", w->layer[1].wq_b.data);
    assert_stored(c, "layers.1.attn.wq_b.scale", w->layer[1].wq_b.scale);
    assert_int_equal(w->layer[1].wq_b.type, WEIGHT_FP8);
    assert_stored(c, "layers.5.attn.attn_sink", w->layer[5].attn_sink);
    assert_bf16(c, "layers.5.attn.kv_norm.weight", w->layer[5].kv_norm);
    assert_stored(c, "layers.2.attn.indexer.compressor.ape", w->layer[2].index_compressor.ape);
    assert_stored(c, "layers.2.attn.indexer.weights_proj.weight", w->layer[2].index_weights.data);
    assert_stored(c, "layers.3.attn.compressor.wgate.weight", w->layer[3].compressor_wgate.data);
    assert_null(w->layer[3].index_wq_b.data);
    assert_null(w->layer[0].compressor_wkv.data);
    assert_table(c, "layers.1.ffn.gate.tid2eid", w->layer[1].gate_table);
    assert_null(w->layer[1].gate_bias);
    assert_null(w->layer[2].gate_table);
    assert_stored(c, "layers.2.ffn.gate.bias", w->layer[2].gate_bias);
    assert_stored(c, "layers.4.ffn.experts.7.w1.weight", w->layer[4].moe.expert[7].gate.data);
    assert_stored(c, "layers.4.ffn.experts.7.w2.weight", w->layer[4].moe.expert[7].down.data);
    assert_stored(c, "layers.4.ffn.experts.7.w3.scale", w->layer[4].moe.expert[7].up.scale);
    assert_int_equal(w->layer[4].moe.expert[7].up.type, WEIGHT_FP4);
    assert_int_equal(w->layer[4].moe.expert[7].up.cols, 128);
    assert_stored(c, "layers.0.ffn.shared_experts.w2.weight", w->layer[0].moe.shared.down.data);
    assert_stored(c, "layers.5.hc_ffn_base", w->layer[5].hc_ffn.base);
}

static void both_ways_give_the_same_arena(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();
    struct load_options ring = {0}, plain = {.no_uring = true, .threads = 2};
    _cleanup_(weights_freep) struct model_weights *a = load(c, &ring);
    _cleanup_(weights_freep) struct model_weights *b = load(c, &plain);

    if (!ring.used_uring)
        print_message("io_uring is not permitted here: both loads used pread\n");
    assert_false(plain.used_uring);
    assert_int_equal(a->arena_bytes, b->arena_bytes);
    assert_memory_equal(a->arena, b->arena, a->arena_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_arrives),
        cmocka_unit_test(both_ways_give_the_same_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
