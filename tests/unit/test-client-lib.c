/* SPDX-License-Identifier: MIT */
/* libdsv4 through its public calls, against a server of our own in a thread: scripted, and as rude as needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/fd.h"
#include "client/dsv4.h"
#include "proto/dsv4.pb-c.h"
#include "proto/frame.h"

typedef Dsv4__V1__ClientMessage Asked;
typedef Dsv4__V1__ServerMessage Said;

/* ---------------------------------------------------------------- the server */

struct server {
    int fd;              /* one end of a socketpair, or a listening socket */
    void (*script)(struct server *s);
    pthread_t thread;
    struct frame_reader in;
    struct frame_writer out;
    /* what the test looks at after server_end() */
    char seen[512];      /* operations in order, by letter */
    uint64_t memfd_bytes;
    char memfd_start[32];
    int memfd_sealed, memfd_is_chat;
    uint32_t resumed_at;
    char resumed_token[32];
    char path[108];
    int conn;
};

static void *server_main(void *arg)
{
    struct server *s = arg;

    s->script(s);
    if (s->conn >= 0)
        close(s->conn);
    frame_reader_deinit(&s->in);
    frame_writer_deinit(&s->out);
    return NULL;
}

/* The next message of the client, NULL when it is gone. */
static Asked *ask(struct server *s)
{
    const uint8_t *data;
    size_t n;

    for (;;) {
        if (frame_next(&s->in, &data, &n, NULL) == 1)
            break;
        struct pollfd p = {.fd = s->conn, .events = POLLIN};
        if (poll(&p, 1, 10000) <= 0)
            return NULL;
        if (frame_receive(&s->in, s->conn) <= 0)
            return NULL;
    }
    Asked *m = dsv4__v1__client_message__unpack(NULL, n, data);
    int fd = frame_take_fd(&s->in);
    if (fd >= 0) {
        struct stat st;
        if (fstat(fd, &st) == 0)
            s->memfd_bytes = (uint64_t)st.st_size;
        s->memfd_sealed = fd_is_sealed_memfd(fd);
        ssize_t k = pread(fd, s->memfd_start, sizeof(s->memfd_start) - 1, 0);
        if (k < 0)
            s->memfd_start[0] = '\0';
        close(fd);
    }
    frame_done(&s->in);
    size_t at = strlen(s->seen);
    if (m && at + 1 < sizeof(s->seen))
        s->seen[at] = "..hlo.s.tgcrkduq"[m->operation_case < 16 ? m->operation_case : 0];
    return m;
}

static void say(struct server *s, uint64_t id, Said *m)
{
    m->request_id = id;
    if (frame_queue(&s->out, &m->base, -1) < 0)
        return;
    while (frame_send(&s->out, s->conn) == 0) {
        struct pollfd p = {.fd = s->conn, .events = POLLOUT};
        if (poll(&p, 1, 10000) <= 0)
            return;
    }
}

#define SAY(s, id, case_, field, ...)                                     \
    do {                                                                  \
        Said said_ = DSV4__V1__SERVER_MESSAGE__INIT;                      \
        said_.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_##case_;       \
        __typeof__(*said_.field) body_ = __VA_ARGS__;                     \
        said_.field = &body_;                                             \
        say(s, id, &said_);                                               \
    } while (0)

static void say_error(struct server *s, uint64_t id, const char *code, const char *message)
{
    Dsv4__V1__Error e = DSV4__V1__ERROR__INIT;
    Said m = DSV4__V1__SERVER_MESSAGE__INIT;

    e.code = (char *)(uintptr_t)code;
    e.message = (char *)(uintptr_t)message;
    e.has_limit = e.has_value = e.has_retry_after_ms = true;
    e.limit = 10;
    e.value = 11;
    e.retry_after_ms = 1500;
    m.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_ERROR;
    m.error = &e;
    say(s, id, &m);
}

static void say_delta(struct server *s, uint64_t id, uint32_t index, const char *content)
{
    Dsv4__V1__Delta d = DSV4__V1__DELTA__INIT;
    Said m = DSV4__V1__SERVER_MESSAGE__INIT;

    d.index = index;
    d.content = (char *)(uintptr_t)content;
    m.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_DELTA;
    m.delta = &d;
    say(s, id, &m);
}

