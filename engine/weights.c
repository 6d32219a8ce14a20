/* SPDX-License-Identifier: MIT */
/* See weights.h: the arena's life. What goes where is weights-plan.c, the reading is loader.c. */
#include "engine/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "base/size.h"
#include "engine/arena.h"
#include "engine/loader.h"
#include "engine/tensors.h"
#include "engine/weights-plan.h"

static int plan_for(const struct checkpoint *c, const struct backend_ops *ops, struct backend *b,
                    struct model_weights *w, struct weights_plan *plan, struct fail *f)
{
    size_t header = sizeof(struct arena_header) + c->n_tensors * sizeof(struct arena_entry); /* n < 2^32 */

    if (tensors_targets(c->config, w) < 0)
        return fail_oom(f);
    return weights_plan_init(plan, c, ops, b, header, w, f);
}

static int map_arena(struct model_weights *w, size_t bytes, struct fail *f)
{
    int r = fd_memfd("dsv4-weights", bytes, &w->arena_fd);

    if (r < 0)
        return fail_set(f, -r, "NO_MEMORY", "the weights need %zu bytes of memory: %s", bytes, strerror(-r));
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->arena_fd, 0);
    if (p == MAP_FAILED)
        return fail_set(f, errno, "NO_MEMORY", "the weights need %zu bytes of memory: %s", bytes, strerror(errno));
    w->arena = p;
    w->arena_bytes = bytes;
    (void)madvise(p, bytes, MADV_HUGEPAGE); /* only faster */
    return 0;
}

static void write_header(const struct checkpoint *c, const struct weights_plan *plan, const struct backend_ops *ops,
                         struct backend *b, void *arena)
{
    struct arena_header *h = arena;
    struct arena_entry *e = (struct arena_entry *)(h + 1);
    struct backend_info info = {0};

    ops->info(b, &info);
    *h = (struct arena_header){.magic = ARENA_MAGIC, .version = ARENA_VERSION, .entries = (uint32_t)c->n_tensors,
                               .arena_bytes = plan->arena_bytes, .parts_offset = plan->header_bytes};
    memcpy(h->backend, info.name, sizeof(h->backend));
    memcpy(h->layout_id, info.layout_id, sizeof(h->layout_id));
    memcpy(h->digest, c->digest, sizeof(h->digest));
    for (size_t i = 0; i < c->n_tensors; i++)
        e[i] = (struct arena_entry){.offset = plan->part[i].dst, .how = plan->part[i].how, .type = plan->part[i].type};
}

/* From here on nobody writes: a stray store faults instead of changing the model for everybody. */
static int protect_arena(struct model_weights *w, struct fail *f)
{
    if (mprotect(w->arena, w->arena_bytes, PROT_READ) < 0)
        return fail_set(f, errno, "INTERNAL", "the weights' memory cannot be protected: %s", strerror(errno));
    (void)fcntl(w->arena_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE); /* kernel >= 5.1 */
    return 0;
}

int weights_load(const struct checkpoint *c, const struct backend_ops *ops, struct backend *b,
                 struct load_options *options, struct model_weights **ret, struct fail *f)
{
    _cleanup_weights_plan_ struct weights_plan plan = WEIGHTS_PLAN_NULL;
    struct load_options defaults = {0};
    void *device;
    int r;

    _cleanup_(weights_freep) struct model_weights *w = calloc(1, sizeof(*w));
    if (!w)
        return fail_oom(f);
    w->arena_fd = -1;
    if ((r = plan_for(c, ops, b, w, &plan, f)) < 0 || (r = map_arena(w, plan.arena_bytes, f)) < 0 ||
        (r = loader_run(c, &plan, ops, b, w->arena, options ? options : &defaults, f)) < 0)
        return r;
    write_header(c, &plan, ops, b, w->arena);
    if ((r = protect_arena(w, f)) < 0)
        return r;
    r = ops->map_arena(b, w->arena, w->arena_bytes, &device);
    if (r < 0)
        return fail_set(f, -r, "NO_MEMORY", "the %s backend cannot use the weights' memory: %s", ops->name,
                        strerror(-r));
    weights_plan_point(&plan, device);
    *ret = TAKE_PTR(w);
    return 0;
}

struct model_weights *weights_free(struct model_weights *w)
{
    if (!w)
        return NULL;
    if (w->arena)
        munmap(w->arena, w->arena_bytes);
    closep(&w->arena_fd);
    tensors_targets_free(w);
    free(w);
    return NULL;
}

int weights_arena_bytes(const struct checkpoint *c, const struct backend_ops *ops, struct backend *b, uint64_t *ret,
                        struct fail *f)
{
    _cleanup_weights_plan_ struct weights_plan plan = WEIGHTS_PLAN_NULL;
    struct model_weights w = {.arena_fd = -1};

    int r = plan_for(c, ops, b, &w, &plan, f);
    if (r == 0)
        *ret = plan.arena_bytes;
    tensors_targets_free(&w);
    return r;
}
