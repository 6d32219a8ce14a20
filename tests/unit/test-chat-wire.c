/* SPDX-License-Identifier: MIT */
/* Conversations and sampling settings off the wire. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#include "engine/chat-wire.h"

static char hello[] = "hello", id[] = "c1", name[] = "f", json[] = "{}", bad[] = "ab\xff";

static void copies_everything(void **state)
{
    (void)state;
    Dsv4__V1__ToolCall call = DSV4__V1__TOOL_CALL__INIT, *calls[] = {&call};
    Dsv4__V1__Tool tool = DSV4__V1__TOOL__INIT, *tools[] = {&tool};
    Dsv4__V1__ChatMessage user = DSV4__V1__CHAT_MESSAGE__INIT, assistant = user, result = user, *messages[] = {&user, &assistant, &result};
    Dsv4__V1__Chat in = DSV4__V1__CHAT__INIT;
    _cleanup_chat_ struct chat c = {0};
    _cleanup_chat_prompt_ struct chat_prompt p = {0};

    call.id = id, call.name = name, call.arguments_json = json;
    tool.name = name, tool.parameters_json = json;
    user.role = DSV4__V1__ROLE__USER, user.content = hello;
    assistant.role = DSV4__V1__ROLE__ASSISTANT, assistant.reasoning = hello, assistant.n_tool_call = 1, assistant.tool_call = calls;
    result.role = DSV4__V1__ROLE__TOOL, result.tool_call_id = id, result.content = hello;
    in.n_message = 3, in.message = messages, in.n_tool = 1, in.tool = tools;
    in.has_reasoning = 1, in.reasoning = DSV4__V1__REASONING__MAX, in.has_keep_reasoning = 1, in.keep_reasoning = 1;
    assert_int_equal(chat_from_wire(&in, &c, NULL), 0);
    assert_int_equal(c.n_messages, 4);
    assert_int_equal(c.message[0].role, CHAT_SYSTEM); /* put there for the tools */
    assert_string_equal(c.message[0].tool[0].parameters_json, "{}");
    assert_string_equal(c.message[1].content, "hello");
    assert_null(c.message[2].content);
    assert_string_equal(c.message[2].reasoning, "hello");
    assert_string_equal(c.message[2].tool_call[0].id, "c1");
    assert_false(c.message[2].tool_call[0].raw || c.message[2].tool_call[0].raw_trusted);
    assert_string_equal(c.message[3].tool_call_id, "c1");
    assert_true(c.keep_reasoning && c.effort == CHAT_EFFORT_MAX);
    assert_int_equal(chat_encode(&c, &p, NULL), 0);
    assert_non_null(strstr(p.text.data, "<｜begin▁of▁sentence｜>Reasoning Effort"));
    assert_non_null(strstr(p.text.data, "\n\n{\"name\": \"f\", \"parameters\": {}}\n\n"));
    assert_non_null(strstr(p.text.data, "<｜Assistant｜><think>hello</think>\n\n<｜DSML｜tool_calls>"));

    user.role = DSV4__V1__ROLE__SYSTEM;
    chat_deinit(&c);
    in.has_reasoning = 0;
    assert_int_equal(chat_from_wire(&in, &c, NULL), 0);
    assert_int_equal(c.n_messages, 3);
    assert_int_equal(c.message[0].n_tools, 1);
    assert_int_equal(c.effort, CHAT_EFFORT_NONE);
}

static void expect_error(const Dsv4__V1__Chat *in, const char *code, const char *field)
{
    struct chat c = {0};
    struct fail f = FAIL_INIT;

    assert_true(chat_from_wire(in, &c, &f) < 0);
    assert_string_equal(f.code, code);
    assert_string_equal(f.field, field);
    assert_null(c.message);
}

