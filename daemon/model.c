/* SPDX-License-Identifier: MIT */
/* Models: names, state for clients, and the requests that wait until an engine takes them. See daemon.h. */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"

#define MODEL_NAME_MAX 64

bool model_name_ok(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > MODEL_NAME_MAX || name[0] == '.' || name[0] == '-')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
            return false;
    return true;
}

int model_new(struct manager *m, const char *name, const char *checkpoint, struct model **ret)
{
    struct model *model = calloc(1, sizeof(*model));

    if (!model)
        return -ENOMEM;
    model->m = m;
    list_init(&model->link);
    list_init(&model->waiting);
    model->name = strdup(name);
    model->checkpoint = strdup(checkpoint);
    if (!model->name || !model->checkpoint) {
        model_free(model);
        return -ENOMEM;
    }
    list_append(&m->models, &model->link);
    *ret = model;
    return 0;
}

struct model *model_free(struct model *model)
{
    if (!model)
        return NULL;
    list_remove(&model->link);
    sd_event_source_disable_unref(model->child);
    sd_event_source_disable_unref(model->retry);
    sd_event_source_disable_unref(model->watchdog);
    if (model->info)
        dsv4__v1__model__free_unpacked(model->info, NULL);
    for (char **a = model->aliases; a && *a; a++)
        free(*a);
    free(model->aliases);
    access_deinit(&model->access);
    free(model->name);
    free(model->checkpoint);
    free(model->device);
    free(model->numerics);
    free(model);
    return NULL;
}

static bool is_called(const struct model *model, const char *name)
{
    if (strcmp(model->name, name) == 0)
        return true;
    for (char **a = model->aliases; a && *a; a++)
        if (strcmp(*a, name) == 0)
            return true;
    return false;
}

struct model *model_find(struct manager *m, const char *name)
{
    LIST_FOR_EACH(l, &m->models) {
        struct model *model = LIST_MEMBER(l, struct model, link);
        if (is_called(model, name))
            return model;
    }
    return NULL;
}

struct model *model_find_for(struct manager *m, const char *name, const struct who *who)
{
    struct model *model = model_find(m, name);
    return model && access_allows(&model->access, who) ? model : NULL;
}

void model_describe(const struct model *model, Dsv4__V1__Model *ret)
{
    dsv4__v1__model__init(ret);
    if (model->info)
        *ret = *model->info;
    ret->name = model->name;
    ret->state = model->state;
    ret->alias = model->aliases;
    ret->n_alias = 0;
    while (model->aliases && model->aliases[ret->n_alias])
        ret->n_alias++;
    ret->detail = model->state == DSV4__V1__MODEL_STATE__FAILED ? (char *)(uintptr_t)model->why.message : NULL;
    if (model->state == DSV4__V1__MODEL_STATE__LOADING) {
        ret->has_weight_bytes = model->total_bytes > 0;
        ret->weight_bytes = model->total_bytes;
        ret->has_loaded_bytes = true;
        ret->loaded_bytes = model->done_bytes;
    }
}

int model_admit(struct model *model, struct fail *f)
{
    if (model->m->stopping)
        return fail_set(f, ESHUTDOWN, "SHUTTING_DOWN", "the service is stopping; try again when it is back");
    if (model->state == DSV4__V1__MODEL_STATE__FAILED && now_monotonic_usec() >= model->retry_usec)
        model_start(model);
    if (model->state != DSV4__V1__MODEL_STATE__FAILED)
        return 0;
    fail_set(f, EIO, "MODEL_FAILED", "model %s could not be loaded: %.300s", model->name, model->why.message);
    if (f)
        f->retry_after_ms = model_retry_after_ms(model);
    return -EIO;
}

static int waited_too_long(sd_event_source *source, uint64_t usec, void *userdata)
{
    struct request *r = userdata;
    struct fail f = FAIL_INIT;

    (void)source;
    (void)usec;
    if (r->engine || r->ended)
        return 0;
    fail_set(&f, EAGAIN, "MODEL_LOADING", "model %s is not ready yet: %llu of %llu MiB", r->model->name,
             (unsigned long long)(r->model->done_bytes >> 20), (unsigned long long)(r->model->total_bytes >> 20));
    f.retry_after_ms = 1000 + model_retry_after_ms(r->model);
    request_fail(r, &f);
    return 0;
}

static void tell_queued(struct request *r)
{
    Dsv4__V1__ServerMessage sm = DSV4__V1__SERVER_MESSAGE__INIT;
    Dsv4__V1__Queued queued = DSV4__V1__QUEUED__INIT;

    if (r->kind != REQUEST_GENERATE)
        return;
    queued.position = r->model->n_waiting;
    sm.event_case = DSV4__V1__SERVER_MESSAGE__EVENT_QUEUED;
    sm.queued = &queued;
    request_event(r, &sm);
}

void model_submit(struct model *model, struct request *r)
{
    uint64_t id = r->id;

    list_append(&model->waiting, &r->link);
    model->n_waiting++;
    model->m->waiting++;
    if (timer_arm(model->m->event, &r->timer, model->m->limits.queue_timeout_usec, waited_too_long, r) < 0)
        log_warning("no timer for a waiting request");
    model_pump(model);
    if (!list_empty(&model->waiting) && LIST_MEMBER(model->waiting.prev, struct request, link)->id == id)
        tell_queued(r);
}

void model_pump(struct model *model)
{
    while (model->state == DSV4__V1__MODEL_STATE__READY && model->engine && !list_empty(&model->waiting) &&
           !model->engine->broken && !engine_congested(model->engine)) {
        struct request *r = LIST_MEMBER(model->waiting.next, struct request, link);
        struct fail f = FAIL_INIT;
        if (engine_send_request(model->engine, r) < 0) {
            fail_oom(&f);
            request_fail(r, &f);
        }
    }
}

void model_fail_waiting(struct model *model, const struct fail *why)
{
    while (!list_empty(&model->waiting)) {
        struct fail f = *why;
        request_fail(LIST_MEMBER(model->waiting.next, struct request, link), &f);
    }
}
