/* SPDX-License-Identifier: MIT */
/*
 * The text thread: everything that turns text into tokens or back and may take long, so that neither the event loop nor
 * the steps wait for it. Jobs are done one after the other in the order they came.
 *
 * The main thread puts jobs in and takes them back (cancel). The thread reads the tokenizer (immutable) and the callstore
 * and outbox (which lock), and hands prompts to `encoded`.
 */
#pragma once

#include "engine/request.h"

#define PROMPT_BYTES_MAX (64u << 20) /* of text in a memfd */

struct textwork;

/* On the text thread, exactly once per Generate that was not taken back: the prompt (moved out of *p), or why not
 * (failed->err != 0). */
typedef void (*textwork_encoded)(uint64_t id, struct request_prompt *p, const struct fail *failed, void *userdata);

int textwork_new(const struct request_env *e, textwork_encoded encoded, void *userdata, struct textwork **ret);
struct textwork *textwork_free(struct textwork *t); /* ends the thread; what was not begun is dropped */
DEFINE_CLEANUP(struct textwork *, textwork_free)

/* A Generate, Tokenize or Detokenize: *m (taken, also on failure) and its memfd or -1 (likewise). Tokenize and Detokenize
 * are answered into the outbox. -ENOMEM. */
int textwork_put(struct textwork *t, Dsv4__Engine__V1__FrontMessage *m, int memfd);
/* Forget the Generate of that id if it was not begun. */
void textwork_cancel(struct textwork *t, uint64_t id);
bool textwork_idle(struct textwork *t);