static void refuses_bad_chats(void **state)
{
    (void)state;
    Dsv4__V1__ToolCall call = DSV4__V1__TOOL_CALL__INIT, *calls[] = {&call};
    Dsv4__V1__Tool tool = DSV4__V1__TOOL__INIT, *tools[] = {&tool};
    Dsv4__V1__ChatMessage first = DSV4__V1__CHAT_MESSAGE__INIT, second = first, *messages[] = {&first, &second};
    Dsv4__V1__Chat in = DSV4__V1__CHAT__INIT;

    expect_error(&in, "EMPTY_INPUT", "");
    in.n_message = 2, in.message = messages;
    first.role = second.role = DSV4__V1__ROLE__USER;
    second.content = bad;
    expect_error(&in, "BAD_UTF8", "chat.message[1].content");
    second.content = hello, second.reasoning = hello;
    expect_error(&in, "BAD_CHAT", "chat.message[1]");
    second.reasoning = NULL, second.n_tool_call = 1, second.tool_call = calls;
    call.id = id, call.name = name, call.arguments_json = bad;
    expect_error(&in, "BAD_CHAT", "chat.message[1]");
    second.role = DSV4__V1__ROLE__ASSISTANT;
    expect_error(&in, "BAD_UTF8", "chat.message[1].tool_call[0].arguments_json");
    call.arguments_json = json;
    second.role = (Dsv4__V1__Role)77;
    expect_error(&in, "RANGE", "chat.message[1].role");
    second.role = DSV4__V1__ROLE__ASSISTANT;
    in.n_tool = 1, in.tool = tools, tool.name = bad;
    expect_error(&in, "BAD_UTF8", "chat.tool[0].name");
    tool.name = name, in.has_reasoning = 1, in.reasoning = (Dsv4__V1__Reasoning)-1;
    expect_error(&in, "RANGE", "chat.reasoning");
}

static void sampling_settings(void **state)
{
    (void)state;
    Dsv4__V1__LogitBias bias = DSV4__V1__LOGIT_BIAS__INIT, *biases[1025];
    Dsv4__V1__Sampling in = DSV4__V1__SAMPLING__INIT;
    struct sampler_params defaults = {.temperature = 0.6f, .top_p = 0.95f, .seed = 5}, p;
    struct fail f = FAIL_INIT;

    assert_int_equal(sampler_params_from_wire(NULL, &defaults, &p, &f), 0);
    assert_true(p.temperature == 0.6f && p.top_p == 0.95f && p.seed == 5 && !p.bias);
    bias.id = 3, bias.bias = -7;
    for (size_t i = 0; i < ELEMENTS(biases); i++)
        biases[i] = &bias;
    in.has_temperature = 1, in.temperature = 0, in.n_bias = 2, in.bias = biases;
    in.has_top_k = 1, in.top_k = 9;
    in.has_seed = 1, in.seed = UINT64_MAX;
    assert_int_equal(sampler_params_from_wire(&in, &defaults, &p, &f), 0);
    assert_true(p.temperature == 0 && p.top_p == 0.95f && p.seed == UINT64_MAX && p.top_k == 9);
    assert_true(p.n_bias == 2 && p.bias[1].id == 3 && p.bias[1].bias == -7);
    sampler_params_deinit(&p);
    in.n_bias = 1025;
    assert_int_equal(sampler_params_from_wire(&in, &defaults, &p, &f), -ERANGE);
    assert_string_equal(f.field, "sampling.bias");
    assert_true(f.has_limit && f.limit == 1024 && f.value == 1025);
    in.n_bias = 1, bias.bias = 101;
    assert_int_equal(sampler_params_from_wire(&in, &defaults, &p, &f), -ERANGE);
    assert_string_equal(f.field, "sampling.bias[0]");
    in.n_bias = 0, in.temperature = 3;
    assert_int_equal(sampler_params_from_wire(&in, &defaults, &p, &f), -ERANGE);
    assert_string_equal(f.field, "sampling.temperature");
    assert_true(f.has_limit && f.limit == 2 && f.value == 3);
    in.temperature = NAN;
    assert_int_equal(sampler_params_from_wire(&in, &defaults, &p, NULL), -ERANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_everything), cmocka_unit_test(refuses_bad_chats), cmocka_unit_test(sampling_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
