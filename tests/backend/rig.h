/* SPDX-License-Identifier: MIT */
/*
 * A backend opened for a test: configurations (device, numerics, instruction set) with their error bounds, a small
 * model shape, weights in the backend's layout beside their values, sessions.
 *
 * Every check of an operation is a function of a rig and runs for each configuration that this machine can do.
 */
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "backends/backend.h"
#include "base/macros.h"
#include "base/size.h"
#include "tests/backend/ref.h"

struct config {
    const char *name, *device, *isa;
    enum numerics numerics;
    /* A matrix product y = sum w x may be off by rel * sum |w x| + block * sum |w| * max |x| (rounded activations). */
    double rel, block;
    double row;    /* attention: off by row * max |value| of the rows it reads */
    double scalar; /* relative, of the element-wise operations */
};

extern const struct config configs[];
extern const size_t n_configs;

struct rig {
    const struct config *config;
    const struct backend_ops *ops;
    struct backend *b;
    struct model_shape shape;
    struct kv_layout kv;
    uint32_t max_tokens;
    float theta[2][32];
    uint64_t rnd;
    struct backend_batch batch;
};

enum { LAYER_PLAIN, LAYER_4, LAYER_8, LAYER_128, LAYERS };

/* false: this build or machine has no such configuration. Any other failure fails the test. */
bool rig_open(struct rig *r, const struct config *config, uint32_t threads, uint32_t max_tokens);
/* The same with another shape; change r->shape in between. */
void rig_shape(struct rig *r);
bool rig_open_shape(struct rig *r, const struct config *config, uint32_t threads, uint32_t max_tokens);
void rig_close(struct rig *r);

/* A batch of tokens of nobody (no state), for operations without sessions. id may be NULL. */
void rig_tokens(struct rig *r, uint32_t tokens, const uint32_t *id);

struct test_weight {
    struct weight w;
    double *value;     /* [rows][cols] */
    void *data, *scale;
};
/* Random codes, NaN ones excepted; scales between 2^-12 and 2^-5. */
void weight_init(struct rig *r, struct test_weight *t, enum weight_type type, uint32_t rows, uint32_t cols);
void weight_deinit(struct rig *r, struct test_weight *t);
/* y = W x in double, for rows first .. first + n - 1; *ret_bound: how far off y may be. */
double weight_dot(const struct rig *r, const struct test_weight *t, uint32_t row, const float *x, double *ret_bound);

float *floats(size_t n); /* zeroed; free() */

/* One session: state and pages of its own, for `tokens` tokens. */
struct test_session {
    uint8_t *state;
    uint32_t *page;
    uint32_t position;
};
struct sessions {
    uint8_t *pages;
    uint32_t n;
    struct test_session *s;
};
void sessions_init(struct rig *r, struct sessions *s, uint32_t n, uint32_t tokens);
void sessions_deinit(struct rig *r, struct sessions *s);

#define assert_near(found, expected, bound)                                                                     \
    do {                                                                                                        \
        double found_ = (found), expected_ = (expected), bound_ = (bound);                                      \
        if (!(fabs(found_ - expected_) <= bound_))                                                              \
            fail_msg("%s: found %.9g, expected %.9g, off by %.3g, allowed %.3g", r->config->name, found_,       \
                     expected_, fabs(found_ - expected_), bound_);                                              \
    } while (0)
