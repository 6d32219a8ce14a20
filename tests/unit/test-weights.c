/* SPDX-License-Identifier: MIT */
/* Loading: every tensor of the file is in the arena, the same by both ways, and bad contents are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "engine/arena.h"
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

static int without_uring_in_child(const struct checkpoint *c)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {ELEMENTS(code), code};
    struct load_options o = {0};
    struct model_weights *w = NULL;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0)
        return 77;
    int r = weights_load(c, &fake_ops, NULL, &o, &w, NULL);
    bool ok = r == 0 && !o.used_uring && w->embed.data;
    weights_free(w);
    return ok ? 0 : 1;
}

static void a_forbidden_io_uring_is_done_without(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();
    int status;

    pid_t pid = fork();
    if (pid == 0) {
        status = without_uring_in_child(c);
        checkpoint_free(c);
        _exit(status);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int count_open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

struct seen {
    unsigned calls, cancel_at;
    uint64_t last, total;
};

static int see(const struct load_progress *p, void *userdata)
{
    struct seen *s = userdata;

    assert_true(p->done_bytes >= s->last && p->done_bytes <= p->total_bytes);
    s->last = p->done_bytes;
    s->total = p->total_bytes;
    return ++s->calls == s->cancel_at ? 1 : 0;
}

static void progress_is_told_and_can_cancel(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();

    fake_pack_usec = 300; /* so that a load takes longer than the interval */
    for (int no_uring = 0; no_uring < 2; no_uring++) {
        struct seen all = {0}, some = {.cancel_at = 1};
        struct load_options o = {.no_uring = no_uring, .threads = 2, .progress = see, .userdata = &all};
        struct model_weights *w = load(c, &o);
        weights_free(w);
        assert_true(all.calls >= 1);
        assert_int_equal(all.last, all.total);
        assert_true(all.total > 4000000);

        struct fail f = FAIL_INIT;
        const int fds = count_open_fds();
        o.userdata = &some;
        w = NULL;
        assert_int_equal(weights_load(c, &fake_ops, NULL, &o, &w, &f), -ECANCELED);
        assert_string_equal(f.code, "CANCELLED");
        assert_null(w);
        assert_int_equal(some.calls, 1);
        assert_int_equal(count_open_fds(), fds);
    }
    fake_pack_usec = 0;
}

static int whole_layout(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols,
                        struct weight_layout *ret)
{
    int r = fake_layout(b, type, rows, cols, ret);
    ret->row_group = ret->scale_group = FAKE_ROW_GROUP * FAKE_SCALE_GROUP * 1000;
    return r;
}

static int no_layout(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols,
                     struct weight_layout *ret)
{
    return type == WEIGHT_FP4 ? -EOPNOTSUPP : fake_layout(b, type, rows, cols, ret);
}

static void layouts_may_want_whole_matrices_or_none(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();
    struct backend_ops ops = fake_ops;
    struct model_weights *a = load(c, NULL), *b = NULL;
    struct fail f = FAIL_INIT;
    uint64_t bytes;

    ops.layout = whole_layout;
    assert_int_equal(weights_load(c, &ops, NULL, NULL, &b, NULL), 0);
    assert_int_equal(a->arena_bytes, b->arena_bytes);
    assert_memory_equal(a->arena, b->arena, a->arena_bytes);
    assert_int_equal(weights_arena_bytes(c, &ops, NULL, &bytes, NULL), 0);
    assert_int_equal(bytes, a->arena_bytes);
    weights_free(a), weights_free(b);

    ops.layout = no_layout;
    assert_int_equal(weights_load(c, &ops, NULL, NULL, &b, &f), -EOPNOTSUPP);
    assert_string_equal(f.code, "UNSUPPORTED");
    assert_non_null(strstr(f.message, "layers.0.ffn.experts.0.w1.weight"));
}

static void the_arena_says_what_it_is(void **state)
{
    (void)state;
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();
    _cleanup_(weights_freep) struct model_weights *w = load(c, NULL);
    const struct arena_header *h = w->arena;
    const struct arena_entry *e = (const struct arena_entry *)(h + 1);

    assert_string_equal(h->magic, ARENA_MAGIC);
    assert_int_equal(h->version, ARENA_VERSION);
    assert_string_equal(h->backend, "fake");
    assert_string_equal(h->layout_id, "stored-1");
    assert_memory_equal(h->digest, c->digest, sizeof(h->digest));
    assert_int_equal(h->arena_bytes, w->arena_bytes);
    assert_int_equal(h->entries, c->n_tensors);
    for (size_t i = 0; i < c->n_tensors; i++) {
        assert_int_equal(e[i].offset == 0, strncmp(c->tensors[i].name, "mtp.", 4) == 0);
        assert_true(e[i].offset == 0 || (e[i].offset >= h->parts_offset && e[i].offset < w->arena_bytes));
        assert_int_equal(e[i].offset % WEIGHT_ALIGN, 0);
    }
    char byte = 1; /* sealed: nobody who gets the fd can change it */
    assert_int_equal(pwrite(w->arena_fd, &byte, 1, 0), -1);
    assert_int_equal(ftruncate(w->arena_fd, 1), -1);
}

