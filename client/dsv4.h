/* SPDX-License-Identifier: MIT */
/*
 * libdsv4: talk to dsv4d, the DeepSeek-V4 service of this host, over its Unix socket.
 *
 * Conventions
 *   Results     0 or a negative errno; a positive value is a documented outcome of that one call. What a failed call on
 *               a connection means in words is in dsv4_get_error() of that connection.
 *   Objects     opaque. Four are counted (_ref, _unref): struct dsv4, dsv4_request, dsv4_chat, dsv4_generate. Replies
 *               (dsv4_models, dsv4_sessions, ...) belong to whoever asked and end with their _free call. Every _unref
 *               and _free takes NULL, returns NULL and has a cleanup helper whose name ends in "p".
 *   Strings     UTF-8, NUL-terminated. What is given is copied; what a getter returns belongs to its object.
 *   Units       in the name: _usec microseconds, _ms milliseconds, _bytes, _tokens. *_usec points in time are
 *               CLOCK_REALTIME, but dsv4_get_timeout() counts CLOCK_MONOTONIC.
 *   Threads     one thread at a time for a connection and everything made from it; different connections are
 *               independent. Chat and parameter objects may move between threads but not be used by two at once.
 *   Signals     the library blocks none, and never raises SIGPIPE.
 *   Since       everything here is since 0.1 (symbol version LIBDSV4_0.1) unless said otherwise.
 */
#ifndef DSV4_H
#define DSV4_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define DSV4_VERSION_MAJOR 0
#define DSV4_VERSION_MINOR 1
#define DSV4_SOCKET_DEFAULT "/run/dsv4d/dsv4d.sock"

struct dsv4;          /* a connection */
struct dsv4_error;    /* why something failed */
struct dsv4_chat;     /* a conversation being put together */
struct dsv4_generate; /* what to generate and how */
struct dsv4_request;  /* a generation that runs or ran */
struct dsv4_event;    /* one thing that happened to it */
struct dsv4_models;   /* replies ... */
struct dsv4_model;
struct dsv4_session;
struct dsv4_sessions;
struct dsv4_usage;
struct dsv4_status;

/* Kinds of token counts, for dsv4_event_get_count() and dsv4_usage_get_count(). */
enum dsv4_count {
    DSV4_COUNT_INPUT_COMPUTED, /* prompt tokens that were calculated */
    DSV4_COUNT_INPUT_CACHED,   /* prompt tokens taken from the prefix cache */
    DSV4_COUNT_OUTPUT,         /* generated, reasoning included */
    DSV4_COUNT_REASONING       /* of those, reasoning; 0 where not told */
};

/* ------------------------------------------------------------------------------------------------ errors */

/* The library's version, "0.1.0". */
const char *dsv4_version(void);

/* Why the last failed call on this connection failed; valid until the next call on it. Never NULL; before any failure
 * its code is "". Calls that succeed do not reset it. */
const struct dsv4_error *dsv4_get_error(const struct dsv4 *c);

/* A stable name in capitals: those of dsv4-protocol(7), or one of the library's own: UNAVAILABLE (nobody listens at the
 * socket), DISCONNECTED (the connection broke and could not be resumed), NOT_CONNECTED, PROTOCOL (the server said what
 * it may not). */
const char *dsv4_error_get_code(const struct dsv4_error *e);
/* A sentence for a person. */
const char *dsv4_error_get_message(const struct dsv4_error *e);
/* Which input it is about, "" if none. */
const char *dsv4_error_get_field(const struct dsv4_error *e);
/* The matching positive errno, 0 if nothing failed. */
int dsv4_error_get_errno(const struct dsv4_error *e);
/* What was allowed, and what was found. 1 if the error has it, 0 (and *ret unchanged) if not. */
int dsv4_error_get_limit(const struct dsv4_error *e, int64_t *ret);
int dsv4_error_get_value(const struct dsv4_error *e, int64_t *ret);
/* Advice when to try again; 0: none. */
uint32_t dsv4_error_get_retry_after_ms(const struct dsv4_error *e);

