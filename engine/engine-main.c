/* SPDX-License-Identifier: MIT */
/*
 * dsv4d-engine: one loaded model, serving the front. Options, logging, and loading on a thread of its own while the event
 * loop already talks to the front; the rest is server.c.
 *
 * Threads: main (event loop, socket; owns the server), one that loads and ends, then step (stepper.c) and text
 * (textwork.c). The backend has its own workers.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <systemd/sd-daemon.h>

#include "base/parse.h"
#include "engine/server.h"
#include "engine/wake.h"

#define EXIT_USAGE 64
#define EXIT_CONFIG 78         /* EX_CONFIG: starting it again does not help */
#define PROGRESS_USEC 100000
#define WELCOME_USEC 30000000  /* the front answers a registration at once */
#define LOAD_END_SECONDS 10    /* a load that was told to stop ends within one read */

struct options {
    const char *name, *checkpoint, *front;
    struct model_options model;
};

struct engine {
    struct options options;
    sd_event *event;
    struct server *server;
    sd_event_source *progress_timer, *welcome_timer, *loaded_source;
    int loaded_fd;

    pthread_t loader;
    bool loading;                       /* the thread runs and was not joined */
    _Atomic bool give_up;
    _Atomic uint64_t done_bytes, total_bytes;
    /* the loader's until loaded_fd rings */
    struct model *model;
    struct tokenizer *tokenizer;
    struct fail failed;
};

/* One line; the journal takes a level in front, people at a terminal do not want it. */
static void log_line(const char *level, const char *fmt, ...) PRINTF(2, 3);
static void log_line(const char *level, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fprintf(stderr, "%sdsv4d-engine: ", getenv("JOURNAL_STREAM") ? level : "");
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
}
#define complain(...) log_line(SD_ERR, __VA_ARGS__)

/* ---------------------------------------------------------------- loading */

static int on_load_progress(const struct load_progress *p, void *userdata)
{
    struct engine *e = userdata;

    atomic_store(&e->done_bytes, p->done_bytes);
    atomic_store(&e->total_bytes, p->total_bytes);
    return atomic_load(&e->give_up);
}

static void *load(void *userdata)
{
    struct engine *e = userdata;
    int r = model_open(e->options.checkpoint, &e->options.model, &e->model, &e->failed);

    if (r == 0)
        r = tokenizer_read(e->model->checkpoint->dir_fd, &e->tokenizer, &e->failed);
    if (r < 0 && e->failed.err == 0)
        fail_set(&e->failed, -r, "INTERNAL", "the model could not be loaded: %s", strerror(-r));
    wake(e->loaded_fd);
    return NULL;
}

/* Nothing is wrong with the checkpoint or the options, but with the moment. */
static bool may_pass(const struct fail *f)
{
    return strcmp(f->code, "NO_MEMORY") == 0 || strcmp(f->code, "IO_ERROR") == 0 || strcmp(f->code, "INTERNAL") == 0;
}

static void give_up(struct engine *e)
{
    complain("%s: %s: %s", e->options.name, e->failed.code, e->failed.message);
    sd_notifyf(0, "STATUS=Failed: %s", e->failed.message);
    server_send_failed(e->server, &e->failed);
    sd_event_exit(e->event, may_pass(&e->failed) ? 1 : EXIT_CONFIG);
}

static int on_loaded(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
    struct engine *e = userdata;

    (void)fd;
    (void)events;
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    sd_event_source_set_enabled(e->progress_timer, SD_EVENT_OFF);
    pthread_join(e->loader, NULL);
    e->loading = false;
    if (e->failed.err == 0)
        server_serve(e->server, e->model, e->tokenizer, &e->failed);
    if (e->failed.err) {
        give_up(e);
        return 0;
    }
    sd_notifyf(0, "READY=1\nSTATUS=Serving %s", e->options.name);
    log_line(SD_INFO, "%s is ready", e->options.name);
    return 0;
}

