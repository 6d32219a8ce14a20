/* SPDX-License-Identifier: MIT */
/* See textwork.h. */
#include "engine/textwork.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/utf8.h"
#include "engine/chat-wire.h"
#include "proto/frame.h"
#include "proto/scan.h"

#define THINK_MARK "<think>" /* a prompt that ends in it wants reasoning first */

#define FULL_CHECK_USEC 10000 /* how often to look whether a full outbox has room again */

struct job {
    struct job *next;
    Dsv4__Engine__V1__FrontMessage *message;
    int memfd;
};

struct textwork {
    const struct request_env *env;
    textwork_encoded encoded;
    void *userdata;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock; /* over all below */
    pthread_cond_t more;
    struct job *first, **last;
    bool working, ending;
};

static struct job *job_free(struct job *j)
{
    if (!j)
        return NULL;
    if (j->message)
        dsv4__engine__v1__front_message__free_unpacked(j->message, NULL);
    closep(&j->memfd);
    free(j);
    return NULL;
}

/* ---------------------------------------------------------------- encoding */

static int encode_text(const struct textwork *t, const char *text, size_t n, bool control, struct request_prompt *p,
                       struct fail *f)
{
    const struct text_span span = {.text = text, .n = n, .control = control};

    return n == 0 ? 0 : tokenizer_encode(t->env->tokenizer, &span, 1, &p->tokens, f);
}

/* Calls that the model wrote here are replayed as it wrote them. */
static void recall_raw(const struct textwork *t, uint64_t owner, struct chat *c)
{
    for (size_t i = 0; i < c->n_messages; i++)
        for (size_t j = 0; j < c->message[i].n_tool_calls; j++) {
            struct chat_tool_call *call = &c->message[i].tool_call[j];
            if (call->id && !call->raw)
                call->raw = callstore_get(t->env->calls, owner, call->id);
        }
}

static bool knows_tools(const struct chat *c)
{
    for (size_t i = 0; i < c->n_messages; i++)
        if (c->message[i].n_tools > 0)
            return true;
    return false;
}

static int encode_chat(const struct textwork *t, uint64_t owner, const Dsv4__V1__Chat *w, struct request_prompt *p,
                       struct fail *f)
{
    _cleanup_chat_ struct chat c = {0};
    _cleanup_chat_prompt_ struct chat_prompt prompt = {0};
    const size_t mark = strlen(THINK_MARK);
    int r = chat_from_wire(w, &c, f);

    if (r < 0)
        return r;
    recall_raw(t, owner, &c);
    r = chat_encode(&c, &prompt, f);
    if (r < 0)
        return r;
    p->thinking = prompt.text.size >= mark && memcmp(prompt.text.data + prompt.text.size - mark, THINK_MARK, mark) == 0;
    p->tools = knows_tools(&c);
    return tokenizer_encode(t->env->tokenizer, prompt.span, prompt.n_spans, &p->tokens, f);
}

/* ---------------------------------------------------------------- memfds */

struct mapping {
    void *data;
    size_t n;
};

static void unmap(struct mapping *m)
{
    if (m->data)
        munmap(m->data, m->n);
}

static int map_memfd(int fd, struct mapping *m, struct fail *f)
{
    struct stat st;
    int sealed = fd >= 0 ? fd_is_sealed_memfd(fd) : 0;

    if (sealed <= 0 || fstat(fd, &st) < 0)
        return fail_set(f, EINVAL, "BAD_MEMFD", "the input must come as one memfd, sealed against writing, growing and shrinking");
    if (st.st_size > (off_t)PROMPT_BYTES_MAX) {
        fail_set(f, E2BIG, "PROMPT_TOO_LONG", "the memfd has %" PRIi64 " bytes; at most %u are read", (int64_t)st.st_size,
                 PROMPT_BYTES_MAX);
        fail_limit(f, PROMPT_BYTES_MAX, (int64_t)st.st_size);
        return -E2BIG;
    }
    if (st.st_size == 0)
        return 0;
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return fail_set(f, EINVAL, "BAD_MEMFD", "the memfd cannot be mapped");
    *m = (struct mapping){.data = data, .n = (size_t)st.st_size};
    return 0;
}

static int encode_memfd(const struct textwork *t, const struct job *j, bool is_chat, struct request_prompt *p,
                        struct fail *f)
{
    _cleanup_(unmap) struct mapping m = {0};
    Dsv4__V1__Chat *chat;
    int r = map_memfd(j->memfd, &m, f);

