/* SPDX-License-Identifier: MIT */
/* dsv4d: options, configuration, sockets; then the event loop. See dsv4d(8). */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "base/fd.h"
#include "base/parse.h"
#include "daemon/conf.h"
#include "daemon/daemon.h"
#include "daemon/listen.h"
#include "daemon/log.h"

#define EXIT_CONFIGURATION 78 /* EX_CONFIG of sysexits.h */
#define CONF_FILE SYSCONFDIR "/dsv4d/dsv4d.conf"
#define ENGINE_USER "dsv4-engine"

struct options {
    const char *private_dir, *config, *root, *engine, *numerics, *device;
    uint32_t context, threads;
    uint64_t kv_bytes;
    mode_t socket_mode;
    int ready_fd;
    bool check_config, verbose;
};

enum { OPT_PRIVATE = 256, OPT_MODEL, OPT_CONFIG, OPT_ROOT, OPT_CHECK_CONFIG, OPT_ENGINE, OPT_NUMERICS, OPT_DEVICE, OPT_CONTEXT,
       OPT_KV_BYTES, OPT_THREADS, OPT_LIMIT, OPT_SOCKET_MODE, OPT_READY_FD, OPT_VERSION };

static const struct option long_options[] = {
    {"private", required_argument, NULL, OPT_PRIVATE},
    {"model", required_argument, NULL, OPT_MODEL},
    {"config", required_argument, NULL, OPT_CONFIG},
    {"root", required_argument, NULL, OPT_ROOT},
    {"check-config", no_argument, NULL, OPT_CHECK_CONFIG},
    {"engine", required_argument, NULL, OPT_ENGINE},
    {"numerics", required_argument, NULL, OPT_NUMERICS},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"kv-bytes", required_argument, NULL, OPT_KV_BYTES},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"limit", required_argument, NULL, OPT_LIMIT},
    {"socket-mode", required_argument, NULL, OPT_SOCKET_MODE},
    {"ready-fd", required_argument, NULL, OPT_READY_FD},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static void help(void)
{
    puts("Usage: dsv4d [OPTION...]\n"
         "       dsv4d --private DIR --model NAME=CHECKPOINT [OPTION...]\n"
         "\n"
         "Serves DeepSeek-V4 models to local users through a Unix socket.\n"
         "\n"
         "      --private DIR            run in the foreground with everything below DIR\n"
         "      --model NAME=CHECKPOINT  serve this checkpoint (may be repeated)\n"
         "      --config FILE            read this instead of " CONF_FILE "\n"
         "      --root DIR               read what is installed below DIR\n"
         "      --check-config           read the configuration, say what is wrong, exit\n"
         "      --engine PATH            program to run as engine\n"
         "      --device NAME            device of the models, as in cpu\n"
         "      --numerics exact|fast    arithmetic of the models\n"
         "      --context N              tokens that a session may hold\n"
         "      --kv-bytes BYTES         KV memory of each model, as in 512M\n"
         "      --threads N              threads of each engine\n"
         "      --limit NAME=VALUE       set a limit of dsv4d.conf(5) (may be repeated)\n"
         "      --socket-mode MODE       access mode of the socket, octal (default 0600, system 0666)\n"
         "      --ready-fd N             write READY to this file descriptor when clients may connect\n"
         "  -v, --verbose                log details\n"
         "  -h, --help                   show this\n"
         "      --version                show the version");
}

/* ---- options */

static int add_model(struct manager *m, const char *option, struct fail *f)
{
    char name[128];
    const char *eq = strchr(option, '=');
    struct model *model = NULL;

    if (!eq || !eq[1] || (size_t)(eq - option) >= sizeof(name))
        return fail_set(f, EINVAL, "CONFIG", "--model \"%.64s\"; expected NAME=CHECKPOINT", option);
    snprintf(name, sizeof(name), "%.*s", (int)(eq - option), option);
    if (!model_name_ok(name))
        return fail_set(f, EINVAL, "CONFIG", "--model: \"%s\" is no name; expected letters, digits, . _ and -", name);
    if (model_find(m, name))
        return fail_set(f, EINVAL, "CONFIG", "--model: %s is there twice", name);
    _cleanup_free_ char *path = realpath(eq + 1, NULL);
    return model_new(m, name, path ? path : eq + 1, &model) < 0 ? fail_oom(f) : 0;
}

