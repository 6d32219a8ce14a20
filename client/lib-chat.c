/* SPDX-License-Identifier: MIT */
/* The builder of conversations, and what builders share: strings, arrays, memfds. */
#include "client/lib.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/fd.h"

int replace_string(char **where, const char *s)
{
    char *copy = NULL;

    if (s) {
        copy = strdup(s);
        if (!copy)
            return -ENOMEM;
    }
    free(*where);
    *where = copy;
    return 0;
}

int append_pointer(void *array_ptr, size_t *n, void *item)
{
    void ***array = array_ptr;
    /* room grows to powers of two: a full one is where n is such a power */
    if ((*n & (*n - 1)) == 0) {
        void **more = reallocarray(*array, *n ? *n * 2 : 1, sizeof(*more));
        if (!more)
            return -ENOMEM;
        *array = more;
    }
    (*array)[(*n)++] = item;
    return 0;
}

static int seal(int fd)
{
    return fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0 ? -errno : 0;
}

int memfd_of_text(const char *text, size_t size, int *ret_fd)
{
    _cleanup_close_ int fd = -1;

    int r = fd_memfd("dsv4-input", 0, &fd);
    if (r >= 0)
        r = fd_write_full(fd, text, size);
    if (r >= 0)
        r = seal(fd);
    if (r < 0)
        return r;
    *ret_fd = TAKE_FD(fd);
    return 0;
}

int memfd_of_message(const ProtobufCMessage *m, size_t size, int *ret_fd)
{
    _cleanup_free_ uint8_t *data = malloc(size + 1);

    if (!data)
        return -ENOMEM;
    return memfd_of_text((char *)data, protobuf_c_message_pack(m, data), ret_fd);
}

/* ---------------------------------------------------------------- life */

int dsv4_chat_new(struct dsv4_chat **ret)
{
    _cleanup_(dsv4_chat_unrefp) struct dsv4_chat *chat = calloc(1, sizeof(*chat));

    if (!chat)
        return -ENOMEM;
    chat->n_ref = 1;
    chat->m = malloc(sizeof(*chat->m));
    if (!chat->m)
        return -ENOMEM;
    dsv4__v1__chat__init(chat->m);
    *ret = TAKE_PTR(chat);
    return 0;
}

struct dsv4_chat *dsv4_chat_ref(struct dsv4_chat *chat)
{
    if (chat)
        chat->n_ref++;
    return chat;
}

struct dsv4_chat *dsv4_chat_unref(struct dsv4_chat *chat)
{
    if (!chat || --chat->n_ref > 0)
        return NULL;
    if (chat->m)
        dsv4__v1__chat__free_unpacked(chat->m, NULL);
    free(chat);
    return NULL;
}

/* ---------------------------------------------------------------- messages */

static void message_freep(Dsv4__V1__ChatMessage **m)
{
    if (*m)
        dsv4__v1__chat_message__free_unpacked(*m, NULL);
}

static int add_message(struct dsv4_chat *chat, enum dsv4_role role, const char *content, const char *tool_call_id)
{
    _cleanup_(message_freep) Dsv4__V1__ChatMessage *m = malloc(sizeof(*m));

    if (!m)
        return -ENOMEM;
    dsv4__v1__chat_message__init(m);
    m->role = (Dsv4__V1__Role)role;
    if (replace_string(&m->content, content) < 0 || replace_string(&m->tool_call_id, tool_call_id) < 0)
        return -ENOMEM;
    int r = append_pointer(&chat->m->message, &chat->m->n_message, m);
    if (r >= 0)
        m = NULL;
    return r;
}

int dsv4_chat_add(struct dsv4_chat *chat, enum dsv4_role role, const char *content)
{
    if ((int)role < DSV4_ROLE_SYSTEM || role > DSV4_ROLE_LATEST_REMINDER || role == DSV4_ROLE_TOOL)
        return -EINVAL;
    if (!content && role != DSV4_ROLE_ASSISTANT)
        return -EINVAL;
    return add_message(chat, role, content, NULL);
}

int dsv4_chat_add_tool_result(struct dsv4_chat *chat, const char *tool_call_id, const char *content)
{
    if (!tool_call_id || !content)
        return -EINVAL;
    return add_message(chat, DSV4_ROLE_TOOL, content, tool_call_id);
}