    if (r < 0)
        return r;
    if (!is_chat)
        return encode_text(t, m.data, m.n, false, p, f);
    r = m.n > 0 ? scan_message(&dsv4__v1__chat__descriptor, m.data, m.n, f) : 0;
    if (r < 0)
        return r;
    chat = dsv4__v1__chat__unpack(NULL, m.n, m.data);
    if (!chat)
        return fail_oom(f);
    r = encode_chat(t, j->message->owner, chat, p, f);
    dsv4__v1__chat__free_unpacked(chat, NULL);
    return r;
}

/* ---------------------------------------------------------------- jobs */

static void do_generate(struct textwork *t, const struct job *j)
{
    const Dsv4__V1__Generate *g = j->message->generate->generate;
    struct request_prompt p = {0};
    struct fail f = FAIL_INIT;
    int r = 0;

    switch (g->input_case) {
    case DSV4__V1__GENERATE__INPUT_TEXT:
        r = encode_text(t, g->text, strlen(g->text), false, &p, &f);
        break;
    case DSV4__V1__GENERATE__INPUT_CHAT:
        r = encode_chat(t, j->message->owner, g->chat, &p, &f);
        break;
    case DSV4__V1__GENERATE__INPUT_TOKENS:
        r = tokens_append(&p.tokens, g->tokens->id, g->tokens->n_id) < 0 ? fail_oom(&f) : 0;
        break;
    case DSV4__V1__GENERATE__INPUT_MEMFD:
        r = encode_memfd(t, j, g->memfd->is_chat, &p, &f);
        break;
    default:
        r = fail_set(&f, EINVAL, "EMPTY_INPUT", "there is no input");
    }
    if (r < 0 && f.err == 0)
        fail_set(&f, -r, r == -ENOMEM ? "NO_MEMORY" : "INTERNAL", "the prompt could not be encoded");
    t->encoded(j->message->id, &p, &f, t->userdata);
    request_prompt_deinit(&p);
}

static int too_large(struct fail *f)
{
    fail_set(f, EMSGSIZE, "FRAME_TOO_LARGE", "the answer is larger than a frame can be; ask in parts");
    fail_limit(f, FRAME_MAX, (int64_t)FRAME_MAX + 1);
    return -EMSGSIZE;
}

static int put_answer(struct textwork *t, Dsv4__Engine__V1__EngineMessage *m, struct fail *f)
{
    return outbox_put(t->env->outbox, m) == -EMSGSIZE ? too_large(f) : 0;
}

static int do_tokenize(struct textwork *t, const struct job *j, struct fail *f)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Tokens tokens = DSV4__V1__TOKENS__INIT;
    const Dsv4__V1__Tokenize *k = j->message->tokenize;
    __attribute__((cleanup(request_prompt_deinit))) struct request_prompt p = {0};
    int r = 0;

    if (k->input_case == DSV4__V1__TOKENIZE__INPUT_TEXT)
        r = encode_text(t, k->text, strlen(k->text), k->has_special && k->special, &p, f);
    else if (k->input_case == DSV4__V1__TOKENIZE__INPUT_CHAT)
        r = encode_chat(t, j->message->owner, k->chat, &p, f);
    if (r < 0)
        return r;
    if (p.tokens.n > SCAN_NUMBERS_MAX)
        return too_large(f);
    tokens.id = p.tokens.id;
    tokens.n_id = p.tokens.n;
    m.id = j->message->id;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_TOKENS;
    m.tokens = &tokens;
    return put_answer(t, &m, f);
}

static int do_detokenize(struct textwork *t, const struct job *j, struct fail *f)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__V1__Text text = DSV4__V1__TEXT__INIT;
    const Dsv4__V1__Detokenize *d = j->message->detokenize;
    _cleanup_buf_ struct buf b = BUF_INIT_MAX(FRAME_MAX);
    const char *bytes;
    size_t n;

    for (size_t i = 0; i < d->n_id; i++) {
        if (tokenizer_bytes(t->env->tokenizer, d->id[i], &bytes, &n) < 0) {
            fail_set(f, EINVAL, "BAD_TOKEN", "token %zu is %" PRIu32 ", which the model does not have", i, d->id[i]);
            fail_field(f, "id");
            fail_limit(f, (int64_t)tokenizer_size(t->env->tokenizer) - 1, d->id[i]);
            return -EINVAL;
        }
        int r = buf_append(&b, bytes, n);
        if (r < 0)
            return r == -EMSGSIZE ? too_large(f) : fail_oom(f);
    }
    text.utf8.data = (uint8_t *)b.data;
    text.utf8.len = b.size;
    m.id = j->message->id;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_TEXT;
    m.text = &text;
    return put_answer(t, &m, f);
}

