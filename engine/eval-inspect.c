/* SPDX-License-Identifier: MIT */
/* dsv4-eval inspect: what a checkpoint is, whether it is whole, and what memory it needs on this machine. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/buf.h"
#include "base/size.h"
#include "engine/eval.h"
#include "engine/json.h"
#include "engine/kv.h"
#include "engine/tensors.h"

static const char usage[] =
    "dsv4-eval inspect --model DIR [--json] [--numerics exact|fast] [--load [--no-uring]]\n\n"
    "Check a checkpoint's files, tell what it is and what memory it needs here.\n\n"
    "      --model DIR    the checkpoint's directory\n"
    "      --json         as one JSON object; sizes in bytes\n"
    "      --numerics N   memory for exact or fast (default) computation\n"
    "      --load         read all weights too: checks their contents and measures the rate\n"
    "      --no-uring     with pread instead of io_uring\n"
    "  -h, --help         show this\n\n"
    "Exit status: 0 the checkpoint is good, 1 it is not (the message says why).\n";

struct options {
    const char *model;
    enum numerics numerics;
    bool json, load;
    struct load_options how;
};

struct report {
    struct checkpoint *c;
    struct backend *backend;
    struct backend_info device;
    struct kv_layout kv;
    struct parameter_count parameters;
    uint64_t arena_bytes, session_bytes;
    struct load_progress loaded;
    char arena_digest[65];
};

/* ---------------------------------------------------------------- finding out */

static void hex(const uint8_t *p, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        sprintf(ret + 2 * i, "%02x", p[i]);
}

static int keep_progress(const struct load_progress *p, void *userdata)
{
    *(struct load_progress *)userdata = *p;
    return 0;
}

static int load(struct options *o, struct report *r, struct fail *f)
{
    _cleanup_(weights_freep) struct model_weights *w = NULL;
    uint8_t digest[EVP_MAX_MD_SIZE];

    o->how.progress = keep_progress;
    o->how.userdata = &r->loaded;
    int e = weights_load(r->c, &backend_cpu, r->backend, &o->how, &w, f);
    if (e < 0)
        return e;
    if (EVP_Digest(w->arena, w->arena_bytes, digest, NULL, EVP_sha256(), NULL) != 1)
        return fail_set(f, EIO, "INTERNAL", "SHA-256 is not available");
    hex(digest, 32, r->arena_digest);
    return 0;
}

static int find_out(struct options *o, struct report *r, struct fail *f)
{
    struct backend_params params = {.numerics = o->numerics, .kv = &r->kv, .max_tokens = 1, .threads = 1};
    int e = checkpoint_open(o->model, &r->c, f);

    if (e < 0)
        return e;
    const struct model_shape *s = params.shape = &r->c->config->shape;
    kv_layout_init(&r->kv, s, o->numerics);
    r->session_bytes = r->kv.state_bytes + (uint64_t)div_up(s->max_position, KV_PAGE_TOKENS) * r->kv.page_bytes;
    if ((e = backend_cpu.open(&params, &r->backend, f)) < 0)
        return e;
    backend_cpu.info(r->backend, &r->device);
    if ((e = tensors_count(r->c->config, &r->parameters)) < 0)
        return fail_oom(f);
    e = weights_arena_bytes(r->c, &backend_cpu, r->backend, &r->arena_bytes, f);
    return e == 0 && o->load ? load(o, r, f) : e;
}

static void report_deinit(struct report *r)
{
    backend_cpu.close(r->backend);
    checkpoint_free(r->c);
}

static bool fits(const struct report *r, uint64_t bytes)
{
    return bytes <= r->device.memory_free;
}

/* ---------------------------------------------------------------- telling it */

/* "4.8 MB", "284 B": three digits and a unit of thousands. */
static const char *short_number(double v, const char *const units[], char ret[32])
{
    int u = 0;

    while (v >= 999.5 && units[u + 1]) {
        v /= 1000;
        u++;
    }
    snprintf(ret, 32, "%.*f%s%s", u == 0 || v >= 100 ? 0 : v >= 10 ? 1 : 2, v, units[u][0] ? " " : "", units[u]);
    return ret;
}

static const char *size(uint64_t bytes, char ret[32])
{
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", NULL};
    return short_number((double)bytes, units, ret);
}

