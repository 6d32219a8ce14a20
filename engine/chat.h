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
    /* Exactly what the model wrote for this call, "<...invoke" to its closing tag: replayed instead of the rendered form,
     * but only with raw_trusted, which none but the engine sets, for text that it kept itself and never got from a
     * client. Even then only the DSML mark in it counts as control; any other control token that an argument spells out
     * stays ordinary text. */
    char *raw;
    bool raw_trusted;
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
    char *response_format_json; /* of SYSTEM and DEVELOPER messages */
    bool no_eos;                /* ASSISTANT: left open, the model goes on with it */
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

/* BAD_CHAT: which message (field "message[N]") and why. The spans point into p->text, valid until it changes; *p is as
 * good as new before (zeroed or deinited). Some rules of the released encoder that surprise:
 * - TOOL messages and the USER messages around them become one user turn; a task on a USER message that is merged into an
 *   earlier one is ignored;
 * - with thinking and dropped reasoning, DEVELOPER messages before the last user turn are left out;
 * - tools anywhere keep all reasoning;
 * - arguments_json that is not JSON becomes one parameter "arguments"; JSON that is not an object is refused.
 * Stricter than it: an unknown task is refused also where it would not be printed, and a LATEST_REMINDER needs content. */
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

/*
 * What is repaired: text where none belongs (between and after calls) is given as content; blocks, calls and parameters
 * not closed are closed; a call inside unfinished reasoning ends the reasoning; a parameter given again is left out; a
 * value said to be JSON that is not is given as a string; a header that cannot be read gives an empty name. The
 * arguments are one valid JSON object for any text. raw is NULL, 0 for a call that was repaired or is longer than
 * COMPLETION_RAW_MAX. Where nothing was repaired, the events add up to what completion_parse gives (except for names
 * that contain tags).
 */
#define COMPLETION_RAW_MAX (4u << 20)

/* thinking: the prompt ended in <think>. tools: look for tool calls (else DSML is ordinary content). *e is copied. */
int completion_new(bool thinking, bool tools, const struct completion_events *e, void *userdata, struct completion **ret);
struct completion *completion_free(struct completion *c);
DEFINE_CLEANUP(struct completion *, completion_free)
/* UTF-8 as it comes, cut anywhere; end-of-sentence is never given. Holds back only what may be the start of a mark, or
 * half a character; values said to be JSON come in one piece. After an error only completion_free is allowed. */
int completion_feed(struct completion *c, const char *text, size_t n, struct fail *f);
/* No more text. 1: something malformed was repaired (an unclosed call or think block, ...). */
int completion_finish(struct completion *c, struct fail *f);
bool completion_in_reasoning(const struct completion *c);
uint32_t completion_calls(const struct completion *c);

/* The strict, whole parser of the released code (for dsv4-eval encode): text ends with end-of-sentence; BAD_COMPLETION.
 * *ret is one assistant message. */
int completion_parse(const char *text, size_t n, bool thinking, struct chat_message *ret, struct fail *f);
void chat_message_deinit(struct chat_message *m);
