/* SPDX-License-Identifier: MIT */
/*
 * Where in the arena each stored tensor goes, and how it is turned into what the backend wants. Made from a checkpoint
 * and a backend's layouts; used by engine/loader.c to fill the arena and by engine/weights.c to point into it.
 */
#pragma once

#include "engine/tensors.h"

enum part_how {
    PART_SKIP,  /* not loaded */
    PART_PACK,  /* backend ops->pack */
    PART_BF16,  /* BF16 to F32 */
    PART_F32,   /* copied */
    PART_TABLE, /* I64 to uint32, each < limit */
};

/* One stored tensor. */
struct weights_part {
    enum part_how how;
    enum weight_type type;       /* PART_PACK: of the matrix, with its rows and cols */
    enum weight_part part;
    uint32_t rows, cols, limit;
    uint32_t stored_rows;        /* rows of the tensor in the file; vectors: elements */
    uint32_t group;              /* rows come in multiples of this, but at the end */
    size_t row_bytes;            /* in the file */
    size_t row_out_bytes;        /* in the arena; not for PART_PACK */
    size_t dst, dst_bytes;       /* offset in the arena; bytes there, for PART_PACK */
};

/* What to fill in once the arena has an address. */
struct weights_target {
    enum item_kind kind;
    struct weight weight;        /* ITEM_MATRIX; data and scale not yet set */
    void *to;
    size_t data, scale;          /* offsets in the arena */
};

struct weights_plan {
    struct weights_part *part;   /* [checkpoint->n_tensors], same order */
    struct weights_target *target;
    size_t n_targets, target_capacity;
    size_t header_bytes;         /* the arena's header, before the parts */
    size_t arena_bytes;
    uint64_t source_bytes;       /* to read from the shards */
    size_t group_bytes_max;      /* the largest group of rows in a file */
};

#define WEIGHTS_PLAN_NULL ((struct weights_plan){0})
void weights_plan_deinit(struct weights_plan *p);
#define _cleanup_weights_plan_ _cleanup_(weights_plan_deinit)

/* header_bytes: room to leave at the arena's beginning. w: targets allocated by tensors_targets. */
int weights_plan_init(struct weights_plan *p, const struct checkpoint *c, const struct backend_ops *ops,
                      struct backend *b, size_t header_bytes, struct model_weights *w, struct fail *f);

/* Point everything in model_weights into the arena at device address `base`. */
void weights_plan_point(const struct weights_plan *p, const uint8_t *base);
