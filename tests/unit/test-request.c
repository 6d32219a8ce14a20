/* SPDX-License-Identifier: MIT */
/*
 * A request without a model: the test plays the model by giving logits that leave one choice, and reads the events as the
 * front would. Also what remembers tool calls.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "engine/request.h"
#include "proto/frame.h"

#define D "｜DSML｜"
#define CALL "<" D "invoke name=\"get_weather\">\n<" D "parameter name=\"city\" string=\"true\">Rome</" D "parameter>\n</" D "invoke>"
#define OWNER 7

struct world {
    struct request_env env;
    struct model model;
    struct model_shape shape;
    struct model_config config;
    struct checkpoint checkpoint;
    struct session_table sessions;
    struct tokenizer *tokenizer;
    struct frame_reader reader;
    float *logits;
    int bell, fd[2];
    /* what was received */
    char content[4096], reasoning[4096], arguments[4096], call_name[64], call_id[64], error[64];
    uint32_t deltas, logprobs, calls;
    Dsv4__V1__FinishReason reason;
    bool finished, repaired;
    uint64_t output, reasoning_tokens;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    char path[4096];

    assert_non_null(w);
    assert_non_null(getenv("top_srcdir"));
    snprintf(path, sizeof(path), "%s/models/nano", getenv("top_srcdir"));
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    assert_int_equal(tokenizer_read(dir, &w->tokenizer, NULL), 0);
    close(dir);
    w->bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, w->fd), 0);
    w->shape.vocab = tokenizer_size(w->tokenizer);
    w->config.sampling.temperature = 1;
    w->config.sampling.top_p = 1;
    w->checkpoint.config = &w->config;
    w->model = (struct model){.checkpoint = &w->checkpoint, .shape = &w->shape, .context_tokens = 1000};
    w->env = (struct request_env){.model = &w->model, .tokenizer = w->tokenizer, .bos = 0, .eos = 1};
    assert_int_equal(outbox_new(w->bell, &w->env.outbox), 0);
    assert_int_equal(callstore_new(&w->env.calls), 0);
    assert_int_equal(session_table_init(&w->sessions, NULL), 0);
    w->logits = calloc(w->shape.vocab, sizeof(float));
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    session_table_deinit(&w->sessions);
    outbox_free(w->env.outbox);
    callstore_free(w->env.calls);
    tokenizer_free(w->tokenizer);
    frame_reader_deinit(&w->reader);
    close(w->fd[0]);
    close(w->fd[1]);
    close(w->bell);
    free(w->logits);
    free(w);
    return 0;
}

static void take_delta(struct world *w, const Dsv4__V1__Delta *d)
{
    assert_int_equal(d->index, w->deltas++);
    if (d->content)
        strcat(w->content, d->content);
    if (d->reasoning)
        strcat(w->reasoning, d->reasoning);
    w->logprobs += (uint32_t)d->n_logprob;
    if (!d->tool_call)
        return;
    if (d->tool_call->id) {
        snprintf(w->call_id, sizeof(w->call_id), "%s", d->tool_call->id);
        snprintf(w->call_name, sizeof(w->call_name), "%s", d->tool_call->name);
        assert_int_equal(d->tool_call->call, w->calls++);
    }
    if (d->tool_call->arguments)
        strcat(w->arguments, d->tool_call->arguments);
}

static void take_event(struct world *w, const Dsv4__Engine__V1__EngineMessage *m)
{
    assert_false(w->finished); /* nothing comes after the end */
    if (m->event_case == DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_DELTA)
        take_delta(w, m->delta);
    if (m->event_case == DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_ERROR)
        snprintf(w->error, sizeof(w->error), "%s", m->error->code);
    if (m->event_case == DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_FINISHED) {
        w->finished = true;
        w->reason = m->finished->reason;
        w->repaired = m->finished->tool_call_repaired;
        w->output = m->finished->counts->output;
        w->reasoning_tokens = m->finished->counts->reasoning;
    }
}

static void receive(struct world *w)
{
    const uint8_t *data;
    size_t n;

    assert_true(outbox_send(w->env.outbox, w->fd[0]) >= 0);
    while (frame_receive(&w->reader, w->fd[1]) > 0) {
        while (frame_next(&w->reader, &data, &n, NULL) > 0) {
            Dsv4__Engine__V1__EngineMessage *m = dsv4__engine__v1__engine_message__unpack(NULL, n, data);
            assert_non_null(m);
            take_event(w, m);
            dsv4__engine__v1__engine_message__free_unpacked(m, NULL);
            frame_done(&w->reader);
        }
    }
}

/* A chat request that reads `thinking` and `tools` from its prompt, ready to answer. */
static struct request *ready(struct world *w, bool thinking, bool tools, uint32_t max_tokens)
{
    Dsv4__Engine__V1__Work work = DSV4__ENGINE__V1__WORK__INIT;
    Dsv4__V1__Generate g = DSV4__V1__GENERATE__INIT;
    Dsv4__V1__Chat chat = DSV4__V1__CHAT__INIT;
    struct request_prompt p = {.thinking = thinking, .tools = tools};
    const uint32_t prompt[] = {0, 5, 6};
    struct request *r;

    g.input_case = DSV4__V1__GENERATE__INPUT_CHAT;
    g.chat = &chat;
    g.has_max_tokens = true;
    g.max_tokens = max_tokens;
    g.has_logprobs = true;
    work.generate = &g;
    assert_int_equal(request_new(&w->env, 3, OWNER, &work, 1000, &r, NULL), 0);
    assert_int_equal(request_attach(r, &w->sessions, NULL), 0);
    assert_int_equal(tokens_append(&p.tokens, prompt, ELEMENTS(prompt)), 0);
    assert_int_equal(request_take_prompt(r, &p, NULL), 0);
    assert_int_equal(r->total, 3);
    return r;
}

