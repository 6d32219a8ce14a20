/* SPDX-License-Identifier: MIT */
/*
 * Ranges of what clients ask for, as far as they do not depend on the model. The scanner has made sure of UTF-8, of
 * numbers that fit and of required fields. Each returns RANGE or MISSING_FIELD with field, limit and value where there is
 * a number to tell.
 */
#pragma once

#include "base/fail.h"
#include "proto/dsv4.pb-c.h"

#define CHECK_STOPS_MAX 16
#define CHECK_STOP_BYTES_MAX 256
#define CHECK_LOGPROBS_MAX 20
#define CHECK_BIASES_MAX 1024
#define CHECK_LABEL_BYTES_MAX 64
#define CHECK_RESUME_SECONDS_MAX 3600

int check_generate(const Dsv4__V1__Generate *g, struct fail *f);
int check_chat(const Dsv4__V1__Chat *c, struct fail *f);
int check_label(const char *label, const char *field, struct fail *f); /* label may be NULL */
