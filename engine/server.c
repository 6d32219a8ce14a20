/* SPDX-License-Identifier: MIT */
/* See server.h. */
#include "engine/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "engine/clock.h"
#include "engine/stepper.h"
#include "engine/textwork.h"
#include "engine/wake.h"
#include "proto/error.h"
#include "proto/frame.h"
#include "proto/scan.h"

#define FAREWELL_MSEC 2000   /* how long the last message may take to leave */
#define DRAIN_CHECK_USEC 50000
#define MESSAGES_A_TURN 64   /* read before the loop looks at anything else */

struct server {
    struct server_params params;
    sd_event *event;
    sd_event_source *io, *bell, *drain_timer;
    int fd, wake_fd;
    struct frame_reader reader;
    struct outbox *outbox;
    struct callstore *calls;
    struct request_env env;
    struct stepper *stepper;   /* NULL until server_serve */
    struct textwork *textwork;
    bool draining, writing;    /* writing: waits for EPOLLOUT */
    char why[160];
};

static void end(struct server *s, int code, const char *why)
{
    if (s->why[0] == '\0')
        snprintf(s->why, sizeof(s->why), "%s", why);
    sd_event_exit(s->event, code);
}

const char *server_why(const struct server *s)
{
    return s->why;
}

/* ---------------------------------------------------------------- to the front */

static void send_out(struct server *s)
{
    int r = outbox_send(s->outbox, s->fd);

    if (r < 0 && r != -ENOMEM) {
        end(s, SERVER_EXIT_OK, "the front is gone");
        return;
    }
    if (r == -ENOMEM) {
        end(s, SERVER_EXIT_BROKEN, "out of memory for messages to the front");
        return;
    }
    if (s->writing != (r == 0)) {
        s->writing = r == 0;
        sd_event_source_set_io_events(s->io, EPOLLIN | (s->writing ? EPOLLOUT : 0u));
    }
    if (s->stepper && outbox_pending(s->outbox) <= OUTBOX_FULL_BYTES / 2)
        stepper_kick(s->stepper);
}

static void send_message(struct server *s, Dsv4__Engine__V1__EngineMessage *m)
{
    (void)outbox_put(s->outbox, m);
}

static void send_register(struct server *s)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__Engine__V1__Register reg = DSV4__ENGINE__V1__REGISTER__INIT;
    static char build[] = PACKAGE_VERSION;

    reg.build = build;
    reg.model = (char *)(uintptr_t)s->params.name; /* only read */
    reg.pid = (uint32_t)getpid();
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_REGISTER;
    m.register_ = &reg;
    send_message(s, &m);
}

void server_send_loading(struct server *s, uint64_t done_bytes, uint64_t total_bytes)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__Engine__V1__Loading loading = DSV4__ENGINE__V1__LOADING__INIT;

    loading.done_bytes = done_bytes;
    loading.total_bytes = total_bytes;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_LOADING;
    m.loading = &loading;
    send_message(s, &m);
}

static void farewell(struct server *s)
{
    struct pollfd p = {.fd = s->fd, .events = POLLOUT};
    uint64_t until = clock_usec() + FAREWELL_MSEC * 1000ull;

    while (outbox_send(s->outbox, s->fd) == 0 && clock_usec() < until)
        (void)poll(&p, 1, 100);
}

void server_send_failed(struct server *s, struct fail *f)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__Engine__V1__Failed failed = DSV4__ENGINE__V1__FAILED__INIT;
    Dsv4__V1__Error e = DSV4__V1__ERROR__INIT;

    error_from_fail(&e, f);
    failed.error = &e;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_FAILED;
    m.failed = &failed;
    send_message(s, &m);
    farewell(s);
}

