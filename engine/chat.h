/* SPDX-License-Identifier: MIT */
/*
 * The model's chat format: messages to a prompt (chat.c), and a completion back to a message, as it streams or whole
 * (completion.c). Equal to the released encoder on tests/golden/encoding/cases.json. Knows neither protobuf nor
 * sampling; engine-request.c converts. Strings are UTF-8, NUL-terminated, NULL where absent.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/fail.h"
#include "engine/tokenizer.h"

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL, CHAT_DEVELOPER, CHAT_LATEST_REMINDER };
enum chat_effort { CHAT_EFFORT_NONE, CHAT_EFFORT_HIGH, CHAT_EFFORT_MAX }; /* NONE: chat mode, no thinking */

struct chat_tool_call {
    char *id, *name, *arguments_json;
    char *raw; /* exactly what the model wrote for this call, if known: replayed instead of the rendered form */
};

struct chat_tool {
    char *name, *description, *parameters_json;
    char *schema_json; /* if set, the whole function object as given, printed instead of the three above */
};

struct chat_message {
    enum chat_role role;
    char *content, *reasoning, *tool_call_id, *task;
    struct chat_tool_call *tool_call;
    size_t n_tool_calls;
    struct chat_tool *tool; /* of SYSTEM and DEVELOPER messages */
    size_t n_tools;
    char *response_format_json;
};

struct chat {
    struct chat_message *message;
    size_t n_messages;
    enum chat_effort effort;
    bool keep_reasoning;
};

void chat_deinit(struct chat *c);
#define _cleanup_chat_ _cleanup_(chat_deinit)

/* The prompt: text and spans over it (which parts are the format's own). */
struct chat_prompt {
    struct buf text;
    struct text_span *span;
    size_t n_spans, span_capacity;
};
void chat_prompt_deinit(struct chat_prompt *p);
#define _cleanup_chat_prompt_ _cleanup_(chat_prompt_deinit)

/* BAD_CHAT: which message and why. The spans point into p->text, valid until it changes. */
int chat_encode(const struct chat *c, struct chat_prompt *p, struct fail *f);

/* ---------------------------------------------------------------- completions */

struct completion_events { /* any may be NULL; a negative return stops and is passed on. Text is whole UTF-8. */
    int (*content)(const char *text, size_t n, void *userdata);
    int (*reasoning)(const char *text, size_t n, void *userdata);
    int (*call_begin)(uint32_t call, const char *name, void *userdata);
    int (*call_arguments)(uint32_t call, const char *json, size_t n, void *userdata); /* pieces of one JSON object */
    int (*call_end)(uint32_t call, const char *raw, size_t n, void *userdata);
};

struct completion;

/* thinking: the prompt ended in <think>. tools: look for tool calls (else DSML is ordinary content). */
int completion_new(bool thinking, bool tools, const struct completion_events *e, void *userdata, struct completion **ret);
struct completion *completion_free(struct completion *c);
DEFINE_CLEANUP(struct completion *, completion_free)
/* Text as it comes, cut anywhere; end-of-sentence is never given. Holds back only what may be the start of a mark. */
int completion_feed(struct completion *c, const char *text, size_t n, struct fail *f);
/* No more text. 1: something malformed was repaired (an unclosed call or think block, ...). */
int completion_finish(struct completion *c, struct fail *f);
bool completion_in_reasoning(const struct completion *c);
uint32_t completion_calls(const struct completion *c);

/* The strict, whole parser of the released code (for dsv4-eval encode): text ends with end-of-sentence; BAD_COMPLETION.
 * *ret is one assistant message. */
int completion_parse(const char *text, size_t n, bool thinking, struct chat_message *ret, struct fail *f);
void chat_message_deinit(struct chat_message *m);