static void say_finished(struct server *s, uint64_t id, Dsv4__V1__FinishReason reason)
{
    Dsv4__V1__TokenCounts c = DSV4__V1__TOKEN_COUNTS__INIT;

    c.input_computed = 3;
    c.input_cached = 128;
    c.output = 2;
    SAY(s, id, FINISHED, finished, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__finished__descriptor), .reason = reason,
        .counts = &c, .has_seed = true, .seed = 99, .has_decode_usec = true, .decode_usec = 1000});
}

/* Read Hello and answer it. */
static bool greet(struct server *s)
{
    Asked *m = ask(s);

    if (!m)
        return false;
    bool ok = m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_HELLO;
    SAY(s, m->request_id, HELLO, hello, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__hello_reply__descriptor),
        .version = 1, .server = (char[]){"fake 1"}, .max_frame_bytes = FRAME_MAX, .has_uid = true, .uid = 77});
    dsv4__v1__client_message__free_unpacked(m, NULL);
    return ok;
}

static void server_start(struct server *s, void (*script)(struct server *))
{
    s->script = script;
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

/* A client connected to a script over a socketpair. */
static struct dsv4 *pair(struct server *s, void (*script)(struct server *))
{
    struct dsv4 *c;
    int fds[2];

    memset(s, 0, sizeof(*s));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    s->conn = fds[0];
    s->fd = -1;
    server_start(s, script);
    assert_int_equal(dsv4_new(&c), 0);
    dsv4_set_timeout(c, 5000000);
    assert_int_equal(dsv4_connect_fd(c, fds[1]), 0);
    return c;
}

/* A listening socket for scripts that lose connections. */
static void listening(struct server *s, void (*script)(struct server *))
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    memset(s, 0, sizeof(*s));
    s->conn = -1;
    snprintf(s->path, sizeof(s->path), "/tmp/dsv4-test-%d.sock", (int)getpid());
    unlink(s->path);
    memcpy(a.sun_path, s->path, sizeof(s->path));
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(s->fd, 8), 0);
    server_start(s, script);
}

static bool accept_one(struct server *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLIN};

    if (s->conn >= 0)
        close(s->conn);
    s->conn = -1;
    frame_reader_deinit(&s->in);
    s->in = FRAME_READER_INIT;
    if (poll(&p, 1, 10000) <= 0)
        return false;
    s->conn = accept(s->fd, NULL, NULL);
    return s->conn >= 0;
}

static void server_end(struct server *s)
{
    pthread_join(s->thread, NULL);
    if (s->fd >= 0)
        close(s->fd);
    if (s->path[0])
        unlink(s->path);
}

/* ---------------------------------------------------------------- connecting */

static void greets_only(struct server *s)
{
    greet(s);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void knows_the_server(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, greets_only);

    assert_string_equal(dsv4_get_server(c), "fake 1");
    assert_int_equal(dsv4_get_protocol_version(c), 1);
    assert_int_equal(dsv4_get_server_uid(c), 77);
    assert_true(dsv4_get_fd(c) >= 0);
    assert_int_equal(dsv4_get_events(c), POLLIN);
    assert_int_equal(dsv4_connect(c, "/nonexistent"), -EISCONN);
    assert_int_equal(dsv4_process(c), 0);
    dsv4_unref(c);
    server_end(&s);
    assert_string_equal(s.seen, "h");
}

static void nobody_there(void **state)
{
    (void)state;
    struct dsv4 *c;
    struct dsv4_models *m = NULL;
    char name[200];

    assert_int_equal(dsv4_new(&c), 0);
    assert_int_equal(dsv4_connect(c, "/nonexistent/dsv4d.sock"), -ENOENT);
    assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), "UNAVAILABLE");
    assert_int_equal(dsv4_list_models(c, &m), -ENOTCONN);
    assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), "NOT_CONNECTED");
    assert_int_equal(dsv4_process(c), -ENOTCONN);
    assert_int_equal(dsv4_wait(c, 0), -ENOTCONN);
    assert_int_equal(dsv4_get_fd(c), -ENOTCONN);
    memset(name, 'x', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(dsv4_connect(c, name), -ENAMETOOLONG);
    assert_int_equal(dsv4_set_client_name(c, name), -EINVAL);
    assert_null(dsv4_unref(c));
    assert_null(dsv4_unref(NULL));
}