static int on_progress(sd_event_source *timer, uint64_t usec, void *userdata)
{
    struct engine *e = userdata;
    uint64_t done = atomic_load(&e->done_bytes), total = atomic_load(&e->total_bytes);

    (void)usec;
    server_send_loading(e->server, done, total);
    sd_notifyf(0, "STATUS=Loading: %" PRIu64 " of %" PRIu64 " MB", done / 1000000, total / 1000000);
    sd_event_source_set_time_relative(timer, PROGRESS_USEC);
    return 0;
}

static void on_welcome(void *userdata)
{
    struct engine *e = userdata;

    if (e->loading || e->model)
        return; /* welcome once */
    sd_event_source_set_enabled(e->welcome_timer, SD_EVENT_OFF);
    server_send_loading(e->server, 0, 0);
    int r = sd_event_add_time_relative(e->event, &e->progress_timer, CLOCK_MONOTONIC, PROGRESS_USEC, 0, on_progress, e);
    if (r >= 0)
        r = sd_event_source_set_enabled(e->progress_timer, SD_EVENT_ON);
    if (r >= 0)
        r = -pthread_create(&e->loader, NULL, load, e);
    if (r < 0) {
        fail_set(&e->failed, -r, "NO_MEMORY", "loading could not be started: %s", strerror(-r));
        give_up(e);
        return;
    }
    e->loading = true;
}

static int on_no_welcome(sd_event_source *timer, uint64_t usec, void *userdata)
{
    struct engine *e = userdata;

    (void)timer;
    (void)usec;
    complain("%s: the front did not answer the registration", e->options.name);
    sd_event_exit(e->event, 1);
    return 0;
}

static void stop_loading(struct engine *e)
{
    struct timespec until;

    if (!e->loading)
        return;
    atomic_store(&e->give_up, true);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOAD_END_SECONDS;
    if (pthread_timedjoin_np(e->loader, NULL, &until) != 0)
        _exit(0); /* it sits in a read that does not end: nothing here is worth waiting for */
    e->loading = false;
}

/* ---------------------------------------------------------------- options */

static void usage(FILE *out)
{
    fputs("dsv4d-engine --name NAME --checkpoint DIRECTORY --front SOCKET [OPTION...]\n\n"
          "Loads one model and serves it to dsv4d, which starts this program.\n\n"
          "      --name NAME            the model's name at the front\n"
          "      --checkpoint DIRECTORY the released files\n"
          "      --front SOCKET         where dsv4d listens for engines\n"
          "      --device DEVICE        cpu\n"
          "      --numerics WHICH       exact, or fast (default)\n"
          "      --context N            longest session, in tokens (default: what the model allows)\n"
          "      --kv-bytes BYTES       memory for sessions; K, M, G, T are powers of 1024\n"
          "      --threads N            that compute (default: one per core)\n"
          "      --max-step-tokens N    of one step (default: 512)\n"
          "  -h, --help                 show this\n"
          "      --version              show the version\n\n"
          "Exit status: 0 drained or the front is gone, 78 options or checkpoint are wrong, 64 wrong usage, 1 otherwise.\n",
          out);
}

enum { OPT_NAME = 256, OPT_CHECKPOINT, OPT_FRONT, OPT_DEVICE, OPT_NUMERICS, OPT_CONTEXT, OPT_KV, OPT_THREADS, OPT_STEP, OPT_VERSION };

static const struct option long_options[] = {
    {"name", required_argument, NULL, OPT_NAME},         {"checkpoint", required_argument, NULL, OPT_CHECKPOINT},
    {"front", required_argument, NULL, OPT_FRONT},       {"device", required_argument, NULL, OPT_DEVICE},
    {"numerics", required_argument, NULL, OPT_NUMERICS}, {"context", required_argument, NULL, OPT_CONTEXT},
    {"kv-bytes", required_argument, NULL, OPT_KV},       {"threads", required_argument, NULL, OPT_THREADS},
    {"max-step-tokens", required_argument, NULL, OPT_STEP}, {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, 'h'},                    {NULL, 0, NULL, 0},
};

static int parse_u32(const char *text, uint32_t *ret)
{
    uint64_t v;
    int r = parse_u64(text, 1, UINT32_MAX, &v);

    if (r == 0)
        *ret = (uint32_t)v;
    return r;
}