/* ------------------------------------------------------------------------------------------------ connection */

/* A connection object, not connected yet. -ENOMEM. */
int dsv4_new(struct dsv4 **ret);
struct dsv4 *dsv4_ref(struct dsv4 *c);
/* Closes the socket with the last reference; requests hold one each. */
struct dsv4 *dsv4_unref(struct dsv4 *c);

/* Name and version of the program, for the admin's eyes; at most 64 bytes, before dsv4_connect(). -EINVAL too long,
 * -EISCONN. Without it the library's own name is sent. */
int dsv4_set_client_name(struct dsv4 *c, const char *name);
/* How long a synchronous call waits for its answer, in microseconds; UINT64_MAX: for ever. Default 60 s. Generation is
 * not limited by it. */
int dsv4_set_timeout(struct dsv4 *c, uint64_t usec);

/* Connect to a socket and exchange greetings; waits for the answer. path NULL: $DSV4_SOCKET, or DSV4_SOCKET_DEFAULT.
 * An object whose connection broke may be connected again. -ECONNREFUSED, -ENOENT, -EACCES (UNAVAILABLE, DENIED),
 * -EPROTONOSUPPORT (VERSION), -EISCONN, -ENAMETOOLONG, -ETIMEDOUT, -ENOMEM. */
int dsv4_connect(struct dsv4 *c, const char *path);
/* The same over a connected stream socket, which belongs to the connection from now on, also when this fails. Such a
 * connection cannot be resumed when it breaks. */
int dsv4_connect_fd(struct dsv4 *c, int fd);

/* What the server calls itself; protocol version; the uid it takes the caller for. NULL, 0, (uint32_t)-1 before. */
const char *dsv4_get_server(const struct dsv4 *c);
uint32_t dsv4_get_protocol_version(const struct dsv4 *c);
uint32_t dsv4_get_server_uid(const struct dsv4 *c);

/* For event loops: watch the fd for these poll(2) events, at most until the timeout, then call dsv4_process(). Ask for
 * all three again after every call, because a connection that is being resumed has another fd, or -1 while it waits.
 * dsv4_get_fd(): the non-blocking socket or -ENOTCONN. dsv4_get_events(): POLLIN, POLLOUT. dsv4_get_timeout(): a point
 * of CLOCK_MONOTONIC in microseconds; UINT64_MAX: no timeout. */
int dsv4_get_fd(const struct dsv4 *c);
int dsv4_get_events(const struct dsv4 *c);
int dsv4_get_timeout(const struct dsv4 *c, uint64_t *ret_usec);
/* Send and receive what is possible without waiting; runs callbacks. 1: something was done, 0: nothing to do.
 * -ENOTCONN, -ECONNRESET (the connection is lost: every unfinished request has got an error event), -ENOMEM, -EPROTO.
 * Not from inside a callback: -EBUSY. */
int dsv4_process(struct dsv4 *c);
/* Wait until dsv4_process() has something to do, at most timeout_usec (UINT64_MAX: for ever). 1: it has, 0: time is
 * over. -EINTR when a signal handler ran. */
int dsv4_wait(struct dsv4 *c, uint64_t timeout_usec);

/* ------------------------------------------------------------------------------------------------ conversation */

enum dsv4_role {
    DSV4_ROLE_SYSTEM,
    DSV4_ROLE_USER,
    DSV4_ROLE_ASSISTANT,
    DSV4_ROLE_TOOL,
    DSV4_ROLE_DEVELOPER,
    DSV4_ROLE_LATEST_REMINDER
};
enum dsv4_reasoning { DSV4_REASONING_NONE, DSV4_REASONING_HIGH, DSV4_REASONING_MAX };

/* An empty conversation. All setters: 0, -ENOMEM, or -EINVAL for an argument that cannot be. */
int dsv4_chat_new(struct dsv4_chat **ret);
struct dsv4_chat *dsv4_chat_ref(struct dsv4_chat *chat);
struct dsv4_chat *dsv4_chat_unref(struct dsv4_chat *chat);

