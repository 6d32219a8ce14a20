/* SPDX-License-Identifier: MIT */
/* Wire errors: stable codes, their errno, and conversion between struct fail and dsv4.v1.Error. */
#pragma once

#include <stddef.h>

#include "base/fail.h"
#include "proto/dsv4.pb-c.h"

struct error_code {
    const char *code;
    int err;              /* positive errno */
    const char *sentence;
};
extern const struct error_code error_codes[];
extern const size_t n_error_codes;

/* errno of a code; EIO for one this build does not know. */
int error_errno(const char *code);

/* Point e's fields into f (which must outlive e): message defaults to the code's sentence. No allocation. A fail without
 * code becomes INTERNAL. */
void error_from_fail(Dsv4__V1__Error *e, struct fail *f);
/* And back; long texts are cut. Returns -errno. */
int error_to_fail(const Dsv4__V1__Error *e, struct fail *f);