static void do_job(struct textwork *t, const struct job *j)
{
    struct fail f = FAIL_INIT;
    int r;

    if (j->message->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_GENERATE) {
        do_generate(t, j);
        return;
    }
    r = j->message->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_TOKENIZE ? do_tokenize(t, j, &f)
                                                                                          : do_detokenize(t, j, &f);
    if (r < 0)
        outbox_put_error(t->env->outbox, j->message->id, &f);
}

/* ---------------------------------------------------------------- the thread */

static struct job *next_job(struct textwork *t)
{
    struct job *j = NULL;

    pthread_mutex_lock(&t->lock);
    t->working = false;
    while (!t->ending && !t->first)
        pthread_cond_wait(&t->more, &t->lock);
    if (!t->ending) {
        j = t->first;
        t->first = j->next;
        if (!t->first)
            t->last = &t->first;
        t->working = true;
    }
    pthread_mutex_unlock(&t->lock);
    return j;
}

/* Answers may be large: none is made while the front does not take those that are there. */
static void wait_for_room(struct textwork *t)
{
    bool ending = false;

    while (!ending && outbox_full(t->env->outbox)) {
        usleep(FULL_CHECK_USEC);
        pthread_mutex_lock(&t->lock);
        ending = t->ending;
        pthread_mutex_unlock(&t->lock);
    }
}

static void *run(void *userdata)
{
    struct textwork *t = userdata;
    struct job *j;

    while ((j = next_job(t))) {
        wait_for_room(t);
        do_job(t, j);
        job_free(j);
    }
    return NULL;
}

int textwork_new(const struct request_env *e, textwork_encoded encoded, void *userdata, struct textwork **ret)
{
    _cleanup_(textwork_freep) struct textwork *t = calloc(1, sizeof(*t));

    if (!t)
        return -ENOMEM;
    t->env = e;
    t->encoded = encoded;
    t->userdata = userdata;
    t->last = &t->first;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->more, NULL);
    int r = pthread_create(&t->thread, NULL, run, t);
    if (r != 0)
        return -r;
    t->started = true;
    *ret = TAKE_PTR(t);
    return 0;
}

struct textwork *textwork_free(struct textwork *t)
{
    if (!t)
        return NULL;
    pthread_mutex_lock(&t->lock);
    t->ending = true;
    pthread_cond_signal(&t->more);
    pthread_mutex_unlock(&t->lock);
    if (t->started)
        pthread_join(t->thread, NULL);
    for (struct job *j = t->first, *next; j; j = next) {
        next = j->next;
        job_free(j);
    }
    pthread_cond_destroy(&t->more);
    pthread_mutex_destroy(&t->lock);
    free(t);
    return NULL;
}

int textwork_put(struct textwork *t, Dsv4__Engine__V1__FrontMessage *m, int memfd)
{
    struct job *j = calloc(1, sizeof(*j));

    if (!j) {
        dsv4__engine__v1__front_message__free_unpacked(m, NULL);
        closep(&memfd);
        return -ENOMEM;
    }
    *j = (struct job){.message = m, .memfd = memfd};
    pthread_mutex_lock(&t->lock);
    *t->last = j;
    t->last = &j->next;
    pthread_cond_signal(&t->more);
    pthread_mutex_unlock(&t->lock);
    return 0;
}

void textwork_cancel(struct textwork *t, uint64_t id)
{
    struct job *found = NULL;

    pthread_mutex_lock(&t->lock);
    for (struct job **p = &t->first; *p; p = &(*p)->next) {
        if ((*p)->message->id != id)
            continue;
        found = *p;
        *p = found->next;
        if (!*p)
            t->last = p;
        break;
    }
    pthread_mutex_unlock(&t->lock);
    job_free(found);
}

bool textwork_idle(struct textwork *t)
{
    pthread_mutex_lock(&t->lock);
    bool idle = !t->first && !t->working;
    pthread_mutex_unlock(&t->lock);
    return idle;
}
