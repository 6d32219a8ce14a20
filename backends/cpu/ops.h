/* SPDX-License-Identifier: MIT */
/* The operations, by file. What each does: backend.h. */
#pragma once

#include "backends/cpu/cpu.h"

/* op-linear.c */
int cpu_linear(struct backend *b, const float *x, uint32_t count, const struct weight *const *w, float *const *y);
int cpu_grouped_linear(struct backend *b, uint32_t groups, const float *x, const struct weight *w, float *y);
/* Makes activations of n rows of `cols` values for a matrix of that type and points m at them; x_step: floats between
 * rows. Where the kernels take float32 as it is, nothing is copied. */
void linear_prepare(struct backend *b, enum weight_type type, uint32_t cols, uint32_t n, const float *x, size_t x_step,
                    struct cpu_matmul *m);
/* Runs matmul over all rows of n matrices that share nothing but the pool. At most LINEAR_JOBS. */
#define LINEAR_JOBS 16
void linear_run(struct backend *b, const struct cpu_matmul *m, uint32_t n);
/* Rows of one item of work, so that all threads have some. */
uint32_t linear_item_rows(const struct backend *b, size_t rows);

/* op-hc.c */
int cpu_hc_pre_norm(struct backend *b, const float *X, const struct hc_weights *w, const float *norm, float *x,
                    float *post, float *comb);
int cpu_hc_post(struct backend *b, const float *y, const float *post, const float *comb, float *X);
int cpu_hc_head_norm(struct backend *b, const float *X, uint32_t n_rows, const uint32_t *row,
                     const struct hc_weights *w, const float *norm, float *x);

/* op-embed-head.c */
int cpu_embed(struct backend *b, const struct weight *embed, float *X);
int cpu_logits(struct backend *b, uint32_t n_rows, const float *x, const struct weight *head, float *out);

/* op-norm-rope.c */
int cpu_norm(struct backend *b, uint32_t width, const float *norm, float *x);
int cpu_q_norm_rope(struct backend *b, uint32_t layer, float *q);
int cpu_kv_norm_rope_store(struct backend *b, uint32_t layer, const float *kv, const float *norm, uint8_t *rows);
int cpu_kv_commit(struct backend *b, uint32_t layer, const uint8_t *rows);

/* op-compress.c */
int cpu_compress_store(struct backend *b, uint32_t layer, bool index, const float *k, const float *s,
                       const struct compressor_weights *w);
int cpu_state_reset(struct backend *b, uint8_t *state);

/* op-index.c */
int cpu_index_topk(struct backend *b, uint32_t layer, float *iq, const float *weight, uint32_t *chosen);

/* op-attention.c */
int cpu_attention(struct backend *b, uint32_t layer, const float *q, const uint8_t *rows, const uint32_t *chosen,
                  const float *sink, float *o);

/* op-moe.c */
int cpu_route(struct backend *b, const float *x, const struct weight *gate, const float *bias, const uint32_t *table,
              uint32_t *ids, float *weights);
int cpu_moe(struct backend *b, const float *x, const uint32_t *ids, const float *weights, const struct moe_weights *w,
            float *y);
struct moe_scratch *moe_scratch_new(const struct model_shape *shape, uint32_t max_tokens);
struct moe_scratch *moe_scratch_free(struct moe_scratch *s);