static void refuses_greeting(struct server *s)
{
    Asked *m = ask(s);
    say_error(s, m->request_id, "VERSION", "have 2 .. 3, want 1 .. 1");
    dsv4__v1__client_message__free_unpacked(m, NULL);
}

static void says_why_and_closes(struct server *s)
{
    say_error(s, 0, "QUOTA", "one connection too many");
}

static void closes(struct server *s)
{
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void talks_rubbish(struct server *s)
{
    static const char rubbish[] = {5, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'};
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
    (void)!write(s->conn, rubbish, sizeof(rubbish));
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void announces_much(struct server *s)
{
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
    (void)!write(s->conn, "\377\377\377\377", 4);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void says_nothing(struct server *s)
{
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void bad_greetings(void **state)
{
    (void)state;
    static const struct {
        void (*script)(struct server *);
        int result;
        const char *code;
    } cases[] = {
        {refuses_greeting, -EPROTONOSUPPORT, "VERSION"}, {says_why_and_closes, -EDQUOT, "QUOTA"},
        {closes, -ECONNRESET, "DISCONNECTED"},           {talks_rubbish, -EBADMSG, "MALFORMED"},
        {announces_much, -EMSGSIZE, "FRAME_TOO_LARGE"},  {says_nothing, -ETIMEDOUT, NULL},
    };
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        struct server s = {.fd = -1};
        struct dsv4 *c;
        int fds[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        s.conn = fds[0];
        server_start(&s, cases[i].script);
        assert_int_equal(dsv4_new(&c), 0);
        dsv4_set_timeout(c, i == ELEMENTS(cases) - 1 ? 100000 : 5000000);
        assert_int_equal(dsv4_connect_fd(c, fds[1]), cases[i].result);
        if (cases[i].code)
            assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), cases[i].code);
        assert_int_equal(dsv4_get_fd(c), -ENOTCONN);
        dsv4_unref(c);
        server_end(&s);
    }
}

/* ---------------------------------------------------------------- synchronous calls */

static void answers_calls(struct server *s)
{
    static uint32_t ids[] = {5, 6, 7};
    static char text[] = "abc";

    for (Asked *m = greet(s) ? ask(s) : NULL; m; m = ask(s)) {
        uint64_t id = m->request_id;
        if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_LIST_MODELS) {
            Dsv4__V1__Model model = DSV4__V1__MODEL__INIT, *models = &model;
            char *alias = (char[]){"default"};
            model.name = (char[]){"nano"};
            model.alias = &alias;
            model.n_alias = 1;
            model.state = DSV4__V1__MODEL_STATE__READY;
            model.has_vocabulary = true;
            model.vocabulary = 512;
            SAY(s, id + 1000, DONE, done, DSV4__V1__DONE__INIT); /* nobody's: ignored */
            SAY(s, id, MODELS, models, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__model_list__descriptor),
                .n_model = 1, .model = &models});
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_TOKENIZE) {
            SAY(s, id, TOKENS, tokens, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__tokens__descriptor),
                .n_id = m->tokenize->text[0] ? 3 : 0, .id = ids});
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_DETOKENIZE) {
            SAY(s, id, TEXT, text, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__text__descriptor),
                .utf8 = {.len = m->detokenize->n_id, .data = (uint8_t *)text}});
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_OPEN_SESSION) {
            SAY(s, id, SESSION, session, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__session_info__descriptor),
                .session = (char[]){"s1"}, .model = m->open_session->model, .label = m->open_session->label});
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_GET_STATUS) {
            SAY(s, id, DONE, done, DSV4__V1__DONE__INIT); /* the wrong kind */
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_CLOSE_SESSION) {
            SAY(s, id, DONE, done, DSV4__V1__DONE__INIT);
        } else if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_GET_USAGE) {
            ; /* never */
        } else {
            say_error(s, id, "QUOTA", "no more");
        }
        dsv4__v1__client_message__free_unpacked(m, NULL);
    }
}

