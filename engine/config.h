/* SPDX-License-Identifier: MIT */
/* config.json and generation_config.json of a checkpoint: read, range-checked, turned into a model_shape. */
#pragma once

#include "backends/backend.h"

struct model_config {
    struct model_shape shape;    /* theta points into this object's own memory */
    enum weight_type expert_type; /* WEIGHT_FP4, or WEIGHT_FP8 for Base checkpoints */
    uint32_t mtp_layers;         /* blocks mtp.N in the checkpoint; not computed yet */
    uint32_t bos, eos;           /* token ids, < vocab */
    struct {                     /* generation_config.json; what it does not say has the released defaults */
        float temperature, top_p;
    } sampling;
};

/* Reads dir_fd/config.json (and generation_config.json if there). Every key used is checked; a failure has code CONFIG
 * and names file, key, value and what was expected. Free with model_config_free. */
int model_config_read(int dir_fd, struct model_config **ret, struct fail *f);
int model_config_parse(const char *json, size_t size, const char *generation_json, size_t generation_size,
                       struct model_config **ret, struct fail *f);
struct model_config *model_config_free(struct model_config *c);
DEFINE_CLEANUP(struct model_config *, model_config_free)
