/* SPDX-License-Identifier: MIT */
/* Conversations and sampling settings from their protobuf messages: checked, copied, nothing of the message is kept. */
#pragma once

#include "base/fail.h"
#include "engine/chat.h"
#include "engine/sampler.h"
#include "proto/dsv4.pb-c.h"

/*
 * Tools go to the first message if it is a system message, else a system message without content is put before it; so
 * message numbers in errors of chat_encode may be one more than the client's. Without in->reasoning, out->effort is
 * CHAT_EFFORT_NONE: set the model's default where !in->has_reasoning. Never sets raw of a tool call.
 * EMPTY_INPUT; BAD_CHAT; RANGE (an unknown role or reasoning); BAD_UTF8 (value: byte) with the field, as
 * "chat.message[3].content".
 */
int chat_from_wire(const Dsv4__V1__Chat *in, struct chat *out, struct fail *f);

/* NULL `in`: the defaults. RANGE with field, limit and value, as "sampling.top_p". out->bias is allocated here:
 * sampler_params_deinit after sampler_new. The vocabulary is for sampler_new to check. */
int sampler_params_from_wire(const Dsv4__V1__Sampling *in, const struct sampler_params *defaults,
                             struct sampler_params *out, struct fail *f);
void sampler_params_deinit(struct sampler_params *p);