/* Append a message; content may be NULL for an assistant that only calls tools. The server checks the UTF-8. */
int dsv4_chat_add(struct dsv4_chat *chat, enum dsv4_role role, const char *content);
/* Append the answer to a tool call: role TOOL. */
int dsv4_chat_add_tool_result(struct dsv4_chat *chat, const char *tool_call_id, const char *content);
/* Append what a finished request answered, with its reasoning and tool calls. -EINPROGRESS while it runs. */
int dsv4_chat_add_answer(struct dsv4_chat *chat, const struct dsv4_request *request);
/* Drop the last message. -ENOENT. */
int dsv4_chat_remove_last(struct dsv4_chat *chat);
size_t dsv4_chat_get_size(const struct dsv4_chat *chat); /* messages */

/* Of the message appended last; -ENOENT if there is none, -EINVAL if its role does not fit. */
int dsv4_chat_set_message_reasoning(struct dsv4_chat *chat, const char *reasoning);
int dsv4_chat_add_tool_call(struct dsv4_chat *chat, const char *id, const char *name, const char *arguments_json);
/* A quick instruction: "action", "query", "authority", "domain", "title" or "read_url". */
int dsv4_chat_set_task(struct dsv4_chat *chat, const char *task);

/* A tool that the model may call; description and parameters_json (a JSON Schema) may be NULL. */
int dsv4_chat_add_tool(struct dsv4_chat *chat, const char *name, const char *description,
                       const char *parameters_json);
/* How much to think; without it the model file's default. */
int dsv4_chat_set_reasoning(struct dsv4_chat *chat, enum dsv4_reasoning reasoning);
/* Whether earlier turns' reasoning stays in the prompt; always so with tools. */
int dsv4_chat_set_keep_reasoning(struct dsv4_chat *chat, int keep);

/* ------------------------------------------------------------------------------------------------ parameters */

enum dsv4_response_format { DSV4_RESPONSE_JSON, DSV4_RESPONSE_JSON_SCHEMA, DSV4_RESPONSE_REGEX };

/* What to generate. One input (text, chat or tokens; the last one set counts) and a model or a session are needed;
 * everything else has the model file's default. Setters: 0 or -ENOMEM; ranges are the server's to check (RANGE), since
 * it knows them. */
int dsv4_generate_new(struct dsv4_generate **ret);
struct dsv4_generate *dsv4_generate_ref(struct dsv4_generate *g);
struct dsv4_generate *dsv4_generate_unref(struct dsv4_generate *g);

int dsv4_generate_set_model(struct dsv4_generate *g, const char *model);
int dsv4_generate_set_session(struct dsv4_generate *g, const char *session);
/* Raw continuation, no chat format. size in bytes; text must not contain NUL (-EINVAL). */
int dsv4_generate_set_text(struct dsv4_generate *g, const char *text, size_t size);
/* Keeps a reference; what the chat holds when the request starts is sent. */
int dsv4_generate_set_chat(struct dsv4_generate *g, struct dsv4_chat *chat);
int dsv4_generate_set_tokens(struct dsv4_generate *g, const uint32_t *ids, size_t n_ids);

int dsv4_generate_set_max_tokens(struct dsv4_generate *g, uint32_t tokens);
int dsv4_generate_set_temperature(struct dsv4_generate *g, float temperature);     /* 0 .. 2; 0 is greedy */
int dsv4_generate_set_top_p(struct dsv4_generate *g, float top_p);                 /* (0, 1] */
int dsv4_generate_set_top_k(struct dsv4_generate *g, uint32_t top_k);              /* 0: off */
int dsv4_generate_set_min_p(struct dsv4_generate *g, float min_p);                 /* [0, 1) */
int dsv4_generate_set_seed(struct dsv4_generate *g, uint64_t seed);                /* same seed and input: same text */
int dsv4_generate_set_presence_penalty(struct dsv4_generate *g, float penalty);    /* -2 .. 2 */
int dsv4_generate_set_frequency_penalty(struct dsv4_generate *g, float penalty);   /* -2 .. 2 */
int dsv4_generate_add_bias(struct dsv4_generate *g, uint32_t token, float bias);   /* -100 .. 100; at most 1024 */
int dsv4_generate_add_stop(struct dsv4_generate *g, const char *stop);             /* at most 16, 1 .. 256 bytes each */
int dsv4_generate_set_logprobs(struct dsv4_generate *g, uint32_t alternatives);    /* 0 .. 20 per output token */
int dsv4_generate_set_append_only(struct dsv4_generate *g, int append_only);       /* prefill and keep, no output */
/* text: the schema or the expression; NULL for DSV4_RESPONSE_JSON. -EINVAL. */
int dsv4_generate_set_response_format(struct dsv4_generate *g, enum dsv4_response_format format, const char *text);
/* Keep generating this long after the connection breaks; the library reconnects and goes on within that time, and
 * nobody above notices. 0, the default: off. */
