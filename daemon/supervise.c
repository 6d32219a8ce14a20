/* SPDX-License-Identifier: MIT */
/*
 * The processes of models: spawned, watched (sd-event does that by pidfd where the kernel has it), restarted with
 * back-off. An engine is down when both its process and its connection are gone; which goes first is chance. Where systemd
 * runs engines, only the connection matters.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

#define BACKOFF_FIRST_USEC 100000ull       /* a crash costs the next request little */
#define BACKOFF_MAX_USEC 10000000ull
#define STABLE_USEC 10000000ull            /* READY for this long: earlier crashes are forgotten */
#define FAST_FAILURES_MAX 5                /* in a row; then it is FAILED */
#define FAILED_RETRY_USEC 10000000ull      /* a FAILED model is tried again after this, when somebody asks */
#define REGISTER_TIMEOUT_USEC 60000000ull  /* from spawn to Register: a sanitizer build on a busy machine is slow */

extern char **environ;

static void model_down(struct model *model);

/* ---- spawn */

static int spawn(struct model *model, const char *const argv[])
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;

    sigemptyset(&none);
    sigfillset(&all);
    if (posix_spawn_file_actions_init(&actions) != 0)
        return -ENOMEM;
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return -ENOMEM;
    }
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setpgroup(&attr, 0); /* a Ctrl-C at the terminal is for us; we tell the engine */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    int r = -posix_spawn(&model->pid, argv[0], &actions, &attr, (char **)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    if (r < 0)
        model->pid = 0;
    return r;
}

static int on_exit_of_child(sd_event_source *source, const siginfo_t *si, void *userdata)
{
    struct model *model = userdata;

    (void)source;
    if (si->si_code == CLD_EXITED)
        log_line(si->si_status ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "engine of %s (process %d) exited with status %d",
                 model->name, (int)si->si_pid, si->si_status);
    else
        log_warning("engine of %s (process %d) was killed by signal %d", model->name, (int)si->si_pid, si->si_status);
    model->child = sd_event_source_disable_unref(model->child);
    model->pid = 0;
    if (!model->engine)
        model_down(model);
    return 0;
}

static int start_process(struct model *model)
{
    char context[16], kv[32], threads[16];
    const char *argv[20] = {model->m->engine_program, "--name", model->name, "--checkpoint", model->checkpoint, "--front",
                            model->m->engine_path};
    size_t n = 7;
    struct {
        const char *option, *value; /* value NULL or "0": leave it to the engine */
    } options[] = {{"--device", model->device}, {"--numerics", model->numerics}, {"--context", context}, {"--kv-bytes", kv},
                   {"--threads", threads}};

    snprintf(context, sizeof(context), "%u", model->context);
    snprintf(kv, sizeof(kv), "%llu", (unsigned long long)model->kv_bytes);
    snprintf(threads, sizeof(threads), "%u", model->threads);
    for (size_t i = 0; i < ELEMENTS(options); i++) {
        if (!options[i].value || strcmp(options[i].value, "0") == 0)
            continue;
        argv[n++] = options[i].option;
        argv[n++] = options[i].value;
    }
    int r = spawn(model, argv);
    if (r < 0)
        return r;
    r = sd_event_add_child(model->m->event, &model->child, model->pid, WEXITED, on_exit_of_child, model);
    if (r < 0) { /* not to be supervised: not to be had */
        kill(model->pid, SIGKILL);
        waitpid(model->pid, NULL, 0);
        model->pid = 0;
    }
    return r;
}

static int not_registered(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct model *model = userdata;

    (void)source;
    (void)usec;
    if (!model->engine && model->pid) {
        log_warning("engine of %s did not register in time", model->name);
        model_kill(model, SIGKILL);
    }
    return 0;
}