static void send_ready(struct server *s)
{
    Dsv4__Engine__V1__EngineMessage m = DSV4__ENGINE__V1__ENGINE_MESSAGE__INIT;
    Dsv4__Engine__V1__Ready ready = DSV4__ENGINE__V1__READY__INIT;
    Dsv4__V1__Model info = DSV4__V1__MODEL__INIT;
    const struct model *model = s->env.model;
    struct kv_stats kv;
    static char architecture[] = "deepseek_v4";

    kv_pool_stats(model->pool, &kv);
    info.name = (char *)(uintptr_t)s->params.name; /* only read */
    info.state = DSV4__V1__MODEL_STATE__READY;
    info.architecture = architecture;
    info.has_context_tokens = info.has_vocabulary = info.has_digest = info.has_weight_bytes = true;
    info.context_tokens = model->context_tokens;
    info.vocabulary = model->shape->vocab;
    info.digest.data = model->checkpoint->digest;
    info.digest.len = sizeof(model->checkpoint->digest);
    info.weight_bytes = model->checkpoint->tensor_bytes;
    info.device = (char *)(uintptr_t)model->ops->name;
    info.has_reasoning = info.reasoning = true;
    info.has_tools = info.tools = true;
    ready.model = &info;
    ready.has_kv_total_bytes = ready.has_max_sessions = true;
    ready.kv_total_bytes = kv.total_bytes;
    ready.max_sessions = SESSIONS_MAX;
    m.event_case = DSV4__ENGINE__V1__ENGINE_MESSAGE__EVENT_READY;
    m.ready = &ready;
    send_message(s, &m);
}

/* ---------------------------------------------------------------- from the front */

static char *copy(const char *text)
{
    return text ? strdup(text) : NULL;
}

/* An order with copies of up to three strings; NULL if there is no memory for it. */
static struct step_order *session_order(enum step_order_kind kind, const Dsv4__Engine__V1__FrontMessage *m,
                                        const char *session, const char *new_session, const char *label)
{
    _cleanup_(step_order_freep) struct step_order *o = step_order_new(kind, m->id, m->owner);

    if (!o)
        return NULL;
    o->session = copy(session);
    o->new_session = copy(new_session);
    o->label = copy(label);
    if (!o->session || (new_session && !o->new_session) || (label && !o->label))
        return NULL;
    return TAKE_PTR(o);
}

static struct step_order *flag_order(enum step_order_kind kind, uint64_t target, bool flag)
{
    struct step_order *o = step_order_new(kind, target, 0);

    if (o)
        o->flag = flag;
    return o;
}

/* On the text thread. */
static void on_encoded(uint64_t id, struct request_prompt *p, const struct fail *failed, void *userdata)
{
    struct server *s = userdata;
    struct step_order *o = step_order_new(ORDER_PROMPT, id, 0);

    if (o) {
        o->prompt = *p;
        *p = (struct request_prompt){0};
        o->failed = *failed;
    }
    stepper_put(s->stepper, o);
}

/* The step thread hears of the request before the text thread can have its prompt. */
static void on_generate(struct server *s, Dsv4__Engine__V1__FrontMessage *m)
{
    struct request *r = NULL;
    struct fail f = FAIL_INIT;
    uint64_t id = m->id;
    int memfd = frame_take_fd(&s->reader);

    if (request_new(&s->env, id, m->owner, m->generate, clock_usec(), &r, &f) < 0) {
        outbox_put_error(s->outbox, id, &f);
        dsv4__engine__v1__front_message__free_unpacked(m, NULL);
        if (memfd >= 0)
            close(memfd);
        return;
    }
    struct step_order *o = step_order_new(ORDER_BEGIN, id, m->owner);
    if (o)
        o->request = r;
    else
        request_free(r);
    stepper_put(s->stepper, o);
    if (textwork_put(s->textwork, m, memfd) < 0)
        stepper_put(s->stepper, NULL);
}

/* Takes m. */
static void on_text(struct server *s, Dsv4__Engine__V1__FrontMessage *m)
{
    struct fail f = FAIL_INIT;
    uint64_t id = m->id;

    if (textwork_put(s->textwork, m, -1) < 0) {
        fail_oom(&f);
        outbox_put_error(s->outbox, id, &f);
    }
}

static void on_trim(struct server *s, const Dsv4__Engine__V1__FrontMessage *m)
{
    struct step_order *o = session_order(ORDER_SESSION_TRIM, m, m->session_trim->session, NULL, NULL);

    if (o)
        o->tokens = m->session_trim->tokens;
    stepper_put(s->stepper, o);
}

static int on_drain_timer(sd_event_source *timer, uint64_t usec, void *userdata);

static void on_drain(struct server *s)
{
    if (s->draining)
        return;
    s->draining = true;
    stepper_put(s->stepper, step_order_new(ORDER_DRAIN, 0, 0));
    if (sd_event_add_time_relative(s->event, &s->drain_timer, CLOCK_MONOTONIC, DRAIN_CHECK_USEC, 0, on_drain_timer, s) < 0)
        end(s, SERVER_EXIT_BROKEN, "no timer");
}

