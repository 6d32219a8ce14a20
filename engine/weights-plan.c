/* SPDX-License-Identifier: MIT */
/* See weights-plan.h. */
#include "engine/weights-plan.h"

#include <errno.h>
#include <string.h>

#include "base/size.h"
#include "engine/safetensors.h"

struct planning {
    struct weights_plan *p;
    const struct checkpoint *c;
    const struct backend_ops *ops;
    struct backend *b;
    struct fail *f;
};

void weights_plan_deinit(struct weights_plan *p)
{
    free(p->part);
    free(p->target);
    *p = WEIGHTS_PLAN_NULL;
}

/* Room for n bytes in the arena. */
static int place(struct planning *g, const char *name, size_t n, size_t *ret)
{
    struct weights_plan *p = g->p;
    size_t end;

    if (!size_add(p->arena_bytes, n, &end) || !size_align(end, WEIGHT_ALIGN, &end) || end > INT64_MAX)
        return fail_set(g->f, EOVERFLOW, "SHAPE_OVERFLOW", "tensor %s: %zu more bytes do not fit an arena", name, n);
    *ret = p->arena_bytes;
    p->arena_bytes = end;
    return 0;
}

static int add_target(struct planning *g, const struct weights_target *t)
{
    struct weights_plan *p = g->p;

    if (p->n_targets == p->target_capacity) {
        size_t capacity = p->target_capacity ? p->target_capacity * 2 : 256;
        struct weights_target *more = reallocarray(p->target, capacity, sizeof(*more));
        if (!more)
            return fail_oom(g->f);
        p->target = more;
        p->target_capacity = capacity;
    }
    p->target[p->n_targets++] = *t;
    return 0;
}

/* The stored tensor's part, with what follows from its shape in the file. Checked when the checkpoint was opened. */
static struct weights_part *part_of(struct planning *g, const char *name)
{
    const struct tensor *t = checkpoint_find(g->c, name);
    struct weights_part *part = &g->p->part[t - g->c->tensors];

    part->stored_rows = (uint32_t)t->dim[0];
    part->row_bytes = (size_t)(t->bytes / t->dim[0]);
    part->group = 1;
    return part;
}

static void finish_part(struct planning *g, const struct weights_part *part)
{
    size_t rows = MIN(part->group, part->stored_rows);

    g->p->group_bytes_max = MAX(g->p->group_bytes_max, rows * part->row_bytes); /* <= the tensor's bytes */
    g->p->source_bytes += (uint64_t)part->stored_rows * part->row_bytes;
}

static int plan_matrix(struct planning *g, const struct tensor_item *item)
{
    struct weight_layout l = {0};
    struct weights_target t = {.kind = ITEM_MATRIX, .to = item->to,
                               .weight = {.type = item->type, .rows = item->rows, .cols = item->cols}};

    int r = g->ops->layout(g->b, item->type, item->rows, item->cols, &l);
    if (r < 0 || l.row_group == 0 || (item->scale && l.scale_group == 0))
        return fail_set(g->f, r < 0 ? -r : EINVAL, "UNSUPPORTED",
                        "tensor %s: the %s backend has no layout for %u x %u weights of this type", item->name,
                        g->ops->name, item->rows, item->cols);
    if ((r = place(g, item->name, l.data_bytes, &t.data)) < 0 ||
        (item->scale && (r = place(g, item->scale, l.scale_bytes, &t.scale)) < 0))
        return r;
    for (int scale = 0; scale <= (item->scale != NULL); scale++) {
        struct weights_part *part = part_of(g, scale ? item->scale : item->name);
        part->how = PART_PACK;
        part->type = item->type;
        part->rows = item->rows;
        part->cols = item->cols;
        part->part = scale ? WEIGHT_SCALE : WEIGHT_DATA;
        part->group = scale ? l.scale_group : l.row_group;
        part->dst = scale ? t.scale : t.data;
        part->dst_bytes = scale ? l.scale_bytes : l.data_bytes;
        finish_part(g, part);
    }
    t.weight.scale = item->scale ? item->to : NULL; /* any address: says that there is one */
    return add_target(g, &t);
}

static int plan_vector(struct planning *g, const struct tensor_item *item)
{
    struct weights_target t = {.kind = item->kind, .to = item->to};
    struct weights_part *part = part_of(g, item->name);

    part->how = item->kind == ITEM_TABLE ? PART_TABLE : item->type == WEIGHT_BF16 ? PART_BF16 : PART_F32;
    part->rows = item->rows;
    part->cols = item->cols;
    part->limit = item->limit;
    part->row_out_bytes = (size_t)item->cols * 4; /* float or uint32_t */
    int r = place(g, item->name, (size_t)item->rows * part->row_out_bytes, &t.data);
    if (r < 0)
        return r;
    part->dst = t.data;
    finish_part(g, part);
    return add_target(g, &t);
}

static int plan_item(const struct tensor_item *item, void *userdata)
{
    if (!item->to)
        return 0; /* MTP: parts are zero, PART_SKIP */
    return item->kind == ITEM_MATRIX ? plan_matrix(userdata, item) : plan_vector(userdata, item);
}

int weights_plan_init(struct weights_plan *p, const struct checkpoint *c, const struct backend_ops *ops,
                      struct backend *b, size_t header_bytes, struct model_weights *w, struct fail *f)
{
    _cleanup_weights_plan_ struct weights_plan plan = WEIGHTS_PLAN_NULL;
    struct planning g = {.p = &plan, .c = c, .ops = ops, .b = b, .f = f};

    plan.part = calloc(c->n_tensors, sizeof(*plan.part));
    if (!plan.part)
        return fail_oom(f);
    plan.header_bytes = align_up(header_bytes, WEIGHT_ALIGN);
    plan.arena_bytes = plan.header_bytes;
    int r = tensors_walk(c->config, w, plan_item, &g);
    if (r < 0)
        return r;
    *p = plan;
    plan = WEIGHTS_PLAN_NULL;
    return 0;
}

void weights_plan_point(const struct weights_plan *p, const uint8_t *base)
{
    for (size_t i = 0; i < p->n_targets; i++) {
        const struct weights_target *t = &p->target[i];
        if (t->kind == ITEM_MATRIX) {
            struct weight *w = t->to;
            *w = t->weight;
            w->data = base + t->data;
            w->scale = t->weight.scale ? base + t->scale : NULL;
        } else {
            *(const void **)t->to = base + t->data;
        }
    }
}
