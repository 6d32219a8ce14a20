/* SPDX-License-Identifier: MIT */
/* The header of one safetensors file: which tensor lies where. Knows nothing of the model. */
#pragma once

#include "engine/checkpoint.h"

struct safetensors {
    struct tensor *tensors; /* [n], sorted by offset; names point into `names` */
    size_t n;
    char *names;
};
#define SAFETENSORS_NULL ((struct safetensors){0})
void safetensors_deinit(struct safetensors *s);
#define _cleanup_safetensors_ _cleanup_(safetensors_deinit)

/*
 * Parse a header (JSON text without the 8 length bytes) of a file whose data begins at data_start and is data_bytes
 * long. Offsets in the result are from the file's beginning. `file` is for messages. Codes: CONFIG (not the JSON
 * expected), BAD_TENSOR, SHAPE_OVERFLOW, BAD_OFFSETS.
 */
int safetensors_parse(const char *header, size_t size, uint64_t data_start, uint64_t data_bytes, const char *file,
                      struct safetensors *ret, struct fail *f);

/* Read the header of an open file: malloc'ed text and size. HEADER_TOO_LARGE, IO_ERROR. */
int safetensors_read_header(int fd, uint64_t file_bytes, const char *file, char **ret, size_t *ret_size, struct fail *f);

const char *dtype_name(enum tensor_dtype t);
size_t dtype_bytes(enum tensor_dtype t);

/* "[512, 128]" */
#define SHAPE_SHOWN 100
const char *shape_show(const uint64_t *dim, uint32_t n_dims, char ret[SHAPE_SHOWN]);
