/* SPDX-License-Identifier: MIT */
/* See conf.h. */
#include "daemon/conf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/ini.h"
#include "base/parse.h"
#include "daemon/dropin.h"

#define CONF_BYTES_MAX (1u << 20)
#define CONF_NAME "dsv4d.conf"
#define ALIASES_MAX 16

/* Known to the documentation, without effect in this version. */
static const char *const later[] = {"Daemon.MetricsSocket", "Scheduler.DecodeLatencyTarget", "Sessions.Directory",
                                    "Sessions.DirectoryMax", "Quota.KVBytes", "Prices.Currency", "Prices.Input",
                                    "Prices.CachedInput", "Prices.Output", "Model.ExpertCache", "Model.OnDemand",
                                    "Model.IdleUnload", "Model.Pin", "Model.Reasoning", "Model.Temperature", "Model.TopP"};

static bool is_later(const char *section, const char *key)
{
    char full[128];

    snprintf(full, sizeof(full), "%s.%s", quotas_is_section(section) ? "Quota" : section, key);
    for (size_t i = 0; i < ELEMENTS(later); i++)
        if (strcmp(full, later[i]) == 0)
            return true;
    return false;
}

static int bad_key(struct fail *f, const char *section, const char *key, const char *expected)
{
    fail_set(f, EINVAL, "CONFIG", "unknown key %.64s= in [%.64s]; expected %s", key, section, expected);
    fail_field(f, key);
    return -EINVAL;
}

/* A misspelt rule about who may do what or how much must not look as if it held. */
static int unknown(const struct conf *c, const char *section, const char *key, unsigned line, struct fail *f)
{
    static const char *const others[] = {"Daemon", "Scheduler", "Sessions", "Prices"};

    if (is_later(section, key)) {
        log_warning("%s:%u: %s= in [%s] has no effect in this version", c->file, line, key, section);
        return 0;
    }
    if (!section[0])
        return bad_key(f, section, key, "a [Section] before it");
    if (c->model)
        return bad_key(f, section, key, "a key of [Model] in dsv4d.conf(5)");
    if (strcmp(section, "Quota") == 0 || quotas_is_section(section))
        return bad_key(f, section, key, "a limit of [Quota] in dsv4d.conf(5)");
    for (size_t i = 0; i < ELEMENTS(others); i++)
        if (strcmp(section, others[i]) == 0) {
            log_warning("%s:%u: unknown key %s= in [%s] is ignored", c->file, line, key, section);
            return 0;
        }
    return bad_key(f, section, key, "a section of dsv4d.conf(5) such as Daemon, Quota, Quota uid:NAME or Quota gid:NAME");
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
    int r = quotas_is_section(section) ? quotas_set(&c->m->quotas, section, key, value, f)
                                       : limits_set(&c->m->limits, section, key, value, f);
    return r == -ENOENT ? unknown(c, section, key, line, f) : r;
}

static int read_with(struct conf *c, const char *file, ini_fn fn, struct fail *f)
{
    _cleanup_free_ char *text = NULL;
    size_t n;

    c->file = file;
    int r = fd_read_file(AT_FDCWD, file, CONF_BYTES_MAX, &text, &n, f);
    if (r == 0)
        r = ini_read(file, text, n, fn, c, f);
    c->file = NULL;
    return r;
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

static int set_access(struct model *model, const char *key, const char *value, struct fail *f)
{
    int r = access_set(&model->access, strcmp(key, "AllowGroups") == 0, value, f);

    if (r < 0) {
        fail_prefix(f, "%s is \"%.64s\"", key, value);
        fail_field(f, key);
    }
    return r;
}

static int set_number(struct model *model, const char *key, const char *value, struct fail *f)
{
    uint64_t v;

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
        return -ENOENT;
    }
    return 0;
}