static void refuse(struct server *s, uint64_t id, int err, const char *code, const char *why)
{
    struct fail f = FAIL_INIT;

    fail_set(&f, err, code, "%s", why);
    outbox_put_error(s->outbox, id, &f);
}

/* Everything but Generate, Tokenize and Detokenize, which keep their message. */
static void on_short(struct server *s, const Dsv4__Engine__V1__FrontMessage *m)
{
    switch (m->operation_case) {
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_SESSION_NEW:
        stepper_put(s->stepper,
                    session_order(ORDER_SESSION_NEW, m, m->session_new->session, NULL, m->session_new->label));
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_SESSION_CLOSE:
        stepper_put(s->stepper, session_order(ORDER_SESSION_CLOSE, m, m->session_close->session, NULL, NULL));
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_SESSION_FORK:
        stepper_put(s->stepper, session_order(ORDER_SESSION_FORK, m, m->session_fork->session,
                                              m->session_fork->new_session, m->session_fork->label));
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_SESSION_TRIM:
        on_trim(s, m);
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_CANCEL:
        textwork_cancel(s->textwork, m->cancel->target);
        stepper_put(s->stepper, flag_order(ORDER_CANCEL, m->cancel->target, m->cancel->has_quiet && m->cancel->quiet));
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_PACE:
        stepper_put(s->stepper, flag_order(ORDER_PACE, m->pace->target, m->pace->paused));
        break;
    case DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_DRAIN:
        on_drain(s);
        break;
    default:
        refuse(s, m->id, EOPNOTSUPP, "UNKNOWN_OPERATION", "the engine does not know this operation");
    }
}

static void on_message(struct server *s, Dsv4__Engine__V1__FrontMessage *m)
{
    bool keeps = m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_GENERATE ||
                 m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_TOKENIZE ||
                 m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_DETOKENIZE;

    if (m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_WELCOME)
        s->params.welcome(s->params.userdata);
    else if (m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_DRAIN && !s->stepper)
        end(s, SERVER_EXIT_OK, "told to drain before the model was loaded");
    else if (!s->stepper)
        refuse(s, m->id, EAGAIN, "MODEL_LOADING", "the model is still loading");
    else if (keeps && s->draining)
        refuse(s, m->id, ESHUTDOWN, "SHUTTING_DOWN", "the model is being unloaded");
    else if (m->operation_case == DSV4__ENGINE__V1__FRONT_MESSAGE__OPERATION_GENERATE) {
        on_generate(s, m);
        return;
    } else if (keeps) {
        on_text(s, m);
        return;
    } else
        on_short(s, m);
    dsv4__engine__v1__front_message__free_unpacked(m, NULL);
}

/* The next message that is there, if any: 1, 0, or negative when the front makes no sense. */
static int read_message(struct server *s, struct fail *f)
{
    Dsv4__Engine__V1__FrontMessage *m;
    const uint8_t *data;
    size_t n;
    int r = frame_next(&s->reader, &data, &n, f);

    if (r <= 0)
        return r;
    r = scan_message(&dsv4__engine__v1__front_message__descriptor, data, n, f);
    if (r < 0)
        return r;
    m = dsv4__engine__v1__front_message__unpack(NULL, n, data);
    if (!m)
        return fail_oom(f);
    on_message(s, m);
    frame_done(&s->reader);
    return 1;
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
    struct server *s = userdata;
    struct fail f = FAIL_INIT;
    int r = 1;

    (void)source;
    if (events & EPOLLOUT)
        send_out(s);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return 0;
    for (int i = 0; i < MESSAGES_A_TURN && r > 0; i++) {
        r = frame_receive(&s->reader, fd);
        if (r == -EAGAIN)
            return 0;
        if (r <= 0 && r != -EBADMSG && r != -EMSGSIZE) {
            end(s, SERVER_EXIT_OK, "the front is gone");
            return 0;
        }
        while ((r = read_message(s, &f)) > 0)
            ;
        if (r < 0) {
            char why[sizeof(s->why)];
            snprintf(why, sizeof(why), "a message of the front is wrong: %s", f.code);
            end(s, SERVER_EXIT_BROKEN, why);
            return 0;
        }
        r = 1;
    }
    return 0;
}

