/* SPDX-License-Identifier: MIT */
/*
 * Conversations as JSON in the shape of tests/golden/encoding/cases.json (that of the released encoder's callers), for
 * dsv4-eval encode. Trees come from pyjson_load. BAD_CHAT names the message.
 */
#pragma once

#include "engine/chat.h"
#include "engine/pyjson.h"

/* {"messages": [...], "thinking_mode": "chat"|"thinking", "drop_thinking": true, "reasoning_effort": null} */
int chat_from_json(const json_t *input, struct chat *ret, struct fail *f);

/* {"role": "assistant", "content": ..., "reasoning_content": ..., "tool_calls": [...]} as a new reference. */
int chat_message_to_json(const struct chat_message *m, json_t **ret, struct fail *f);
