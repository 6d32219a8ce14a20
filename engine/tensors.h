/* SPDX-License-Identifier: MIT */
/*
 * Which tensors a checkpoint of a given configuration consists of, and where each goes in model_weights: the table of
 * docs/model.md, section 2, as a walk. Used to check a checkpoint, to plan its arena and to count its parameters.
 */
#pragma once

#include "engine/weights.h"

enum item_kind {
    ITEM_MATRIX, /* packed by the backend: to a struct weight */
    ITEM_VECTOR, /* F32 in the arena: to a const float * */
    ITEM_TABLE,  /* I64 in the file, uint32 in the arena, each < limit: to a const uint32_t * */
};

/* What an item is for: inspect counts active parameters by it. */
enum item_use { USE_ALWAYS, USE_EMBEDDING, USE_ROUTED_EXPERT, USE_MTP, USE_MTP_EXPERT };

struct tensor_item {
    const char *name;      /* valid during the call: of the data tensor */
    const char *scale;     /* name of the scale tensor; NULL if none */
    enum item_kind kind;
    enum item_use use;
    enum weight_type type; /* as stored; tables: not used */
    uint32_t n_dims;       /* 1: [rows]; 2: [rows][cols] */
    uint32_t rows, cols;   /* logical: two FP4 codes of a byte are two columns. cols is 1 for n_dims 1 */
    uint32_t limit;        /* tables */
    void *to;              /* NULL: checked but not loaded (MTP) */
};

/* A negative errno ends the walk and is returned. */
typedef int (*tensor_visit)(const struct tensor_item *item, void *userdata);

/* w: the targets, its layer[] and their moe.expert allocated by tensors_targets; NULL: `to` is not set. */
int tensors_walk(const struct model_config *c, struct model_weights *w, tensor_visit visit, void *userdata);

/* Allocate w->layer and each layer's experts. */
int tensors_targets(const struct model_config *c, struct model_weights *w);
void tensors_targets_free(struct model_weights *w);

/* How many numbers the model has, by the configuration alone. active: used for one token (its chosen experts; the
 * embedding's one row is not counted, as the published figures do not). MTP blocks count apart. */
struct parameter_count {
    uint64_t total, active, mtp;
};
int tensors_count(const struct model_config *c, struct parameter_count *ret);

/* dtype and shape of the stored tensors of an item. */
struct stored {
    enum tensor_dtype dtype;
    uint32_t n_dims;
    uint64_t dim[2];
};
struct stored item_stored_data(const struct tensor_item *item);
struct stored item_stored_scale(const struct tensor_item *item);

/* True for a copy that some published checkpoints carry and nobody needs: mtp.N.emb..., mtp.N.head.weight. */
bool tensor_is_copy(const char *name);