void model_start(struct model *model)
{
    if (!model->m->engine_program || model->pid || model->engine || model->m->stopping)
        return;
    timer_off(&model->retry);
    model->state = DSV4__V1__MODEL_STATE__LOADING;
    model->why = FAIL_INIT;
    model->done_bytes = model->total_bytes = model->ready_usec = 0;
    int r = start_process(model);
    if (r < 0) {
        fail_set(&model->why, -r, "MODEL_FAILED", "the engine %s could not be started: %s", model->m->engine_program,
                 strerror(-r));
        model_down(model);
        return;
    }
    log_info("engine of %s started as process %d", model->name, (int)model->pid);
    timer_arm(model->m->event, &model->watchdog, REGISTER_TIMEOUT_USEC, not_registered, model);
}

/* ---- up and down */

void model_registered(struct model *model, struct engine *e)
{
    model->engine = e;
    model->state = DSV4__V1__MODEL_STATE__LOADING;
    model->ready_usec = 0;
    timer_off(&model->watchdog);
}

void model_ready(struct model *model)
{
    model->state = model->m->stopping ? DSV4__V1__MODEL_STATE__DRAINING : DSV4__V1__MODEL_STATE__READY;
    model->ready_usec = now_monotonic_usec();
    log_info("model %s is ready", model->name);
    model_pump(model);
}

static int retry_now(sd_event_source *source, uint64_t usec, void *userdata)
{
    (void)source;
    (void)usec;
    model_start(userdata);
    return 0;
}

static void give_up(struct model *model)
{
    struct fail f = FAIL_INIT;

    if (!model->why.code[0])
        fail_set(&model->why, EIO, "ENGINE_GONE", "its engine stopped %u times in a row", model->failures);
    model->state = DSV4__V1__MODEL_STATE__FAILED;
    model->failures = 0;
    model->retry_usec = now_monotonic_usec() + FAILED_RETRY_USEC;
    log_error("model %s failed: %s: %s", model->name, model->why.code, model->why.message);
    fail_set(&f, EIO, "MODEL_FAILED", "model %s could not be loaded: %.300s", model->name, model->why.message);
    f.retry_after_ms = model_retry_after_ms(model);
    model_fail_waiting(model, &f);
}

/* Neither process nor connection is left. */
static void model_down(struct model *model)
{
    uint64_t now = now_monotonic_usec();

    timer_off(&model->watchdog);
    if (model->m->stopping) {
        model->state = DSV4__V1__MODEL_STATE__UNLOADED;
        manager_check_stopped(model->m);
        return;
    }
    if (model->ready_usec && now - model->ready_usec >= STABLE_USEC)
        model->failures = 0;
    model->failures++;
    model->ready_usec = 0;
    if (model->why.code[0] || model->failures > FAST_FAILURES_MAX) {
        give_up(model);
        return;
    }
    model->state = model->m->engine_program ? DSV4__V1__MODEL_STATE__LOADING : DSV4__V1__MODEL_STATE__UNLOADED;
    if (!model->m->engine_program)
        return; /* whoever started it starts it again */
    uint64_t delay = MIN(BACKOFF_FIRST_USEC << (model->failures - 1), BACKOFF_MAX_USEC);
    model->retry_usec = now + delay;
    if (timer_arm(model->m->event, &model->retry, delay, retry_now, model) < 0)
        give_up(model);
}

void model_disconnected(struct model *model)
{
    model->engine = NULL;
    if (model->info)
        dsv4__v1__model__free_unpacked(TAKE_PTR(model->info), NULL);
    if (model->state == DSV4__V1__MODEL_STATE__READY)
        model->state = DSV4__V1__MODEL_STATE__LOADING;
    if (!model->pid)
        model_down(model);
    else if (!model->m->stopping && !model->why.code[0])
        model_kill(model, SIGKILL); /* without a connection it is of no use */
}

void model_kill(struct model *model, int sig)
{
    if (model->child)
        sd_event_source_send_child_signal(model->child, sig, NULL, 0);
}

uint32_t model_retry_after_ms(const struct model *model)
{
    uint64_t now = now_monotonic_usec();

    if (model->retry_usec <= now)
        return (uint32_t)(BACKOFF_FIRST_USEC / 1000);
    return (uint32_t)((model->retry_usec - now) / 1000 + 1);
}