static int model_key(const char *section, const char *key, const char *value, unsigned line, void *userdata, struct fail *f)
{
    struct conf *c = userdata;
    struct model *model = c->model;

    c->line = line;
    if (strcmp(section, "Model") != 0)
        return bad_key(f, section, key, "the section [Model] in a .model file");
    if (strcmp(key, "Path") == 0)
        return value[0] == '/' ? replace(&model->checkpoint, value, f) : bad_value(f, key, value, "an absolute path");
    if (strcmp(key, "Aliases") == 0)
        return set_aliases(c, key, value, f);
    if (strcmp(key, "AllowUsers") == 0 || strcmp(key, "AllowGroups") == 0)
        return set_access(model, key, value, f);
    if (strcmp(key, "Device") == 0)
        return replace(&model->device, value, f);
    if (strcmp(key, "Numerics") == 0) {
        bool known = strcmp(value, "exact") == 0 || strcmp(value, "fast") == 0;
        return known ? replace(&model->numerics, value, f) : bad_value(f, key, value, "exact or fast");
    }
    int r = set_number(model, key, value, f);
    return r == -ENOENT ? unknown(c, section, key, line, f) : r;
}

static int read_model(struct conf *c, const char *path, struct fail *f)
{
    const char *file = dropin_name(path);
    char name[256];

    snprintf(name, sizeof(name), "%.*s", (int)(strlen(file) - strlen(".model")), file);
    if (!model_name_ok(name))
        return fail_set(f, EINVAL, "CONFIG", "%s: a model's name is letters, digits, . _ and -, at most 64", path);
    if (model_find(c->m, name))
        return fail_set(f, EINVAL, "CONFIG", "%s:1: another model has the name or alias %s", path, name);
    if (model_new(c->m, name, "", &c->model) < 0)
        return fail_oom(f);
    c->line = 1;
    int r = read_with(c, path, model_key, f);
    if (r == 0 && !c->model->checkpoint[0]) {
        r = fail_set(f, EINVAL, "CONFIG", "%s:%u: Path= is missing; expected the checkpoint's directory", path, c->line);
        fail_field(f, "Path");
    }
    c->model = NULL;
    return r;
}

/* ---- all of it */

#define DIRS 3

/* The main file: the first of dirs' that is there, or file, which must be. */
static int read_main(struct conf *c, char *const *dirs, size_t n_dirs, const char *file, struct fail *f)
{
    int r = file ? read_with(c, file, daemon_key, f) : -ENOENT;

    for (size_t i = 0; !file && r == -ENOENT && i < n_dirs; i++) {
        _cleanup_free_ char *path = NULL;
        if (asprintf(&path, "%s/" CONF_NAME, dirs[i]) < 0) {
            path = NULL;
            return fail_oom(f);
        }
        r = read_with(c, path, daemon_key, f);
    }
    return r == -ENOENT && !file ? 0 : r; /* the defaults are a configuration */
}

static int read_all(struct conf *c, char *const *dirs, size_t n_dirs, const char *file, struct fail *f)
{
    _cleanup_(dropins_deinit) struct dropins parts = DROPINS_NONE, models = DROPINS_NONE;
    _cleanup_free_ char *sub = NULL;

    if (asprintf(&sub, "%s.d", file ? dropin_name(file) : CONF_NAME) < 0) {
        sub = NULL;
        return fail_oom(f);
    }
    int r = read_main(c, dirs, n_dirs, file, f);
    if (r == 0)
        r = dropins_find(dirs, n_dirs, sub, ".conf", &parts, f);
    for (size_t i = 0; r == 0 && i < parts.n; i++)
        r = read_with(c, parts.paths[i], daemon_key, f);
    if (r == 0)
        r = dropins_find(dirs, n_dirs, "models.d", ".model", &models, f);
    for (size_t i = 0; r == 0 && i < models.n; i++)
        r = read_model(c, models.paths[i], f);
    return r;
}

int conf_read(struct conf *c, const char *root, const char *file, struct fail *f)
{
    static const char *const system[DIRS] = {SYSCONFDIR "/dsv4d", "/run/dsv4d", PREFIX_LIBDIR "/dsv4d"};
    char *dirs[DIRS] = {NULL};
    size_t n = 0;
    int r = 0;

    if (file) {
        const char *slash = strrchr(file, '/');
        dirs[0] = !slash ? strdup(".") : slash == file ? strdup("/") : strndup(file, (size_t)(slash - file));
        r = dirs[n++] ? 0 : fail_oom(f);
    }
    for (; !file && r == 0 && n < DIRS; n++)
        if (asprintf(&dirs[n], "%s%s", root, system[n]) < 0) {
            dirs[n] = NULL;
            r = fail_oom(f);
        }
    if (r == 0)
        r = read_all(c, dirs, n, file, f);
    for (size_t i = 0; i < DIRS; i++)
        free(dirs[i]);
    return r;
}