static int number(const char *option, const char *value, uint64_t min, uint64_t max, uint64_t *ret, struct fail *f)
{
    if (parse_u64(value, min, max, ret) == 0)
        return 0;
    return fail_set(f, EINVAL, "CONFIG", "--%s is \"%.64s\"; expected %llu to %llu", option, value, (unsigned long long)min,
                    (unsigned long long)max);
}

static int set_numerics(struct options *o, const char *value, struct fail *f)
{
    if (strcmp(value, "exact") != 0 && strcmp(value, "fast") != 0)
        return fail_set(f, EINVAL, "CONFIG", "--numerics is \"%.64s\"; expected exact or fast", value);
    o->numerics = value;
    return 0;
}

static int set_mode(struct options *o, const char *value, struct fail *f)
{
    char *end;
    unsigned long mode = strtoul(value, &end, 8);

    if (end == value || *end || mode > 0777)
        return fail_set(f, EINVAL, "CONFIG", "--socket-mode is \"%.64s\"; expected an octal mode up to 0777", value);
    o->socket_mode = (mode_t)mode;
    return 0;
}

/* 0, or a negative errno, or 1: done, exit well. */
static int take_option(struct options *o, struct manager *m, int c, struct fail *f)
{
    uint64_t v = 0;
    int r = 0;

    switch (c) {
    case OPT_PRIVATE: o->private_dir = optarg; break;
    case OPT_MODEL: return add_model(m, optarg, f);
    case OPT_CONFIG: o->config = optarg; break;
    case OPT_ROOT: o->root = optarg; break;
    case OPT_CHECK_CONFIG: o->check_config = true; break;
    case OPT_ENGINE: o->engine = optarg; break;
    case OPT_NUMERICS: return set_numerics(o, optarg, f);
    case OPT_DEVICE: o->device = optarg; break;
    case OPT_CONTEXT:
        r = number("context", optarg, 1, UINT32_MAX, &v, f);
        o->context = (uint32_t)v;
        break;
    case OPT_THREADS:
        r = number("threads", optarg, 1, 4096, &v, f);
        o->threads = (uint32_t)v;
        break;
    case OPT_KV_BYTES:
        if (parse_bytes(optarg, &o->kv_bytes) < 0 || o->kv_bytes == 0 || o->kv_bytes == UINT64_MAX)
            return fail_set(f, EINVAL, "CONFIG", "--kv-bytes is \"%.64s\"; expected bytes such as 512M", optarg);
        break;
    case OPT_LIMIT: return limits_set_option(&m->limits, optarg, f);
    case OPT_SOCKET_MODE: return set_mode(o, optarg, f);
    case OPT_READY_FD:
        r = number("ready-fd", optarg, 1, INT_MAX, &v, f);
        o->ready_fd = (int)v;
        break;
    case 'v': o->verbose = true; break;
    case 'h': help(); return 1;
    case OPT_VERSION: puts(PACKAGE_STRING); return 1;
    default: return fail_set(f, EINVAL, "CONFIG", "see dsv4d --help");
    }
    return r;
}

static int read_options(struct options *o, struct manager *m, int argc, char **argv, struct fail *f)
{
    int c, r = 0;

    while (r == 0 && (c = getopt_long(argc, argv, "hv", long_options, NULL)) != -1)
        r = take_option(o, m, c, f);
    if (r == 0 && optind < argc)
        r = fail_set(f, EINVAL, "CONFIG", "unexpected argument \"%.64s\"", argv[optind]);
    if (r == 0 && o->config && o->root)
        r = fail_set(f, EINVAL, "CONFIG", "--config and --root exclude each other");
    if (r == 0 && o->private_dir && list_empty(&m->models))
        r = fail_set(f, EINVAL, "CONFIG", "--private needs at least one --model NAME=CHECKPOINT");
    return r;
}

/* ---- surroundings */

/* The engine beside us in a build tree, else where it is installed. */
static char *find_engine(void)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *path = NULL;

    if (n > 0) {
        self[n] = '\0';
        char *slash = strrchr(self, '/');
        if (slash > self + 6 && strncmp(slash - 6, "/.libs", 6) == 0) /* libtool keeps the real program there */
            slash -= 6;
        if (asprintf(&path, "%.*s/dsv4d-engine", (int)(slash - self), self) < 0)
            return NULL;
        if (access(path, X_OK) == 0)
            return path;
        free(path);
    }
    return asprintf(&path, "%s/dsv4d-engine", PKGLIBEXECDIR) < 0 ? NULL : path;
}