static void calls(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, answers_calls);
    struct dsv4_models *models;
    struct dsv4_session *session;
    struct dsv4_sessions *sessions;
    struct dsv4_status *status;
    struct dsv4_usage *usage;
    uint32_t *ids;
    char *text;
    size_t n;
    int64_t v;

    assert_int_equal(dsv4_list_models(c, &models), 0);
    assert_int_equal(dsv4_models_get_size(models), 1);
    const struct dsv4_model *m = dsv4_models_get(models, 0);
    assert_string_equal(dsv4_model_get_name(m), "nano");
    assert_string_equal(dsv4_model_get_alias(m, 0), "default");
    assert_null(dsv4_model_get_alias(m, 1));
    assert_null(dsv4_models_get(models, 1));
    assert_int_equal(dsv4_model_get_state(m), DSV4_MODEL_READY);
    assert_int_equal(dsv4_model_get_vocabulary(m), 512);
    assert_int_equal(dsv4_model_get_context_tokens(m), 0);
    dsv4_models_free(models);

    assert_int_equal(dsv4_tokenize(c, "nano", "hello", 5, 0, &ids, &n), 0);
    assert_true(n == 3 && ids[2] == 7);
    free(ids);
    assert_int_equal(dsv4_tokenize(c, "nano", "", 0, 0, &ids, &n), 0);
    assert_true(n == 0 && ids);
    free(ids);
    assert_int_equal(dsv4_tokenize(c, "nano", "a\0b", 3, 0, &ids, &n), -EINVAL);
    assert_int_equal(dsv4_detokenize(c, "nano", (uint32_t[]){1, 2}, 2, &text, &n), 0);
    assert_true(n == 2 && strcmp(text, "ab") == 0);
    free(text);
    assert_int_equal(dsv4_open_session(c, "nano", "mine", 60, &session), 0);
    assert_string_equal(dsv4_session_get_id(session), "s1");
    assert_string_equal(dsv4_session_get_label(session), "mine");
    dsv4_session_free(session);
    assert_int_equal(dsv4_close_session(c, "s1"), 0);

    assert_int_equal(dsv4_list_sessions(c, &sessions), -EDQUOT);
    const struct dsv4_error *e = dsv4_get_error(c);
    assert_string_equal(dsv4_error_get_code(e), "QUOTA");
    assert_string_equal(dsv4_error_get_message(e), "no more");
    assert_true(dsv4_error_get_limit(e, &v) == 1 && v == 10);
    assert_true(dsv4_error_get_value(e, &v) == 1 && v == 11);
    assert_int_equal(dsv4_error_get_retry_after_ms(e), 1500);
    assert_int_equal(dsv4_error_get_errno(e), EDQUOT);
    assert_int_equal(dsv4_get_status(c, &status), -EPROTO);
    assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), "PROTOCOL");
    dsv4_set_timeout(c, 50000);
    assert_int_equal(dsv4_get_usage(c, 0, &usage), -ETIMEDOUT);
    dsv4_set_timeout(c, 5000000);
    assert_int_equal(dsv4_list_models(c, &models), 0); /* the connection is as good as before */
    dsv4_models_free(models);
    dsv4_unref(c);
    server_end(&s);
    assert_string_equal(s.seen, "hlkkdo.squl");
}

static void too_much_for_a_frame(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, answers_calls);
    size_t size = FRAME_MAX + 1u, n;
    char *text = malloc(size);
    uint32_t *ids;
    int64_t limit;

    assert_non_null(text);
    memset(text, 'a', size);
    assert_int_equal(dsv4_tokenize(c, "nano", text, size, 0, &ids, &n), -EMSGSIZE);
    assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), "FRAME_TOO_LARGE");
    assert_true(dsv4_error_get_limit(dsv4_get_error(c), &limit) && limit == FRAME_MAX);
    assert_int_equal(dsv4_tokenize(c, "nano", text, 3u << 20, 0, &ids, &n), 0); /* more than a socket's buffer */
    free(ids);
    free(text);
    dsv4_unref(c);
    server_end(&s);
}

/* ---------------------------------------------------------------- generation */