int dsv4_generate_set_resume_seconds(struct dsv4_generate *g, uint32_t seconds);

/* ------------------------------------------------------------------------------------------------ requests */

/* Called from dsv4_process() (and calls that wait) with each event, which is valid during the call. A negative return
 * cancels the request. The callback may start, cancel and unref requests, but neither process nor wait. */
typedef int (*dsv4_event_handler)(struct dsv4_request *request, const struct dsv4_event *event, void *userdata);

/* Start a generation; any number may run at once on one connection. With a handler events go to it; without, they wait
 * in the request for dsv4_request_next(), in memory: take them. Input of more than 1 MiB travels as a sealed memfd. Returns
 * at once unless the connection is just being resumed. -EINVAL (MISSING_FIELD), -EMSGSIZE (FRAME_TOO_LARGE), -ENOTCONN,
 * -ENOMEM. Refusals of the server come as an error event. */
int dsv4_generate_start(struct dsv4 *c, const struct dsv4_generate *g, dsv4_event_handler handler, void *userdata,
                        struct dsv4_request **ret);
/* Start, and wait for its end. 0 when it finished, for whatever reason; the error of an error event; what the handler
 * returned if negative. A signal does not end it. ret_request may be NULL; it is set when the request has started. */
int dsv4_generate_run(struct dsv4 *c, const struct dsv4_generate *g, dsv4_event_handler handler, void *userdata,
                      struct dsv4_request **ret_request);

struct dsv4_request *dsv4_request_ref(struct dsv4_request *r);
/* With the last reference an unfinished request is cancelled and its further events are dropped. */
struct dsv4_request *dsv4_request_unref(struct dsv4_request *r);

/* The next event, waiting for it; valid until the next call with this request. 1: an event; 0: there was the last one
 * before. -EINTR when a signal handler ran (call again), -EINVAL if it has a handler. */
int dsv4_request_next(struct dsv4_request *r, const struct dsv4_event **ret);
/* The same without waiting, after dsv4_process(): -EAGAIN if none is there yet. */
int dsv4_request_try_next(struct dsv4_request *r, const struct dsv4_event **ret);
/* Ask for its end; the last event still comes (finish reason CANCELLED, unless it was faster). 0 also if it is over. */
int dsv4_request_cancel(struct dsv4_request *r);
/* 1 when its last event has come from the server, 0 before. */
int dsv4_request_is_done(const struct dsv4_request *r);
/* Everything so far: the answer and the reasoning. Never NULL. */
const char *dsv4_request_get_content(const struct dsv4_request *r);
const char *dsv4_request_get_reasoning(const struct dsv4_request *r);
/* Tool calls so far, and one of them. -ENOENT. Any ret may be NULL. */
size_t dsv4_request_get_n_tool_calls(const struct dsv4_request *r);
int dsv4_request_get_tool_call(const struct dsv4_request *r, size_t i, const char **ret_id, const char **ret_name,
                               const char **ret_arguments_json);
/* How often the connection was resumed under it. */
uint32_t dsv4_request_get_n_resumed(const struct dsv4_request *r);

/* ------------------------------------------------------------------------------------------------ events */