static const char *count(uint64_t n, char ret[32])
{
    static const char *const units[] = {"", "thousand", "million", "billion", "trillion", NULL};
    return short_number((double)n, units, ret);
}

/* "2 without compression, 21 of ratio 4, 20 of ratio 128" */
static int ratios(const struct model_shape *s, struct buf *b)
{
    static const uint32_t known[] = {0, 4, 8, 16, 32, 64, 128};
    int e = 0;

    for (size_t i = 0; i < ELEMENTS(known) && e == 0; i++) {
        uint32_t n = 0;
        for (uint32_t l = 0; l < s->layers; l++)
            n += s->ratio[l] == known[i];
        if (n > 0 && known[i] == 0)
            e = buf_printf(b, "%u without compression", n);
        else if (n > 0)
            e = buf_printf(b, "%s%u of ratio %u", b->size ? ", " : "", n, known[i]);
    }
    return e;
}

static void print_load(const struct options *o, const struct report *r)
{
    char n[32], rate[32];
    const double seconds = (double)MAX(r->loaded.elapsed_usec, (uint64_t)1) / 1e6;

    printf("  loaded          %s in %.2f s, %s/s, with %s\n", size(r->loaded.done_bytes, n), seconds,
           size((uint64_t)((double)r->loaded.done_bytes / seconds), rate),
           !o->how.used_uring ? "pread" : o->how.used_direct ? "io_uring, O_DIRECT" : "io_uring, buffered");
}

static int print_text(const struct options *o, const struct report *r)
{
    const struct model_config *m = r->c->config;
    const struct model_shape *s = &m->shape;
    _cleanup_buf_ struct buf kinds = BUF_INIT;
    char a[32], b[32], digest[65];
    uint64_t file_bytes = 0;

    if (ratios(s, &kinds) < 0)
        return -ENOMEM;
    for (uint32_t i = 0; i < r->c->n_shards; i++)
        file_bytes += r->c->shards[i].file_bytes;
    hex(r->c->digest, 32, digest);
    printf("%s\n", o->model);
    printf("  architecture    DeepSeek-V4, %u layers: %s\n", s->layers, kinds.data);
    if (m->mtp_layers)
        printf("                  %u MTP block(s), checked, not loaded\n", m->mtp_layers);
    printf("  sizes           hidden %u, %u heads of %u, vocabulary %u, window %u, context %u\n", s->hidden, s->heads,
           s->head_dim, s->vocab, s->window, s->max_position);
    printf("  experts         %u of %u per token, %s, inner size %u\n", s->experts_used, s->experts,
           m->expert_type == WEIGHT_FP4 ? "FP4" : "FP8", s->expert_hidden);
    printf("  parameters      %s, %s active\n", count(r->parameters.total, a), count(r->parameters.active, b));
    printf("  files           %u shard(s), %zu tensors, %s\n", r->c->n_shards, r->c->n_tensors, size(file_bytes, a));
    printf("  digest          sha256:%s\n", digest);
    printf("  weights         %s on %s, layout %s, %s numerics\n", size(r->arena_bytes, a), r->device.name,
           r->device.layout_id, o->numerics == NUMERICS_EXACT ? "exact" : "fast");
    printf("  KV memory       %s per token and %s per session", size(r->kv.page_bytes / KV_PAGE_TOKENS, a),
           size(r->kv.state_bytes, b));
    printf("; a full context is %s\n", size(r->session_bytes, a));
    printf("  memory here     %s available of %s: %s\n", size(r->device.memory_free, a),
           size(r->device.memory_total, b),
           fits(r, r->arena_bytes + r->session_bytes) ? "fits, with a session of full context"
           : fits(r, r->arena_bytes) ? "the weights fit, a session of full context beside them does not"
                                     : "the weights do not fit");
    if (o->load)
        print_load(o, r);
    return 0;
}

static json_t *model_json(const struct report *r)
{
    const struct model_config *m = r->c->config;
    const struct model_shape *s = &m->shape;
    json_t *list = json_array();

    for (uint32_t i = 0; i < s->layers; i++)
        json_array_append_new(list, json_integer(s->ratio[i]));
    return json_pack("{s:s, s:i, s:i, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s}", "architecture",
                     "DeepseekV4ForCausalLM", "layers", (int)s->layers, "mtp_layers", (int)m->mtp_layers,
                     "compress_ratios", list, "hidden", (int)s->hidden, "heads", (int)s->heads, "head_dim",
                     (int)s->head_dim, "vocab", (int)s->vocab, "context", (int)s->max_position, "experts",
                     (int)s->experts, "experts_used", (int)s->experts_used, "expert_dtype",
                     m->expert_type == WEIGHT_FP4 ? "fp4" : "fp8");
}