static int take_option(struct options *o, int c)
{
    switch (c) {
    case OPT_NAME:
        o->name = optarg;
        return 0;
    case OPT_CHECKPOINT:
        o->checkpoint = optarg;
        return 0;
    case OPT_FRONT:
        o->front = optarg;
        return 0;
    case OPT_DEVICE:
        o->model.device = optarg;
        return 0;
    case OPT_NUMERICS:
        o->model.numerics = strcmp(optarg, "exact") == 0 ? NUMERICS_EXACT : NUMERICS_FAST;
        return strcmp(optarg, "exact") == 0 || strcmp(optarg, "fast") == 0 ? 0 : -EINVAL;
    case OPT_CONTEXT:
        return parse_u32(optarg, &o->model.context_tokens);
    case OPT_KV:
        return parse_bytes(optarg, &o->model.kv_bytes);
    case OPT_THREADS:
        return parse_u32(optarg, &o->model.threads);
    default:
        return parse_u32(optarg, &o->model.max_step_tokens);
    }
}

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct options *o)
{
    int c, index = 0;

    *o = (struct options){.model = {.numerics = NUMERICS_FAST}};
    while ((c = getopt_long(argc, argv, "h", long_options, &index)) >= 0) {
        if (c == 'h' || c == OPT_VERSION) {
            if (c == 'h')
                usage(stdout);
            else
                puts("dsv4d-engine " PACKAGE_VERSION);
            return 0;
        }
        if (c == '?')
            return EXIT_USAGE;
        if (take_option(o, c) < 0) {
            complain("--%s: '%s' is not possible; see --help", long_options[index].name, optarg);
            return EXIT_CONFIG;
        }
    }
    if (optind < argc || !o->name || !o->checkpoint || !o->front) {
        complain("--name, --checkpoint and --front are needed, and nothing else; see --help");
        return EXIT_USAGE;
    }
    return -1;
}

/* ---------------------------------------------------------------- main */

static int set_up(struct engine *e, struct fail *f)
{
    const struct server_params params = {
        .name = e->options.name, .front = e->options.front, .fd = -1, .welcome = on_welcome, .userdata = e,
    };
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread */
    signal(SIGPIPE, SIG_IGN);
    e->loaded_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->loaded_fd < 0 || sd_event_default(&e->event) < 0 || sd_event_add_signal(e->event, NULL, SIGTERM, NULL, NULL) < 0 ||
        sd_event_add_signal(e->event, NULL, SIGINT, NULL, NULL) < 0 ||
        sd_event_add_io(e->event, &e->loaded_source, e->loaded_fd, EPOLLIN, on_loaded, e) < 0 ||
        sd_event_add_time_relative(e->event, &e->welcome_timer, CLOCK_MONOTONIC, WELCOME_USEC, 0, on_no_welcome, e) < 0)
        return fail_set(f, EIO, "INTERNAL", "the event loop could not be made");
    return server_new(&params, e->event, &e->server, f);
}

static void tear_down(struct engine *e)
{
    stop_loading(e);
    e->server = server_free(e->server);
    tokenizer_free(e->tokenizer);
    model_free(e->model);
    sd_event_source_disable_unref(e->progress_timer);
    sd_event_source_disable_unref(e->welcome_timer);
    sd_event_source_disable_unref(e->loaded_source);
    sd_event_unref(e->event);
    closep(&e->loaded_fd);
}

int main(int argc, char **argv)
{
    struct engine e = {.loaded_fd = -1};
    struct fail f = FAIL_INIT;
    int status = parse_options(argc, argv, &e.options);

    if (status >= 0)
        return status;
    e.options.model.load.progress = on_load_progress;
    e.options.model.load.userdata = &e;
    status = 1;
    if (set_up(&e, &f) < 0)
        complain("%s: %s", e.options.name, f.message);
    else
        status = sd_event_loop(e.event);
    if (status < 0)
        status = 1;
    if (e.server && server_why(e.server)[0])
        log_line(status ? SD_ERR : SD_INFO, "%s: %s", e.options.name, server_why(e.server));
    sd_notify(0, "STOPPING=1");
    tear_down(&e);
    return status;
}