enum dsv4_event_type {
    DSV4_EVENT_ACCEPTED,
    DSV4_EVENT_QUEUED,   /* waiting for others */
    DSV4_EVENT_PREFILL,  /* reading the prompt */
    DSV4_EVENT_DELTA,    /* output */
    DSV4_EVENT_FINISHED, /* the last one */
    DSV4_EVENT_ERROR     /* the last one */
};
enum dsv4_finish_reason {
    DSV4_FINISH_STOP,       /* the model ended, or a stop string came */
    DSV4_FINISH_LENGTH,     /* max_tokens */
    DSV4_FINISH_TOOL_CALLS, /* it waits for tool results */
    DSV4_FINISH_CANCELLED,
    DSV4_FINISH_PREFILLED   /* append_only */
};
enum dsv4_phase { DSV4_PHASE_QUEUE, DSV4_PHASE_PREFILL, DSV4_PHASE_DECODE };

/* Getters of what another type of event has return NULL, 0 or -ENODATA. Enumerations may grow: ignore what you do not
 * know. */
enum dsv4_event_type dsv4_event_get_type(const struct dsv4_event *e);
/* QUEUED: place in the queue; estimated wait in *ret_estimate_ms, 0 if unknown. */
int dsv4_event_get_queue(const struct dsv4_event *e, uint32_t *ret_position, uint32_t *ret_estimate_ms);
/* PREFILL: tokens read, of how many, and how many of them were cached. */
int dsv4_event_get_prefill(const struct dsv4_event *e, uint32_t *ret_done, uint32_t *ret_total, uint32_t *ret_cached);
/* DELTA: pieces of the answer and of the reasoning, whole UTF-8 characters; NULL if it has none. */
const char *dsv4_event_get_content(const struct dsv4_event *e);
const char *dsv4_event_get_reasoning(const struct dsv4_event *e);
/* DELTA: part of tool call number *ret_call; id and name come with its first part, else NULL. 1 or 0. */
int dsv4_event_get_tool_call(const struct dsv4_event *e, uint32_t *ret_call, const char **ret_id,
                             const char **ret_name, const char **ret_arguments);
/* DELTA: its number in the request, from 0. */
int dsv4_event_get_index(const struct dsv4_event *e, uint32_t *ret);
/* DELTA: tokens with log-probabilities; token i, its alternatives and alternative j. Natural logarithms. */
size_t dsv4_event_get_n_logprobs(const struct dsv4_event *e);
int dsv4_event_get_logprob(const struct dsv4_event *e, size_t i, uint32_t *ret_token, float *ret_logprob);
size_t dsv4_event_get_n_alternatives(const struct dsv4_event *e, size_t i);
int dsv4_event_get_alternative(const struct dsv4_event *e, size_t i, size_t j, uint32_t *ret_token,
                               float *ret_logprob);
/* FINISHED */
int dsv4_event_get_finish_reason(const struct dsv4_event *e, enum dsv4_finish_reason *ret);
uint64_t dsv4_event_get_count(const struct dsv4_event *e, enum dsv4_count count);  /* tokens */
uint64_t dsv4_event_get_usec(const struct dsv4_event *e, enum dsv4_phase phase);
const char *dsv4_event_get_session(const struct dsv4_event *e);                   /* NULL: a temporary one */
int dsv4_event_get_seed(const struct dsv4_event *e, uint64_t *ret);               /* the one used */
const uint8_t *dsv4_event_get_model_digest(const struct dsv4_event *e, size_t *ret_size);
int dsv4_event_get_tool_call_repaired(const struct dsv4_event *e);                /* 1: the model's syntax was mended */
/* ERROR; NULL for others. */
const struct dsv4_error *dsv4_event_get_error(const struct dsv4_event *e);

/* ------------------------------------------------------------------------------------------------ models */

enum dsv4_model_state {
    DSV4_MODEL_UNLOADED,
    DSV4_MODEL_LOADING,
    DSV4_MODEL_READY,
    DSV4_MODEL_DRAINING,
    DSV4_MODEL_FAILED
};

/* Synchronous calls wait for the answer (dsv4_set_timeout(): -ETIMEDOUT), go on after signals, and dispatch events of
 * running requests meanwhile. Errors: that of the server's code, -ENOTCONN, -ECONNRESET, -ENOMEM, -EBUSY in a callback. */
