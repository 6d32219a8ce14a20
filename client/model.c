/* SPDX-License-Identifier: MIT */
/* Which model a command uses, and waiting until it is loaded. */
#include "client/answer.h"

#include <string.h>
#include <time.h>

#define POLL_USEC 200000

static bool has_name(const struct dsv4_model *m, const char *name)
{
    if (strcmp(dsv4_model_get_name(m), name) == 0)
        return true;
    for (size_t i = 0; i < dsv4_model_get_n_aliases(m); i++)
        if (strcmp(dsv4_model_get_alias(m, i), name) == 0)
            return true;
    return false;
}

static const struct dsv4_model *find(const struct dsv4_models *models, const char *name)
{
    for (size_t i = 0; i < dsv4_models_get_size(models); i++)
        if (has_name(dsv4_models_get(models, i), name))
            return dsv4_models_get(models, i);
    return NULL;
}

static int none_chosen(const struct dsv4_models *models)
{
    _cleanup_buf_ struct buf names = BUF_INIT;

    if (dsv4_models_get_size(models) == 0)
        return tool_fail(EXIT_FAILED, "the service has no models");
    for (size_t i = 0; i < dsv4_models_get_size(models); i++)
        buf_printf(&names, "%s%s", i ? ", " : "", dsv4_model_get_name(dsv4_models_get(models, i)));
    return tool_fail(EXIT_USAGE, "there are several models; choose one with --model: %s", names.data ? names.data : "");
}

int model_choose(struct dsv4 *c, const char *wanted, char **ret)
{
    _cleanup_(dsv4_models_freep) struct dsv4_models *models = NULL;
    const char *name = wanted; /* one that is not there is refused by the service, in its own words */

    if (!name) {
        if (dsv4_list_models(c, &models) < 0)
            return tool_error(dsv4_get_error(c));
        const struct dsv4_model *m = find(models, "default");
        if (!m && dsv4_models_get_size(models) == 1)
            m = dsv4_models_get(models, 0);
        if (!m)
            return none_chosen(models);
        name = dsv4_model_get_name(m);
    }
    *ret = strdup(name);
    return *ret ? EXIT_OK : tool_fail(EXIT_FAILED, "out of memory");
}

int model_wait(struct dsv4 *c, const char *name, struct progress *p)
{
    for (;;) {
        _cleanup_(dsv4_models_freep) struct dsv4_models *models = NULL;
        if (dsv4_list_models(c, &models) < 0) {
            progress_clear(p);
            return tool_error(dsv4_get_error(c));
        }
        const struct dsv4_model *m = find(models, name);
        if (!m || dsv4_model_get_state(m) != DSV4_MODEL_LOADING) {
            progress_clear(p);
            if (m && dsv4_model_get_state(m) == DSV4_MODEL_FAILED && dsv4_model_get_detail(m))
                return tool_fail(EXIT_FAILED, "the model %s could not be loaded: %s", name, dsv4_model_get_detail(m));
            return EXIT_OK;
        }
        progress_show(p, "Loading the model", dsv4_model_get_loaded_bytes(m), dsv4_model_get_weight_bytes(m), true);
        nanosleep(&(struct timespec){.tv_nsec = POLL_USEC * 1000}, NULL);
    }
}