/* The model says `id`. 1: that ended the request, which was finished. */
static int say_token(struct world *w, struct request *r, uint32_t id)
{
    Dsv4__V1__FinishReason reason;
    struct fail f = FAIL_INIT;

    w->logits[id] = 1000;
    int e = request_token(r, w->logits, 2000, &reason, &f);
    w->logits[id] = 0;
    assert_true(e >= 0);
    if (e == 1)
        request_finish(r, reason, 3000);
    receive(w);
    return e;
}

static int say(struct world *w, struct request *r, const char *text)
{
    const struct text_span span = {.text = text, .n = strlen(text), .control = true};
    struct tokens t = TOKENS_INIT;
    int e = 0;

    assert_int_equal(tokenizer_encode(w->tokenizer, &span, 1, &t, NULL), 0);
    for (size_t i = 0; i < t.n && e == 0; i++)
        e = say_token(w, r, t.id[i]);
    tokens_deinit(&t);
    return e;
}

static void test_reasoning_then_content(void **state)
{
    struct world *w = *state;
    struct request *r = ready(w, true, false, 500);

    assert_int_equal(say(w, r, "let me see</think>Rome, é!"), 0);
    assert_int_equal(say_token(w, r, w->env.eos), 1);
    assert_string_equal(w->reasoning, "let me see");
    assert_string_equal(w->content, "Rome, é!");
    assert_true(w->finished && w->reason == DSV4__V1__FINISH_REASON__STOP && !w->repaired);
    assert_true(w->reasoning_tokens > 0 && w->reasoning_tokens < w->output);
    assert_int_equal(w->logprobs, w->output); /* one per token, none lost */
    assert_int_equal(r->session->tokens.n, 3 + w->output);
    request_free(r);
}

static void test_tool_call(void **state)
{
    struct world *w = *state;
    struct request *r = ready(w, false, true, 500);

    say(w, r, "I look.\n\n<" D "tool_calls>\n" CALL "\n</" D "tool_calls>");
    assert_int_equal(say_token(w, r, w->env.eos), 1);
    assert_true(w->finished && w->reason == DSV4__V1__FINISH_REASON__TOOL_CALLS && !w->repaired);
    assert_int_equal(w->calls, 1);
    assert_string_equal(w->call_name, "get_weather");
    assert_string_equal(w->arguments, "{\"city\": \"Rome\"}");
    assert_int_equal(strlen(w->call_id), CALL_ID_SIZE - 1);
    char *raw = callstore_get(w->env.calls, OWNER, w->call_id);
    assert_non_null(raw);
    assert_non_null(strstr(raw, "Rome"));
    free(raw);
    assert_null(callstore_get(w->env.calls, OWNER + 1, w->call_id)); /* another's id is as good as none */
    request_free(r);
}

static void test_call_cut_off(void **state)
{
    struct world *w = *state;
    struct request *r = ready(w, false, true, 500);

    say(w, r, "<" D "tool_calls>\n<" D "invoke name=\"f\">\n<" D "parameter name=\"a\" string=\"true\">hal");
    assert_int_equal(say_token(w, r, w->env.eos), 1);
    assert_true(w->finished && w->repaired);
    assert_int_equal(w->calls, 1);
    request_free(r);
}

static void test_length_and_cancel(void **state)
{
    struct world *w = *state;
    struct request *r = ready(w, false, false, 3);

    assert_int_equal(say_token(w, r, 100), 0);
    assert_int_equal(say_token(w, r, 100), 0);
    assert_int_equal(say_token(w, r, 100), 1);
    assert_true(w->finished && w->reason == DSV4__V1__FINISH_REASON__LENGTH);
    assert_int_equal(w->output, 3);
    request_free(r);

    w->finished = false;
    w->deltas = 0;
    r = ready(w, false, false, 100);
    assert_int_equal(say_token(w, r, 100), 0);
    r->quiet = true;
    request_finish(r, DSV4__V1__FINISH_REASON__CANCELLED, 3000);
    receive(w);
    assert_true(w->finished && w->reason == DSV4__V1__FINISH_REASON__CANCELLED);
    request_free(r);
}

static void test_callstore_is_bounded(void **state)
{
    struct callstore *s;
    char id[CALL_ID_SIZE], mine[CALL_ID_SIZE];
    static char big[100000];
    (void)state;

    memset(big, 'x', sizeof(big));
    assert_int_equal(callstore_new(&s), 0);
    callstore_make_id(mine);
    assert_int_equal(callstore_put(s, 1, mine, "small", 5), 0);
    for (int i = 0; i < 100; i++) {
        callstore_make_id(id);
        assert_int_equal(callstore_put(s, 2, id, big, sizeof(big)), 0);
    }
    assert_true(callstore_bytes(s) < CALLSTORE_OWNER_BYTES + 1000);
    char *raw = callstore_get(s, 1, mine); /* another owner's flood does not push it out */
    assert_string_equal(raw, "small");
    free(raw);
    raw = callstore_get(s, 2, id);
    assert_int_equal(strlen(raw), sizeof(big));
    free(raw);
    for (uint64_t owner = 3; owner < 1000; owner++) {
        callstore_make_id(id);
        assert_int_equal(callstore_put(s, owner, id, big, sizeof(big)), 0);
    }
    assert_true(callstore_bytes(s) <= CALLSTORE_BYTES);
    callstore_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reasoning_then_content, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tool_call, setup, teardown),
        cmocka_unit_test_setup_teardown(test_call_cut_off, setup, teardown),
        cmocka_unit_test_setup_teardown(test_length_and_cancel, setup, teardown),
        cmocka_unit_test(test_callstore_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