int dsv4_list_models(struct dsv4 *c, struct dsv4_models **ret);
struct dsv4_models *dsv4_models_free(struct dsv4_models *m);
size_t dsv4_models_get_size(const struct dsv4_models *m);
/* Model i, or NULL; lives as long as the list. */
const struct dsv4_model *dsv4_models_get(const struct dsv4_models *m, size_t i);

const char *dsv4_model_get_name(const struct dsv4_model *m);
size_t dsv4_model_get_n_aliases(const struct dsv4_model *m);
const char *dsv4_model_get_alias(const struct dsv4_model *m, size_t i);            /* NULL past the end */
enum dsv4_model_state dsv4_model_get_state(const struct dsv4_model *m);
const char *dsv4_model_get_architecture(const struct dsv4_model *m);               /* NULL: unknown */
uint32_t dsv4_model_get_context_tokens(const struct dsv4_model *m);                /* 0: unknown */
uint32_t dsv4_model_get_vocabulary(const struct dsv4_model *m);                    /* 0: unknown */
const uint8_t *dsv4_model_get_digest(const struct dsv4_model *m, size_t *ret_size);
uint64_t dsv4_model_get_weight_bytes(const struct dsv4_model *m);
uint64_t dsv4_model_get_loaded_bytes(const struct dsv4_model *m);                  /* while LOADING */
const char *dsv4_model_get_device(const struct dsv4_model *m);                     /* NULL: unknown */
int dsv4_model_has_reasoning(const struct dsv4_model *m);
int dsv4_model_has_tools(const struct dsv4_model *m);
const char *dsv4_model_get_detail(const struct dsv4_model *m);                     /* why FAILED; NULL */

/* ------------------------------------------------------------------------------------------------ sessions */

enum dsv4_place { DSV4_PLACE_DEVICE, DSV4_PLACE_HOST, DSV4_PLACE_DISK };

/* A session keeps tokens and their KV cache between requests; it belongs to the caller's uid. label (at most 64 bytes)
 * may be NULL; idle_seconds 0: the server's default. ret may be NULL but for open and fork. */
int dsv4_open_session(struct dsv4 *c, const char *model, const char *label, uint32_t idle_seconds,
                      struct dsv4_session **ret);
int dsv4_close_session(struct dsv4 *c, const char *session);
int dsv4_fork_session(struct dsv4 *c, const char *session, const char *label, struct dsv4_session **ret);
/* Keep the first so many tokens. */
int dsv4_trim_session(struct dsv4 *c, const char *session, uint32_t tokens, struct dsv4_session **ret);
struct dsv4_session *dsv4_session_free(struct dsv4_session *s);

int dsv4_list_sessions(struct dsv4 *c, struct dsv4_sessions **ret);
struct dsv4_sessions *dsv4_sessions_free(struct dsv4_sessions *s);
size_t dsv4_sessions_get_size(const struct dsv4_sessions *s);
/* Session i, or NULL; lives as long as the list, and must not be freed by itself. */
const struct dsv4_session *dsv4_sessions_get(const struct dsv4_sessions *s, size_t i);

const char *dsv4_session_get_id(const struct dsv4_session *s);
const char *dsv4_session_get_model(const struct dsv4_session *s);
const char *dsv4_session_get_label(const struct dsv4_session *s);                  /* NULL: none */
uint32_t dsv4_session_get_tokens(const struct dsv4_session *s);
uint64_t dsv4_session_get_kv_bytes(const struct dsv4_session *s);
enum dsv4_place dsv4_session_get_place(const struct dsv4_session *s);
uint64_t dsv4_session_get_created_usec(const struct dsv4_session *s);              /* 0: not told */
uint64_t dsv4_session_get_used_usec(const struct dsv4_session *s);

/* ------------------------------------------------------------------------------------------------ text */

/* Token ids of text; special: control tokens written in the text count as such. *ret_ids is the caller's to free().
 * -EILSEQ (BAD_UTF8), -EINVAL (a NUL in the text), -EMSGSIZE for more than one frame. */
