/* SPDX-License-Identifier: MIT */
/*
 * A checkpoint directory in the Hugging Face layout: model.safetensors.index.json (or a single model.safetensors), the
 * shards' headers, and what tensors they hold. Reads headers only; engine/loader.c reads the data.
 *
 * Checked here: shards are regular files, safe by base/owner.h (UNSAFE_OWNER), names have no '/';
 * header length <= file and <= CHECKPOINT_HEADER_MAX (HEADER_TOO_LARGE); JSON depth, duplicate keys (CONFIG); offsets
 * cover the data exactly, without gap or overlap (BAD_OFFSETS); shape times element size equals the bytes
 * (SHAPE_OVERFLOW, BAD_OFFSETS); index and shards agree (MISSING_TENSOR, UNKNOWN_TENSOR). An optional "model." prefix of
 * names is removed.
 * Then every tensor that config.json asks for must be there with its dtype and shape, and no other (MISSING_TENSOR,
 * BAD_TENSOR, UNKNOWN_TENSOR; copies of the embedding and head in mtp.N are ignored). MTP blocks are checked, not loaded.
 */
#pragma once

#include "engine/config.h"

#define CHECKPOINT_HEADER_MAX (64u << 20) /* bytes; all of Pro in one shard would have about 20 MB */
#define CHECKPOINT_SHARDS_MAX 4096

enum tensor_dtype { DTYPE_BF16, DTYPE_F32, DTYPE_I64, DTYPE_I8, DTYPE_F8_E4M3, DTYPE_F8_E8M0 };

struct tensor {
    const char *name;   /* without "model." */
    enum tensor_dtype dtype;
    uint32_t n_dims;
    uint64_t dim[4];
    uint32_t shard;     /* index into shard[] */
    uint64_t offset;    /* in the shard's file, bytes */
    uint64_t bytes;
};

struct shard {
    char *name;         /* in the directory */
    int fd;             /* read-only, buffered; the loader opens its own for O_DIRECT */
    uint64_t file_bytes;
    char *tensor_names; /* memory of the names of its tensors */
};

struct checkpoint {
    int dir_fd;
    struct model_config *config;
    struct shard *shards;
    uint32_t n_shards;
    struct tensor *tensors; /* sorted by shard, then offset */
    size_t n_tensors;
    uint64_t tensor_bytes;
    uint8_t digest[32]; /* SHA-256 over config.json and every shard's name, size and header: which checkpoint this is */
};

int checkpoint_open(const char *directory, struct checkpoint **ret, struct fail *f);
struct checkpoint *checkpoint_free(struct checkpoint *c);
DEFINE_CLEANUP(struct checkpoint *, checkpoint_free)

/* NULL if there is none of that name. */
const struct tensor *checkpoint_find(const struct checkpoint *c, const char *name);