static void apply_to_models(const struct options *o, struct manager *m)
{
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        if (o->numerics && !model->numerics)
            model->numerics = strdup(o->numerics);
        if (o->device && !model->device)
            model->device = strdup(o->device);
        if (o->context)
            model->context = o->context;
        if (o->kv_bytes)
            model->kv_bytes = o->kv_bytes;
        if (o->threads)
            model->threads = o->threads;
    }
}

static int read_configuration(const struct options *o, struct manager *m, struct fail *f)
{
    struct conf c = {.m = m, .log_level = -1};

    int r = conf_read(&c, o->root ? o->root : "", o->config, f);
    if (r == 0 && c.log_level >= 0 && !o->verbose)
        log_init((enum log_level)c.log_level);
    return r;
}

/* What the command line says beats what the files say. */
static int set_limits_again(struct manager *m, int argc, char **argv, struct fail *f)
{
    int c, r = 0;

    optind = 0; /* from the start, for glibc */
    while (r == 0 && (c = getopt_long(argc, argv, "hv", long_options, NULL)) != -1)
        if (c == OPT_LIMIT)
            r = limits_set_option(&m->limits, optarg, f);
    return r;
}

static void raise_fd_limit(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static void block_signals(void)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

static void tell_ready(const struct options *o)
{
    sd_notify(0, "READY=1");
    if (o->ready_fd < 0)
        return;
    if (fd_write_full(o->ready_fd, "READY\n", 6) < 0)
        log_warning("--ready-fd: nobody listens");
    close(o->ready_fd);
}

static int serve(const struct options *o, struct manager *m, struct fail *f)
{
    struct passwd *engine_user = o->private_dir ? NULL : getpwnam(ENGINE_USER);
    int r;

    if (engine_user)
        m->engine_uid = engine_user->pw_uid;
    if (o->private_dir)
        r = listen_private(m, o->private_dir, o->socket_mode == (mode_t)-1 ? 0600 : o->socket_mode, f);
    else
        r = listen_system(m, o->socket_mode == (mode_t)-1 ? 0666 : o->socket_mode, f);
    if (r < 0)
        return r;
    r = manager_start(m);
    if (r < 0)
        return fail_set(f, -r, "INTERNAL", "cannot start: %s", strerror(-r));
    tell_ready(o);
    log_info("listening%s%s", m->socket_path ? " at " : "", m->socket_path ? m->socket_path : "");
    r = sd_event_loop(m->event);
    sd_notify(0, "STOPPING=1");
    return r < 0 ? fail_set(f, -r, "INTERNAL", "the event loop failed: %s", strerror(-r)) : 0;
}

int main(int argc, char **argv)
{
    _cleanup_(manager_freep) struct manager *m = NULL;
    _cleanup_free_ char *engine = NULL;
    struct options o = {.socket_mode = (mode_t)-1, .ready_fd = -1};
    struct fail f = FAIL_INIT;

    log_init(LOG_LEVEL_INFO);
    block_signals();
    if (manager_new(&m) < 0) {
        log_error("out of memory");
        return EXIT_FAILURE;
    }
    int r = read_options(&o, m, argc, argv, &f);
    if (r > 0)
        return EXIT_SUCCESS;
    if (o.verbose)
        log_init(LOG_LEVEL_DEBUG);
    if (r == 0 && (!o.private_dir || o.config || o.root))
        r = read_configuration(&o, m, &f);
    if (r == 0)
        r = set_limits_again(m, argc, argv, &f);
    if (r < 0) {
        log_error("%s", f.message);
        return EXIT_CONFIGURATION;
    }
    if (o.check_config)
        return EXIT_SUCCESS;
    apply_to_models(&o, m);
    raise_fd_limit();
    if (o.private_dir) {
        engine = o.engine ? strdup(o.engine) : find_engine();
        m->engine_program = engine;
    }
    r = serve(&o, m, &f);
    if (r < 0)
        log_error("%s", f.message);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
