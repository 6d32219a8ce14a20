/* SPDX-License-Identifier: MIT */
/*
 * The life of one Generate, from its tokens to its Finished: what goes into the session, what comes out of the sampler,
 * and the events the client sees. When it runs is the scheduler's business, what runs the stepper's.
 *
 * Made and checked by the main thread (request_new), handed to the step thread with the message that announces it, and
 * the step thread's from then on.
 */
#pragma once

#include "engine/callstore.h"
#include "engine/chat.h"
#include "engine/forward.h"
#include "engine/outbox.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/session.h"
#include "engine/textstream.h"

/* What all requests share; constant once the model is loaded. */
struct request_env {
    struct model *model;
    const struct tokenizer *tokenizer;
    struct outbox *outbox;
    struct callstore *calls;
    uint32_t bos, eos;
};

enum request_input { INPUT_TEXT, INPUT_CHAT, INPUT_TOKENS };

/* What the text thread makes of the input. */
struct request_prompt {
    struct tokens tokens;
    bool thinking; /* chat: the prompt ends inside a think block */
    bool tools;    /* chat: calls may come */
};
void request_prompt_deinit(struct request_prompt *p);

struct request {
    struct sched_item item;
    const struct request_env *env;
    uint64_t id, owner;
    uint32_t weight;
    char *session_id;             /* NULL: a temporary session */
    struct session *session;
    enum request_input input;
    bool append_only, quiet, has_max_tokens;
    uint32_t max_tokens, logprobs;
    bool want_logprobs;

    struct sampler *sampler;
    struct textstream *stream;
    struct completion *completion; /* chat input only */
    uint64_t seed;

    uint32_t total, cached;       /* tokens of the whole input, and of these in the KV at the start */
    uint32_t output, reasoning;   /* sampled so far */
    uint32_t delta_index, position;
    struct pending_logprob *logprob; /* [n_logprobs] not sent yet */
    uint32_t n_logprobs;
    char call_id[CALL_ID_SIZE];   /* of the call being written */
    struct fail *callback_fail;   /* while the completion parser calls back */

    uint64_t created_usec, started_usec, answered_usec; /* CLOCK_MONOTONIC; 0: not yet */
    uint64_t progress_usec;       /* of the last Prefill or Queued event */
};

/* Checks what can be checked without the session. RANGE, UNSUPPORTED, ... */
int request_new(const struct request_env *e, uint64_t id, uint64_t owner, const Dsv4__Engine__V1__Work *w,
                uint64_t now_usec, struct request **ret, struct fail *f);
struct request *request_free(struct request *r); /* out of the scheduler already; ends its session's use */
DEFINE_CLEANUP(struct request *, request_free)

/* Takes the session, or makes a temporary one. NO_SUCH_SESSION, SESSION_BUSY. */
int request_attach(struct request *r, struct session_table *t, struct fail *f);
/* The prompt becomes the session's tokens. EMPTY_INPUT, BAD_TOKEN, PROMPT_TOO_LONG, CONTEXT_FULL. */
int request_take_prompt(struct request *r, struct request_prompt *p, struct fail *f);
/* Before its first step: KV memory for all it may need. KV_FULL. *ret: how many tokens to compute, 0: none. */
int request_start(struct request *r, struct session_table *t, uint64_t now_usec, uint32_t *ret, struct fail *f);

void request_send_queued(struct request *r, uint32_t position, uint64_t now_usec);
void request_send_prefill(struct request *r, uint64_t now_usec);

/* Logits after the last token [vocab] -> the next token, events for it. 1: it was the last one, *ret_reason says why. */
int request_token(struct request *r, const float *logits, uint64_t now_usec, Dsv4__V1__FinishReason *ret_reason,
                  struct fail *f);
/* Sends what was held back and Finished; for a failure Error. Neither frees. */
void request_finish(struct request *r, Dsv4__V1__FinishReason reason, uint64_t now_usec);
void request_fail(struct request *r, struct fail *f);