/* Takes all requests; each gets two deltas and its end when a second one is there: they overlap. */
static void streams_two(struct server *s)
{
    uint64_t id[2] = {0};

    if (!greet(s))
        return;
    for (int i = 0; i < 2; i++) {
        Asked *m = ask(s);
        if (!m)
            return;
        id[i] = m->request_id;
        if (m->generate->memfd && m->generate->input_case == DSV4__V1__GENERATE__INPUT_MEMFD)
            s->memfd_is_chat = m->generate->memfd->is_chat;
        dsv4__v1__client_message__free_unpacked(m, NULL);
        SAY(s, id[i], ACCEPTED, accepted, DSV4__V1__ACCEPTED__INIT);
    }
    SAY(s, id[1], QUEUED, queued, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__queued__descriptor), .position = 4});
    SAY(s, id[0], PREFILL, prefill, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__prefill__descriptor), .done = 1,
        .total = 3, .has_cached = true, .cached = 1});
    say_delta(s, id[0], 0, "a");
    say_delta(s, id[1], 0, "x");
    say_delta(s, id[0], 1, "b");
    say_finished(s, id[0], DSV4__V1__FINISH_REASON__STOP);
    say_error(s, id[1], "ENGINE_GONE", "it stopped");
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static struct dsv4_generate *text_of(const char *model, const char *text, size_t n)
{
    struct dsv4_generate *g;

    assert_int_equal(dsv4_generate_new(&g), 0);
    assert_int_equal(dsv4_generate_set_model(g, model), 0);
    assert_int_equal(dsv4_generate_set_text(g, text, n), 0);
    return g;
}

static int collect(struct dsv4_request *r, const struct dsv4_event *e, void *userdata)
{
    char *into = userdata;
    size_t n = strlen(into);

    (void)r;
    into[n] = "AQPDFE"[dsv4_event_get_type(e)];
    if (dsv4_event_get_content(e))
        into[n + 1] = dsv4_event_get_content(e)[0];
    return 0;
}

static void two_streams_overlap(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, streams_two);
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = text_of("nano", "hi", 2);
    struct dsv4_request *one, *two;
    const struct dsv4_event *e;
    char events[32] = "";
    uint32_t done, total, cached;
    enum dsv4_finish_reason reason;
    uint64_t seed;

    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &one), 0);
    assert_int_equal(dsv4_request_try_next(one, &e), -EAGAIN);
    assert_int_equal(dsv4_generate_start(c, g, collect, events, &two), 0);
    assert_int_equal(dsv4_request_next(two, &e), -EINVAL); /* has a handler */

    assert_int_equal(dsv4_request_next(one, &e), 1);
    assert_int_equal(dsv4_event_get_type(e), DSV4_EVENT_ACCEPTED);
    assert_int_equal(dsv4_request_next(one, &e), 1);
    assert_int_equal(dsv4_event_get_prefill(e, &done, &total, &cached), 0);
    assert_true(done == 1 && total == 3 && cached == 1);
    assert_int_equal(dsv4_event_get_queue(e, &done, NULL), -ENODATA);
    assert_null(dsv4_event_get_content(e));
    assert_int_equal(dsv4_request_next(one, &e), 1);
    assert_string_equal(dsv4_event_get_content(e), "a");
    assert_int_equal(dsv4_request_next(one, &e), 1);
    assert_int_equal(dsv4_event_get_index(e, &done), 0);
    assert_int_equal(done, 1);
    assert_int_equal(dsv4_request_next(one, &e), 1);
    assert_int_equal(dsv4_event_get_finish_reason(e, &reason), 0);
    assert_int_equal(reason, DSV4_FINISH_STOP);
    assert_int_equal(dsv4_event_get_count(e, DSV4_COUNT_INPUT_CACHED), 128);
    assert_int_equal(dsv4_event_get_usec(e, DSV4_PHASE_DECODE), 1000);
    assert_true(dsv4_event_get_seed(e, &seed) == 0 && seed == 99);
    assert_null(dsv4_event_get_error(e));
    assert_int_equal(dsv4_request_next(one, &e), 0);
    assert_int_equal(dsv4_request_next(one, &e), 0);
    assert_string_equal(dsv4_request_get_content(one), "ab");

    while (!dsv4_request_is_done(two))
        assert_true(dsv4_process(c) >= 0 && dsv4_wait(c, 5000000) >= 0);
    assert_string_equal(events, "AQDxE");
    dsv4_unref(c);
    dsv4_request_unref(one);
    dsv4_request_unref(two); /* the last reference to the connection, too */
    server_end(&s);
}