/* ---------------------------------------------------------------- contents */

/* A copy of the checkpoint to spoil. */
static void copy_nano(const char *to)
{
    struct dirent *e;
    DIR *d = opendir(nano());

    assert_non_null(d);
    while ((e = readdir(d))) {
        _cleanup_free_ char *data = NULL;
        size_t n;
        if (e->d_name[0] == '.')
            continue;
        assert_int_equal(fd_read_file(dirfd(d), e->d_name, 1u << 24, &data, &n, NULL), 0);
        int dir = open(to, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
        int fd = openat(dir, e->d_name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_true(dir >= 0 && fd >= 0);
        assert_int_equal(fd_write_full(fd, data, n), 0);
        close(fd);
        close(dir);
    }
    closedir(d);
}

static void remove_dir(const char *path)
{
    struct dirent *e;
    DIR *d = opendir(path);

    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.')
            assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
    closedir(d);
    assert_int_equal(rmdir(path), 0);
}

/* An element's new value, little-endian as in the file. */
static const struct spoiled {
    const char *tensor;
    size_t bytes;
    uint64_t value;
    bool good;
} spoiled[] = {
    {"layers.1.attn.wq_b.weight", 1, 0x7e, true},
    {"layers.1.attn.wq_b.weight", 1, 0x7f, false},
    {"layers.1.attn.wq_b.weight", 1, 0xff, false},
    {"layers.1.attn.wq_b.scale", 1, 0xfe, true},
    {"layers.1.attn.wq_b.scale", 1, 0xff, false},
    {"layers.4.ffn.experts.7.w1.weight", 1, 0xff, true},
    {"layers.4.ffn.experts.7.w1.scale", 1, 0x7f, true},
    {"layers.4.ffn.experts.7.w1.scale", 1, 0xff, false},
    {"embed.weight", 2, 0xff7f, true},
    {"embed.weight", 2, 0x7f80, false},
    {"embed.weight", 2, 0xffc1, false},
    {"hc_head_fn", 4, 0xff7fffff, true},
    {"hc_head_fn", 4, 0xff800000, false},
    {"hc_head_fn", 4, 0x7f800001, false},
    {"layers.5.attn.kv_norm.weight", 2, 0x7f80, false},
    {"layers.5.attn.attn_sink", 4, 0x7fc00000, false},
    {"layers.1.ffn.gate.tid2eid", 8, 0, true},
    {"layers.1.ffn.gate.tid2eid", 8, 8, false},
    {"layers.1.ffn.gate.tid2eid", 8, UINT64_MAX, false},
};

static void load_spoiled(const char *dir, const struct spoiled *s, bool no_uring)
{
    struct checkpoint *c = NULL;
    struct model_weights *w = NULL;
    struct load_options o = {.no_uring = no_uring, .threads = 2};
    struct fail f = FAIL_INIT;

    assert_int_equal(checkpoint_open(dir, &c, &f), 0);
    int r = weights_load(c, &fake_ops, NULL, &o, &w, &f);
    if (s->good) {
        assert_int_equal(r, 0);
    } else {
        assert_int_equal(r, -EINVAL);
        assert_string_equal(f.code, "BAD_TENSOR");
        assert_non_null(strstr(f.message, s->tensor));
    }
    weights_free(w);
    checkpoint_free(c);
}

/* Wherever in a tensor: at its ends, and in the middle of what is looked at in one go. */
static void no_number_is_refused_wherever_it_is(void **state)
{
    (void)state;
    char dir[] = "/tmp/dsv4d-test-weights-XXXXXX", path[128];
    _cleanup_(checkpoint_freep) struct checkpoint *c = open_nano();

    assert_non_null(mkdtemp(dir));
    copy_nano(dir);
    snprintf(path, sizeof(path), "%s/%s", dir, c->shards[0].name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; i < ELEMENTS(spoiled); i++) {
        const struct spoiled *s = &spoiled[i];
        const struct tensor *t = checkpoint_find(c, s->tensor);
        const size_t n = (size_t)t->bytes / s->bytes, at[] = {0, n / 2 + 1, n - 1};
        for (size_t k = 0; k < ELEMENTS(at); k++) {
            const off_t offset = (off_t)(t->offset + at[k] * s->bytes);
            uint64_t old;
            assert_int_equal(pread(fd, &old, s->bytes, offset), s->bytes);
            assert_int_equal(pwrite(fd, &s->value, s->bytes, offset), s->bytes);
            load_spoiled(dir, s, (i + k) % 2);
            assert_int_equal(pwrite(fd, &old, s->bytes, offset), s->bytes);
        }
    }
    close(fd);
    remove_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_number_is_refused_wherever_it_is),
        cmocka_unit_test(everything_arrives),
        cmocka_unit_test(both_ways_give_the_same_arena),
        cmocka_unit_test(a_forbidden_io_uring_is_done_without),
        cmocka_unit_test(progress_is_told_and_can_cancel),
        cmocka_unit_test(layouts_may_want_whole_matrices_or_none),
        cmocka_unit_test(the_arena_says_what_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