int dsv4_tokenize(struct dsv4 *c, const char *model, const char *text, size_t size, int special, uint32_t **ret_ids,
                  size_t *ret_n);
/* The same for the prompt that a conversation becomes. */
int dsv4_tokenize_chat(struct dsv4 *c, const char *model, const struct dsv4_chat *chat, uint32_t **ret_ids,
                       size_t *ret_n);
/* Bytes of token ids, NUL-terminated, the caller's to free(). They may begin or end within a character. */
int dsv4_detokenize(struct dsv4 *c, const char *model, const uint32_t *ids, size_t n_ids, char **ret_text,
                    size_t *ret_size);

/* ------------------------------------------------------------------------------------------------ account and state */

/* What the caller's uid used since a time (0: everything recorded), per model, and its quotas. */
int dsv4_get_usage(struct dsv4 *c, uint64_t since_usec, struct dsv4_usage **ret);
struct dsv4_usage *dsv4_usage_free(struct dsv4_usage *u);
size_t dsv4_usage_get_n_models(const struct dsv4_usage *u);
const char *dsv4_usage_get_model(const struct dsv4_usage *u, size_t i);            /* NULL past the end */
uint64_t dsv4_usage_get_count(const struct dsv4_usage *u, size_t i, enum dsv4_count count);
uint64_t dsv4_usage_get_requests(const struct dsv4_usage *u, size_t i);
/* 1 if the admin set a price; the currency may be NULL. */
int dsv4_usage_get_cost(const struct dsv4_usage *u, size_t i, double *ret_cost, const char **ret_currency);
size_t dsv4_usage_get_n_quotas(const struct dsv4_usage *u);
/* Quota i; *ret_resets_usec 0: it does not reset. -ENOENT. Any ret may be NULL. */
int dsv4_usage_get_quota(const struct dsv4_usage *u, size_t i, const char **ret_name, uint64_t *ret_limit,
                         uint64_t *ret_used, uint64_t *ret_resets_usec);

int dsv4_get_status(struct dsv4 *c, struct dsv4_status **ret);
struct dsv4_status *dsv4_status_free(struct dsv4_status *s);
const char *dsv4_status_get_version(const struct dsv4_status *s);
uint64_t dsv4_status_get_started_usec(const struct dsv4_status *s);
uint32_t dsv4_status_get_running(const struct dsv4_status *s);                     /* all users' requests */
uint32_t dsv4_status_get_queued(const struct dsv4_status *s);
uint32_t dsv4_status_get_sessions(const struct dsv4_status *s);                    /* the caller's */
size_t dsv4_status_get_n_models(const struct dsv4_status *s);
const struct dsv4_model *dsv4_status_get_model(const struct dsv4_status *s, size_t i); /* NULL past the end */

/* ------------------------------------------------------------------------------------------------ cleanup helpers */

/* For __attribute__((cleanup(dsv4_unrefp))) and the like. */
#define DSV4_DEFINE_CLEANUP(type, function)        \
    static inline void function##p(struct type **p) \
    {                                              \
        if (*p)                                    \
            (void)function(*p);                    \
    }
DSV4_DEFINE_CLEANUP(dsv4, dsv4_unref)
DSV4_DEFINE_CLEANUP(dsv4_chat, dsv4_chat_unref)
DSV4_DEFINE_CLEANUP(dsv4_generate, dsv4_generate_unref)
DSV4_DEFINE_CLEANUP(dsv4_request, dsv4_request_unref)
DSV4_DEFINE_CLEANUP(dsv4_models, dsv4_models_free)
DSV4_DEFINE_CLEANUP(dsv4_session, dsv4_session_free)
DSV4_DEFINE_CLEANUP(dsv4_sessions, dsv4_sessions_free)
DSV4_DEFINE_CLEANUP(dsv4_usage, dsv4_usage_free)
DSV4_DEFINE_CLEANUP(dsv4_status, dsv4_status_free)
#undef DSV4_DEFINE_CLEANUP

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