/* ---------------------------------------------------------------- the end */

static void check_state(struct server *s)
{
    if (!s->stepper)
        return;
    enum stepper_state state = stepper_state(s->stepper);
    if (state == STEPPER_BROKEN) {
        farewell(s);
        end(s, SERVER_EXIT_BROKEN, "the device failed, or memory is exhausted");
    } else if (s->draining && state == STEPPER_DRAINED && textwork_idle(s->textwork) && outbox_pending(s->outbox) == 0) {
        end(s, SERVER_EXIT_OK, "drained");
    }
}

static int on_bell(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
    struct server *s = userdata;

    (void)source;
    (void)events;
    wake_clear(fd);
    send_out(s);
    check_state(s);
    return 0;
}

/* The text thread rings no bell when its last job ends, so while draining somebody looks. */
static int on_drain_timer(sd_event_source *timer, uint64_t usec, void *userdata)
{
    struct server *s = userdata;

    (void)usec;
    check_state(s);
    if (sd_event_source_set_time_relative(timer, DRAIN_CHECK_USEC) < 0 ||
        sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT) < 0)
        end(s, SERVER_EXIT_BROKEN, "no timer");
    return 0;
}

/* ---------------------------------------------------------------- beginning */

static int connect_front(const char *path, int *ret, struct fail *f)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(a.sun_path))
        return fail_set(f, ENAMETOOLONG, "CONFIG", "%s: a socket's path may have %zu bytes", path, sizeof(a.sun_path) - 1);
    memcpy(a.sun_path, path, strlen(path) + 1);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: the front cannot be reached: %s", path, strerror(errno));
    *ret = TAKE_FD(fd);
    return 0;
}

int server_new(const struct server_params *p, sd_event *event, struct server **ret, struct fail *f)
{
    _cleanup_(server_freep) struct server *s = calloc(1, sizeof(*s));
    int r = 0;

    if (!s) {
        if (p->fd >= 0)
            close(p->fd);
        return fail_oom(f);
    }
    s->params = *p;
    s->event = sd_event_ref(event);
    s->fd = p->fd;
    s->wake_fd = -1;
    s->reader = FRAME_READER_INIT;
    if (s->fd < 0)
        r = connect_front(p->front, &s->fd, f);
    if (r < 0)
        return r;
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake_fd < 0)
        return fail_set(f, errno, "IO_ERROR", "no eventfd: %s", strerror(errno));
    if (outbox_new(s->wake_fd, &s->outbox) < 0 || callstore_new(&s->calls) < 0 ||
        fcntl(s->fd, F_SETFL, O_NONBLOCK) < 0 || sd_event_add_io(event, &s->io, s->fd, EPOLLIN, on_io, s) < 0 ||
        sd_event_add_io(event, &s->bell, s->wake_fd, EPOLLIN, on_bell, s) < 0)
        return fail_oom(f);
    send_register(s);
    *ret = TAKE_PTR(s);
    return 0;
}

int server_serve(struct server *s, struct model *model, const struct tokenizer *t, struct fail *f)
{
    s->env = (struct request_env){
        .model = model,
        .tokenizer = t,
        .outbox = s->outbox,
        .calls = s->calls,
        .bos = model->checkpoint->config->bos,
        .eos = model->checkpoint->config->eos,
    };
    int r = stepper_new(&s->env, s->params.name, s->wake_fd, &s->stepper, f);
    if (r < 0)
        return r;
    r = textwork_new(&s->env, on_encoded, s, &s->textwork);
    if (r < 0) {
        s->stepper = stepper_free(s->stepper);
        return fail_set(f, -r, "NO_MEMORY", "the text thread could not be started: %s", strerror(-r));
    }
    send_ready(s);
    return 0;
}

/* The text thread ends first: it gives orders to the step thread. */
struct server *server_free(struct server *s)
{
    if (!s)
        return NULL;
    textwork_free(s->textwork);
    stepper_free(s->stepper);
    sd_event_source_disable_unref(s->drain_timer);
    sd_event_source_disable_unref(s->io);
    sd_event_source_disable_unref(s->bell);
    sd_event_unref(s->event);
    frame_reader_deinit(&s->reader);
    outbox_free(s->outbox);
    callstore_free(s->calls);
    closep(&s->fd);
    closep(&s->wake_fd);
    free(s);
    return NULL;
}