static void long_input_is_a_memfd(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, streams_two);
    size_t n = 5u << 20;
    char *text = calloc(1, n + 1);
    struct dsv4_chat *chat;
    struct dsv4_request *one, *two;

    assert_non_null(text);
    memset(text, 'q', n);
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = text_of("nano", text, n);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &one), 0);
    assert_int_equal(dsv4_chat_new(&chat), 0);
    assert_int_equal(dsv4_chat_add(chat, DSV4_ROLE_USER, text), 0);
    assert_int_equal(dsv4_generate_set_chat(g, chat), 0);
    dsv4_chat_unref(chat);
    assert_int_equal(dsv4_generate_run(c, g, NULL, NULL, &two), -EIO);
    assert_string_equal(dsv4_error_get_code(dsv4_get_error(c)), "ENGINE_GONE");
    dsv4_request_unref(one);
    dsv4_request_unref(two);
    dsv4_unref(c);
    server_end(&s);
    free(text);
    assert_true(s.memfd_bytes > n && s.memfd_bytes < n + 64); /* the chat came last */
    assert_int_equal(s.memfd_sealed, 1);
    assert_int_equal(s.memfd_is_chat, 1);
}

/* Streams until it is told to cancel. */
static void streams_until_cancelled(struct server *s)
{
    if (!greet(s))
        return;
    Asked *m = ask(s);
    if (!m)
        return;
    uint64_t id = m->request_id;
    dsv4__v1__client_message__free_unpacked(m, NULL);
    SAY(s, id, ACCEPTED, accepted, DSV4__V1__ACCEPTED__INIT);
    say_delta(s, id, 0, "go");
    m = ask(s);
    if (m && m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_CANCEL && m->cancel->target == id) {
        SAY(s, m->request_id, DONE, done, DSV4__V1__DONE__INIT);
        say_finished(s, id, DSV4__V1__FINISH_REASON__CANCELLED);
    }
    if (m)
        dsv4__v1__client_message__free_unpacked(m, NULL);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static int stop_at_content(struct dsv4_request *r, const struct dsv4_event *e, void *userdata)
{
    struct dsv4 *c = userdata;

    (void)r;
    if (c)
        assert_int_equal(dsv4_process(c), -EBUSY);
    return dsv4_event_get_content(e) ? -ECANCELED : 0;
}

static void handlers_can_stop(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, streams_until_cancelled);
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = text_of("nano", "hi", 2);

    assert_int_equal(dsv4_generate_run(c, g, stop_at_content, NULL, NULL), -ECANCELED);
    dsv4_unref(c);
    server_end(&s);
    assert_string_equal(s.seen, "hgc");

    struct dsv4_request *r;
    c = pair(&s, streams_until_cancelled);
    assert_int_equal(dsv4_generate_start(c, g, stop_at_content, c, &r), 0);
    while (!dsv4_request_is_done(r))
        assert_true(dsv4_process(c) >= 0 && dsv4_wait(c, 5000000) >= 0);
    dsv4_request_unref(r);
    dsv4_unref(c);
    server_end(&s);

    /* dropping an unfinished request says so to the server */
    c = pair(&s, streams_until_cancelled);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &r), 0);
    dsv4_request_unref(r);
    dsv4_unref(c);
    server_end(&s);
    assert_string_equal(s.seen, "hgc");
}

static void missing_input(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, greets_only);
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = NULL;
    struct dsv4_request *r;

    assert_int_equal(dsv4_generate_new(&g), 0);
    assert_int_equal(dsv4_generate_set_text(g, "a\0b", 3), -EINVAL);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &r), -EINVAL);
    assert_string_equal(dsv4_error_get_field(dsv4_get_error(c)), "input");
    assert_int_equal(dsv4_generate_set_tokens(g, (uint32_t[]){1}, 1), 0);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &r), -EINVAL);
    assert_string_equal(dsv4_error_get_field(dsv4_get_error(c)), "model");
    dsv4_unref(c);
    server_end(&s);
}