int dsv4_chat_add_answer(struct dsv4_chat *chat, const struct dsv4_request *r)
{
    if (!r->done)
        return -EINPROGRESS;
    int e = add_message(chat, DSV4_ROLE_ASSISTANT, dsv4_request_get_content(r), NULL);
    if (e < 0)
        return e;
    if (r->reasoning.size > 0)
        e = dsv4_chat_set_message_reasoning(chat, dsv4_request_get_reasoning(r));
    for (size_t i = 0; i < r->n_calls && e >= 0; i++) {
        const char *id, *name, *arguments;
        dsv4_request_get_tool_call(r, i, &id, &name, &arguments);
        e = dsv4_chat_add_tool_call(chat, id, name, arguments);
    }
    if (e < 0)
        dsv4_chat_remove_last(chat);
    return e;
}

int dsv4_chat_remove_last(struct dsv4_chat *chat)
{
    if (chat->m->n_message == 0)
        return -ENOENT;
    dsv4__v1__chat_message__free_unpacked(chat->m->message[--chat->m->n_message], NULL);
    return 0;
}

size_t dsv4_chat_get_size(const struct dsv4_chat *chat)
{
    return chat->m->n_message;
}

static Dsv4__V1__ChatMessage *last_message(struct dsv4_chat *chat)
{
    return chat->m->n_message ? chat->m->message[chat->m->n_message - 1] : NULL;
}

int dsv4_chat_set_message_reasoning(struct dsv4_chat *chat, const char *reasoning)
{
    Dsv4__V1__ChatMessage *m = last_message(chat);

    if (!m)
        return -ENOENT;
    if (m->role != DSV4__V1__ROLE__ASSISTANT)
        return -EINVAL;
    return replace_string(&m->reasoning, reasoning);
}

static void tool_call_freep(Dsv4__V1__ToolCall **c)
{
    if (*c)
        dsv4__v1__tool_call__free_unpacked(*c, NULL);
}

int dsv4_chat_add_tool_call(struct dsv4_chat *chat, const char *id, const char *name, const char *arguments_json)
{
    Dsv4__V1__ChatMessage *m = last_message(chat);

    if (!m)
        return -ENOENT;
    if (m->role != DSV4__V1__ROLE__ASSISTANT || !id || !name || !arguments_json)
        return -EINVAL;
    _cleanup_(tool_call_freep) Dsv4__V1__ToolCall *call = malloc(sizeof(*call));
    if (!call)
        return -ENOMEM;
    dsv4__v1__tool_call__init(call);
    /* required strings start as a constant, which must not be freed */
    call->id = call->name = call->arguments_json = NULL;
    if (replace_string(&call->id, id) < 0 || replace_string(&call->name, name) < 0 ||
        replace_string(&call->arguments_json, arguments_json) < 0)
        return -ENOMEM;
    int r = append_pointer(&m->tool_call, &m->n_tool_call, call);
    if (r >= 0)
        call = NULL;
    return r;
}

int dsv4_chat_set_task(struct dsv4_chat *chat, const char *task)
{
    Dsv4__V1__ChatMessage *m = last_message(chat);
    return m ? replace_string(&m->task, task) : -ENOENT;
}

/* ---------------------------------------------------------------- the conversation as a whole */

static void tool_freep(Dsv4__V1__Tool **t)
{
    if (*t)
        dsv4__v1__tool__free_unpacked(*t, NULL);
}

int dsv4_chat_add_tool(struct dsv4_chat *chat, const char *name, const char *description,
                       const char *parameters_json)
{
    if (!name)
        return -EINVAL;
    _cleanup_(tool_freep) Dsv4__V1__Tool *tool = malloc(sizeof(*tool));
    if (!tool)
        return -ENOMEM;
    dsv4__v1__tool__init(tool);
    tool->name = NULL;
    if (replace_string(&tool->name, name) < 0 || replace_string(&tool->description, description) < 0 ||
        replace_string(&tool->parameters_json, parameters_json) < 0)
        return -ENOMEM;
    int r = append_pointer(&chat->m->tool, &chat->m->n_tool, tool);
    if (r >= 0)
        tool = NULL;
    return r;
}

int dsv4_chat_set_reasoning(struct dsv4_chat *chat, enum dsv4_reasoning reasoning)
{
    if ((int)reasoning < DSV4_REASONING_NONE || reasoning > DSV4_REASONING_MAX)
        return -EINVAL;
    chat->m->has_reasoning = true;
    chat->m->reasoning = (Dsv4__V1__Reasoning)reasoning;
    return 0;
}

int dsv4_chat_set_keep_reasoning(struct dsv4_chat *chat, int keep)
{
    chat->m->has_keep_reasoning = true;
    chat->m->keep_reasoning = keep != 0;
    return 0;
}
