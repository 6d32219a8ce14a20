/* SPDX-License-Identifier: MIT */
/* See conf.h. */
#include "daemon/conf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/ini.h"
#include "base/parse.h"

#define CONF_BYTES_MAX (1u << 20)
#define ALIASES_MAX 16

/* Known to the documentation, without effect in this version. */
static const char *const later[] = {"Daemon.MetricsSocket",        "Scheduler.DecodeLatencyTarget", "Sessions.Directory",
                                    "Sessions.DirectoryMax",       "Quota.KVBytes",                 "Prices.Currency",
                                    "Prices.Input",                "Prices.CachedInput",            "Prices.Output",
                                    "Model.ExpertCache",           "Model.OnDemand",                "Model.IdleUnload",
                                    "Model.Pin",                   "Model.AllowUsers",              "Model.AllowGroups",
                                    "Model.Reasoning",             "Model.Temperature",             "Model.TopP"};

static void warn_unused(const struct conf *c, const char *section, const char *key, unsigned line)
{
    char full[128];

    snprintf(full, sizeof(full), "%s.%s", section, key);
    for (size_t i = 0; i < ELEMENTS(later); i++)
        if (strcmp(full, later[i]) == 0) {
            log_notice("%s:%u: %s= in [%s] has no effect in this version", c->file, line, key, section);
            return;
        }
    log_warning("%s:%u: unknown key %s= in [%s] is ignored", c->file, line, key, section);
}

static int bad_value(struct fail *f, const char *key, const char *value, const char *expected)
{
    fail_set(f, EINVAL, "CONFIG", "%s is \"%.64s\"; expected %s", key, value, expected);
    fail_field(f, key);
    return -EINVAL;
}

static int daemon_key(const char *section, const char *key, const char *value, unsigned line, void *userdata,
                      struct fail *f)
{
    struct conf *c = userdata;

    if (strcmp(section, "Daemon") == 0 && strcmp(key, "LogLevel") == 0) {
        c->log_level = log_parse_level(value);
        return c->log_level < 0 ? bad_value(f, key, value, "error, warning, notice, info or debug") : 0;
    }
    int r = limits_set(&c->m->limits, section, key, value, f);
    if (r != -ENOENT)
        return r;
    warn_unused(c, section, key, line);
    return 0;
}

static int read_with(struct conf *c, int dir_fd, const char *name, ini_fn fn, struct fail *f)
{
    _cleanup_free_ char *text = NULL;
    size_t n;

    int r = fd_read_file(dir_fd, name, CONF_BYTES_MAX, &text, &n, f);
    return r < 0 ? r : ini_read(c->file, text, n, fn, c, f);
}

int conf_read_daemon(struct conf *c, const char *file, struct fail *f)
{
    c->file = file;
    return read_with(c, AT_FDCWD, file, daemon_key, f);
}

/* ---- models */

static int replace(char **s, const char *value, struct fail *f)
{
    char *copy = strdup(value);

    if (!copy)
        return fail_oom(f);
    free(*s);
    *s = copy;
    return 0;
}

static int set_aliases(struct conf *c, const char *key, const char *value, struct fail *f)
{
    _cleanup_free_ char *copy = strdup(value);
    char *save = NULL;
    size_t n = 0;

    if (!copy)
        return fail_oom(f);
    for (char **a = c->model->aliases; a && *a; a++)
        free(*a);
    free(c->model->aliases);
    c->model->aliases = calloc(ALIASES_MAX + 1, sizeof(char *));
    if (!c->model->aliases)
        return fail_oom(f);
    for (char *word = strtok_r(copy, " \t", &save); word; word = strtok_r(NULL, " \t", &save)) {
        if (n == ALIASES_MAX || !model_name_ok(word))
            return bad_value(f, key, value, "at most 16 names of letters, digits, . _ and -");
        if (model_find(c->m, word) && model_find(c->m, word) != c->model)
            return bad_value(f, key, value, "names that no other model has");
        if (!(c->model->aliases[n++] = strdup(word)))
            return fail_oom(f);
    }
    return 0;
}

static int model_key(const char *section, const char *key, const char *value, unsigned line, void *userdata, struct fail *f)
{
    struct conf *c = userdata;
    struct model *model = c->model;
    uint64_t v;

    if (strcmp(section, "Model") != 0) {
        warn_unused(c, section, key, line);
        return 0;
    }
    if (strcmp(key, "Path") == 0)
        return value[0] == '/' ? replace(&model->checkpoint, value, f) : bad_value(f, key, value, "an absolute path");
    if (strcmp(key, "Aliases") == 0)
        return set_aliases(c, key, value, f);
    if (strcmp(key, "Device") == 0)
        return replace(&model->device, value, f);
    if (strcmp(key, "Numerics") == 0) {
        bool known = strcmp(value, "exact") == 0 || strcmp(value, "fast") == 0;
        return known ? replace(&model->numerics, value, f) : bad_value(f, key, value, "exact or fast");
    }
    if (strcmp(key, "Context") == 0) {
        if (parse_u64(value, 1, UINT32_MAX, &v) < 0)
            return bad_value(f, key, value, "a number of tokens");
        model->context = (uint32_t)v;
    } else if (strcmp(key, "Threads") == 0) {
        if (parse_u64(value, 1, 4096, &v) < 0)
            return bad_value(f, key, value, "1 to 4096");
        model->threads = (uint32_t)v;
    } else if (strcmp(key, "KVBytes") == 0) {
        if (parse_bytes(value, &v) < 0 || v == 0 || v == UINT64_MAX)
            return bad_value(f, key, value, "bytes such as 512M or 24G");
        model->kv_bytes = v;
    } else {
        warn_unused(c, section, key, line);
    }
    return 0;
}

static int read_model(struct conf *c, int dir_fd, const char *dir, const char *file, struct fail *f)
{
    char name[256], path[512];

    snprintf(name, sizeof(name), "%.*s", (int)(strlen(file) - strlen(".model")), file);
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    c->file = path;
    if (!model_name_ok(name))
        return fail_set(f, EINVAL, "CONFIG", "%s: a model's name is letters, digits, . _ and -, at most 64", path);
    if (model_find(c->m, name))
        return fail_set(f, EINVAL, "CONFIG", "%s: another model has the name or alias %s", path, name);
    if (model_new(c->m, name, "", &c->model) < 0)
        return fail_oom(f);
    int r = read_with(c, dir_fd, file, model_key, f);
    if (r == 0 && !c->model->checkpoint[0])
        r = fail_set(f, EINVAL, "CONFIG", "%s: Path= is missing; expected the checkpoint's directory", path);
    c->file = NULL;
    return r;
}

static int is_model_file(const struct dirent *d)
{
    size_t n = strlen(d->d_name);
    return n > strlen(".model") && d->d_name[0] != '.' && strcmp(d->d_name + n - strlen(".model"), ".model") == 0;
}

int conf_read_models(struct conf *c, const char *dir, struct fail *f)
{
    _cleanup_close_ int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct dirent **entries = NULL;
    int r = 0;

    if (dir_fd < 0 && errno == ENOENT)
        return 0;
    int n = dir_fd < 0 ? -1 : scandirat(dir_fd, ".", &entries, is_model_file, alphasort);
    if (n < 0)
        return fail_set(f, errno, "IO_ERROR", "%s: %s", dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (r == 0)
            r = read_model(c, dir_fd, dir, entries[i]->d_name, f);
        free(entries[i]);
    }
    free(entries);
    return r;
}