static void calls_a_tool(struct server *s)
{
    if (!greet(s))
        return;
    Asked *m = ask(s);
    if (!m)
        return;
    uint64_t id = m->request_id;
    dsv4__v1__client_message__free_unpacked(m, NULL);
    static const char *const parts[] = {"{\"city\":", "\"Oslo\"}"};
    for (uint32_t i = 0; i < 2; i++) {
        Dsv4__V1__ToolCallDelta t = DSV4__V1__TOOL_CALL_DELTA__INIT;
        t.call = 0;
        t.id = i == 0 ? (char[]){"call_1"} : NULL;
        t.name = i == 0 ? (char[]){"weather"} : NULL;
        t.arguments = (char *)(uintptr_t)parts[i];
        SAY(s, id, DELTA, delta, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__delta__descriptor), .index = i,
            .reasoning = i == 0 ? (char[]){"hm"} : NULL, .tool_call = &t});
    }
    say_finished(s, id, DSV4__V1__FINISH_REASON__TOOL_CALLS);
    /* an impossible call number, in a second request */
    m = ask(s);
    if (!m)
        return;
    Dsv4__V1__ToolCallDelta t = DSV4__V1__TOOL_CALL_DELTA__INIT;
    t.call = UINT32_MAX;
    SAY(s, m->request_id, DELTA, delta, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__delta__descriptor),
        .tool_call = &t});
    dsv4__v1__client_message__free_unpacked(m, NULL);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void tool_calls_come_together(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c = pair(&s, calls_a_tool);
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = NULL;
    _cleanup_(dsv4_chat_unrefp) struct dsv4_chat *chat = NULL;
    struct dsv4_request *r;
    const char *id, *name, *arguments;

    assert_int_equal(dsv4_chat_new(&chat), 0);
    assert_int_equal(dsv4_chat_set_message_reasoning(chat, "no"), -ENOENT);
    assert_int_equal(dsv4_chat_remove_last(chat), -ENOENT);
    assert_int_equal(dsv4_chat_add(chat, DSV4_ROLE_USER, "Weather?"), 0);
    assert_int_equal(dsv4_chat_set_message_reasoning(chat, "no"), -EINVAL);
    assert_int_equal(dsv4_chat_add(chat, DSV4_ROLE_TOOL, "x"), -EINVAL);
    assert_int_equal(dsv4_chat_add(chat, (enum dsv4_role)99, "x"), -EINVAL);
    assert_int_equal(dsv4_chat_add_tool(chat, "weather", "of a city", "{}"), 0);
    assert_int_equal(dsv4_generate_new(&g), 0);
    assert_int_equal(dsv4_generate_set_model(g, "nano"), 0);
    assert_int_equal(dsv4_generate_set_chat(g, chat), 0);
    assert_int_equal(dsv4_generate_run(c, g, NULL, NULL, &r), 0);
    assert_int_equal(dsv4_request_get_n_tool_calls(r), 1);
    assert_int_equal(dsv4_request_get_tool_call(r, 0, &id, &name, &arguments), 0);
    assert_string_equal(id, "call_1");
    assert_string_equal(name, "weather");
    assert_string_equal(arguments, "{\"city\":\"Oslo\"}");
    assert_int_equal(dsv4_request_get_tool_call(r, 1, &id, &name, &arguments), -ENOENT);
    assert_string_equal(dsv4_request_get_reasoning(r), "hm");
    assert_int_equal(dsv4_chat_add_answer(chat, r), 0);
    assert_int_equal(dsv4_chat_add_tool_result(chat, id, "rain"), 0);
    assert_int_equal(dsv4_chat_get_size(chat), 3);
    dsv4_request_unref(r);

    assert_int_equal(dsv4_generate_run(c, g, NULL, NULL, &r), -EPROTO);
    assert_int_equal(dsv4_request_get_n_tool_calls(r), 0);
    dsv4_request_unref(r);
    dsv4_unref(c);
    server_end(&s);
}

/* ---------------------------------------------------------------- losing and resuming the connection */

static void loses_it_twice(struct server *s)
{
    if (!accept_one(s) || !greet(s))
        return;
    Asked *m = ask(s);
    if (!m)
        return;
    uint64_t id = m->request_id;
    dsv4__v1__client_message__free_unpacked(m, NULL);
    SAY(s, id, ACCEPTED, accepted, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__accepted__descriptor),
        .resume_token = (char[]){"token-1"}});
    say_delta(s, id, 0, "one ");
    say_delta(s, id, 1, "two ");
    if (!accept_one(s)) /* closes the first; closes the second before it greets */
        return;
    if (!accept_one(s) || !greet(s) || !(m = ask(s)))
        return;
    if (m->operation_case == DSV4__V1__CLIENT_MESSAGE__OPERATION_RESUME) {
        s->resumed_at = m->resume->next_index;
        snprintf(s->resumed_token, sizeof(s->resumed_token), "%s", m->resume->resume_token);
    }
    id = m->request_id;
    dsv4__v1__client_message__free_unpacked(m, NULL);
    say_delta(s, id, 1, "two "); /* said again: dropped */
    say_delta(s, id, 2, "three");
    say_finished(s, id, DSV4__V1__FINISH_REASON__STOP);
    dsv4__v1__client_message__free_unpacked(ask(s), NULL);
}