static json_t *memory_json(const struct options *o, const struct report *r)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b}", "device", r->device.name, "layout",
                     r->device.layout_id, "numerics", o->numerics == NUMERICS_EXACT ? "exact" : "fast", "arena",
                     (json_int_t)r->arena_bytes, "kv_per_token", (json_int_t)(r->kv.page_bytes / KV_PAGE_TOKENS),
                     "kv_state", (json_int_t)r->kv.state_bytes, "kv_full_context", (json_int_t)r->session_bytes,
                     "available", (json_int_t)r->device.memory_free, "total", (json_int_t)r->device.memory_total,
                     "weights_fit", (int)fits(r, r->arena_bytes), "fits",
                     (int)fits(r, r->arena_bytes + r->session_bytes));
}

static int print_json(const struct options *o, const struct report *r)
{
    char digest[65];

    hex(r->c->digest, 32, digest);
    _cleanup_json_ json_t *j =
        json_pack("{s:o, s:{s:I, s:I, s:I}, s:i, s:I, s:I, s:s, s:o}", "model", model_json(r), "parameters", "total",
                  (json_int_t)r->parameters.total, "active", (json_int_t)r->parameters.active, "mtp",
                  (json_int_t)r->parameters.mtp, "shards", (int)r->c->n_shards, "tensors", (json_int_t)r->c->n_tensors,
                  "tensor_bytes", (json_int_t)r->c->tensor_bytes, "digest", digest, "memory", memory_json(o, r));
    if (j && o->load)
        json_object_set_new(j, "loaded",
                            json_pack("{s:I, s:I, s:b, s:b, s:s}", "bytes", (json_int_t)r->loaded.done_bytes, "usec",
                                      (json_int_t)r->loaded.elapsed_usec, "io_uring", (int)o->how.used_uring, "direct",
                                      (int)o->how.used_direct, "arena_digest", r->arena_digest));
    if (!j || json_dumpf(j, stdout, JSON_INDENT(2)) < 0)
        return -ENOMEM;
    putchar('\n');
    return 0;
}

/* ---------------------------------------------------------------- the command */

/* 1: run; otherwise done, with the exit status in *ret. */
static int parse(int argc, char **argv, struct options *o, int *ret)
{
    static const struct option longs[] = {
        {"model", required_argument, NULL, 'm'}, {"json", no_argument, NULL, 'j'},
        {"numerics", required_argument, NULL, 'n'}, {"load", no_argument, NULL, 'l'},
        {"no-uring", no_argument, NULL, 'u'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0},
    };
    int c;

    *ret = EVAL_EXIT_USAGE;
    while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        if (c == 'm')
            o->model = optarg;
        else if (c == 'j')
            o->json = true;
        else if (c == 'l')
            o->load = true;
        else if (c == 'u')
            o->how.no_uring = true;
        else if (c == 'n' && (strcmp(optarg, "exact") == 0 || strcmp(optarg, "fast") == 0))
            o->numerics = optarg[0] == 'e' ? NUMERICS_EXACT : NUMERICS_FAST;
        else if (c == 'h') {
            fputs(usage, stdout);
            *ret = 0;
            return 0;
        } else {
            if (c == 'n')
                fprintf(stderr, "dsv4-eval inspect: --numerics is exact or fast\n");
            return 0;
        }
    }
    if (!o->model || optind != argc) {
        fputs(usage, stderr);
        return 0;
    }
    return 1;
}

int eval_inspect(int argc, char **argv)
{
    struct options o = {.numerics = NUMERICS_FAST};
    struct fail f = FAIL_INIT;
    int status;

    if (!parse(argc, argv, &o, &status))
        return status;
    _cleanup_(report_deinit) struct report r = {0};
    if (find_out(&o, &r, &f) == 0 && (o.json ? print_json(&o, &r) : print_text(&o, &r)) < 0)
        fail_oom(&f);
    if (f.err == 0)
        return 0;
    fprintf(stderr, "dsv4-eval inspect: %s: %s: %s\n", o.model, f.code, f.message);
    return 1;
}