static void resumes_without_notice(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c;
    struct dsv4_request *r;
    char events[32] = "";
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = text_of("nano", "count", 5);

    assert_int_equal(dsv4_generate_set_resume_seconds(g, 5), 0);
    listening(&s, loses_it_twice);
    assert_int_equal(dsv4_new(&c), 0);
    assert_int_equal(dsv4_connect(c, s.path), 0);
    assert_int_equal(dsv4_generate_run(c, g, collect, events, &r), 0);
    assert_string_equal(dsv4_request_get_content(r), "one two three");
    assert_string_equal(events, "ADoDtDtF");
    assert_int_equal(dsv4_request_get_n_resumed(r), 1);
    dsv4_request_unref(r);
    dsv4_unref(c);
    server_end(&s);
    assert_int_equal(s.resumed_at, 2);
    assert_string_equal(s.resumed_token, "token-1");
    assert_string_equal(s.seen, "hghr");
}

/* Accepts both, one resumable, and dies for good. */
static void dies(struct server *s)
{
    if (!accept_one(s) || !greet(s))
        return;
    for (int i = 0; i < 2; i++) {
        Asked *m = ask(s);
        if (!m)
            return;
        SAY(s, m->request_id, ACCEPTED, accepted, {.base = PROTOBUF_C_MESSAGE_INIT(&dsv4__v1__accepted__descriptor),
            .resume_token = m->generate->has_resume_seconds ? (char[]){"t"} : NULL});
        dsv4__v1__client_message__free_unpacked(m, NULL);
    }
    unlink(s->path);
}

static void gives_up_in_time(void **state)
{
    (void)state;
    struct server s;
    struct dsv4 *c;
    struct dsv4_request *plain, *resumable, *none;
    const struct dsv4_event *e;
    uint64_t until;
    _cleanup_(dsv4_generate_unrefp) struct dsv4_generate *g = text_of("nano", "x", 1);

    listening(&s, dies);
    assert_int_equal(dsv4_new(&c), 0);
    assert_int_equal(dsv4_connect(c, s.path), 0);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &plain), 0);
    assert_int_equal(dsv4_generate_set_resume_seconds(g, 1), 0);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &resumable), 0);
    assert_int_equal(dsv4_request_next(plain, &e), 1);
    assert_int_equal(dsv4_request_next(plain, &e), 1); /* at once */
    assert_string_equal(dsv4_error_get_code(dsv4_event_get_error(e)), "DISCONNECTED");
    assert_int_equal(dsv4_get_fd(c), -1);
    assert_true(dsv4_get_timeout(c, &until) == 0 && until != UINT64_MAX);
    assert_int_equal(dsv4_request_next(resumable, &e), 1);
    assert_int_equal(dsv4_event_get_type(e), DSV4_EVENT_ACCEPTED);
    assert_int_equal(dsv4_request_next(resumable, &e), 1); /* a second later */
    assert_string_equal(dsv4_error_get_code(dsv4_event_get_error(e)), "DISCONNECTED");
    assert_int_equal(dsv4_request_next(resumable, &e), 0);
    assert_int_equal(dsv4_generate_start(c, g, NULL, NULL, &none), -ENOTCONN);
    dsv4_request_unref(plain);
    dsv4_request_unref(resumable);
    dsv4_unref(c);
    server_end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knows_the_server),         cmocka_unit_test(nobody_there),
        cmocka_unit_test(bad_greetings),            cmocka_unit_test(calls),
        cmocka_unit_test(too_much_for_a_frame),     cmocka_unit_test(two_streams_overlap),
        cmocka_unit_test(long_input_is_a_memfd),    cmocka_unit_test(handlers_can_stop),
        cmocka_unit_test(missing_input),            cmocka_unit_test(tool_calls_come_together),
        cmocka_unit_test(resumes_without_notice),   cmocka_unit_test(gives_up_in_time),
    };
    return cmocka_run_group_tests_name("client-lib", tests, NULL, NULL);
}
