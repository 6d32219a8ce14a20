/* SPDX-License-Identifier: MIT */
/*
 * Configuration files: where they are looked for, what they mean, and 1,000 of them that somebody in a hurry has damaged.
 * A damaged one must be read as something within its ranges or refused with file, line and key.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/fd.h"
#include "daemon/conf.h"

static char top[64]; /* a directory of the test */

static void write_file(const char *name, const char *text, size_t n)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", top, name);
    for (char *p = path + strlen(top) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(path, 0700);
        *p = '/';
    }
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, n, out), n);
    assert_int_equal(fclose(out), 0);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static int set_up(void **state)
{
    (void)state;
    snprintf(top, sizeof(top), "/tmp/dsv4-test-conf-XXXXXX");
    log_init((enum log_level)0); /* warnings of 1,000 files */
    return mkdtemp(top) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Read DIR/dsv4d.conf, or the system's below DIR where dir is "". */
static int read_below(const char *dir, struct manager **ret, struct fail *f)
{
    char file[256];
    struct conf c = {.log_level = -1};

    assert_int_equal(manager_new(&c.m), 0);
    snprintf(file, sizeof(file), "%s/%s/dsv4d.conf", top, dir);
    int r = conf_read(&c, top, dir[0] ? file : NULL, f);
    if (ret && r == 0)
        *ret = c.m;
    else
        manager_free(c.m);
    return r;
}

/* ---- where files are */

static void parts_and_their_order(void **state)
{
    (void)state;
    _cleanup_(manager_freep) struct manager *m = NULL;
    struct fail f = FAIL_INIT;

    write_text("parts/dsv4d.conf", "[Quota]\nSessions=1\nConnections=1\nResumes=1\n[Quota uid:5]\nWeight=5\n");
    write_text("parts/dsv4d.conf.d/20-b.conf", "[Quota]\nSessions=20\n[Quota uid:5]\nSessions=55\n");
    write_text("parts/dsv4d.conf.d/10-a.conf", "[Quota]\nSessions=10\nConnections=10\n");
    write_text("parts/dsv4d.conf.d/.30.conf", "garbage");
    write_text("parts/dsv4d.conf.d/30.conf~", "garbage");
    write_text("parts/models.d/b.model", "[Model]\nPath=/b\nAliases=x y\nAllowUsers=5\n");
    write_text("parts/models.d/a.model", "[Model]\nPath=/a\nPath=/a2\n");
    assert_int_equal(read_below("parts", &m, &f), 0);
    assert_int_equal(m->limits.sessions, 20);
    assert_int_equal(m->limits.connections, 10);
    assert_int_equal(m->limits.resumes, 1);
    struct limits l = m->limits;
    quotas_apply(&m->quotas, &(struct who){.uid = 5}, &l);
    assert_true(l.weight == 5 && l.sessions == 55 && l.connections == 10);
    assert_string_equal(model_find(m, "a")->checkpoint, "/a2"); /* the later key */
    assert_ptr_equal(model_find(m, "y"), model_find(m, "b"));
    assert_non_null(model_find_for(m, "x", &(struct who){.uid = 5}));
    assert_null(model_find_for(m, "x", &(struct who){.uid = 6}));
    assert_null(model_find_for(m, "b", &(struct who){.uid = 6}));
}

#define ETC "." SYSCONFDIR "/dsv4d/"
#define LIB "." PREFIX_LIBDIR "/dsv4d/"

static void three_directories(void **state)
{
    (void)state;
    struct manager *m = NULL;
    struct fail f = FAIL_INIT;
    char null[256];

    assert_int_equal(read_below("", &m, &f), 0); /* nothing is there: the defaults */
    assert_int_equal(m->limits.sessions, 256);
    manager_free(m);
    write_text(LIB "dsv4d.conf", "[Quota]\nSessions=1\nResumes=1\n");
    write_text(LIB "dsv4d.conf.d/10.conf", "[Quota]\nSessions=2\nConnections=2\n");
    write_text(LIB "dsv4d.conf.d/20.conf", "[Quota]\nWeight=2\n");
    write_text(LIB "models.d/m.model", "[Model]\nPath=/lib\n");
    write_text(LIB "models.d/n.model", "[Model]\nPath=/lib\n");
    write_text(LIB "models.d/o.model", "[Model]\nPath=/lib\n");
    write_text("run/dsv4d/dsv4d.conf.d/10.conf", "[Quota]\nSessions=3\n");
    write_text("run/dsv4d/models.d/m.model", "[Model]\nPath=/run\n");
    write_text("run/dsv4d/models.d/n.model", "[Model]\nPath=/run\n");
    write_text(ETC "models.d/n.model", "");
    snprintf(null, sizeof(null), "%s/" ETC "models.d/o.model", top);
    assert_int_equal(symlink("/dev/null", null), 0);
    assert_int_equal(read_below("", &m, &f), 0);
    assert_int_equal(m->limits.sessions, 3);      /* /run's 10.conf hides /usr/lib's */
    assert_int_equal(m->limits.connections, 256); /* all of it */
    assert_int_equal(m->limits.weight, 2);
    assert_int_equal(m->limits.resumes, 1);
    assert_string_equal(model_find(m, "m")->checkpoint, "/run");
    assert_null(model_find(m, "n"));
    assert_null(model_find(m, "o"));
    manager_free(m);
    write_text(ETC "dsv4d.conf", "[Quota]\nSessions=4\n"); /* the first main file is the only one */
    assert_int_equal(read_below("", &m, &f), 0);
    assert_int_equal(m->limits.resumes, 32);
    assert_int_equal(m->limits.sessions, 3); /* drop-ins come after it */
    manager_free(m);
}

/* ---- what is refused */

static void rules_must_hold(void **state)
{
    (void)state;
    struct fail f = FAIL_INIT;
    static const struct {
        const char *text, *says, *field;
        bool model;
    } cases[] = {
        {"[Quota]\nWieght=1\n", "bad.conf:2: unknown key Wieght=", "Wieght", false},
        {"[Quota uid:5]\nWeight=1\nMaxConnections=1\n", "bad.conf:3: unknown key MaxConnections=", "MaxConnections", false},
        {"[Quota uid:nobody-like-this]\nWeight=1\n", "bad.conf:2: Weight in [Quota uid:nobody-like-this]: there is no user",
         "Weight", false},
        {"[Quota gid:]\nWeight=1\n", "there is no group \"\"", "Weight", false},
        {"[Qouta gid:5]\nWeight=1\n", "bad.conf:2: unknown key Weight= in [Qouta gid:5]", "Weight", false},
        {"[Quota gid:5]\nWeight=100001\n", "bad.conf:2: Weight is \"100001\"; expected 1 to 10000", "Weight", false},
        {"Weight=1\n", "bad.conf:1: unknown key Weight= in []; expected a [Section]", "Weight", false},
        {"[Model]\nPath=/x\nAllowUser=root\n", "bad.model:3: unknown key AllowUser=", "AllowUser", true},
        {"[Model]\nPath=/x\nAllowUsers=root nobody-like-this\n", "bad.model:3: AllowUsers is \"root nobody-like-this\": there",
         "AllowUsers", true},
        {"[Model]\nPath=/x\nAllowGroups=-5\n", "bad.model:3: AllowGroups is \"-5\": there is no group", "AllowGroups", true},
        {"[Models]\nPath=/x\n", "bad.model:2: unknown key Path= in [Models]", "Path", true},
        {"[Model]\nDevice=cpu\n", "bad.model:2: Path= is missing", "Path", true},
    };

    write_text("bad/dsv4d.conf", "[Daemon]\nMaxConnectons=1\n"); /* only a warning: nobody is let in by it */
    assert_int_equal(read_below("bad", NULL, &f), 0);
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        write_text("bad/dsv4d.conf.d/bad.conf", cases[i].model ? "" : cases[i].text);
        write_text("bad/models.d/bad.model", cases[i].model ? cases[i].text : "");
        assert_int_equal(read_below("bad", NULL, &f), -EINVAL);
        assert_string_equal(f.code, "CONFIG");
        if (!strstr(f.message, cases[i].says))
            fail_msg("\"%s\" does not say \"%s\"", f.message, cases[i].says);
        assert_string_equal(f.field, cases[i].field);
    }
    assert_int_equal(read_below("not-there", NULL, &f), -ENOENT); /* a named file must be there */
    assert_non_null(strstr(f.message, "not-there/dsv4d.conf"));
}

/* ---- damaged files */

static uint64_t random_state = 1;
static size_t below(size_t n) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (size_t)(random_state * UINT64_C(2685821657736338717) >> 33) % n;
}

static const char *const files[] = {"dsv4d.conf", "dsv4d.conf.d/50.conf", "models.d/flash.model"};
static const char *const good[] = {
    "# the daemon\n[Daemon]\nLogLevel=info\nMaxConnections=4096\nMemfdMax=64M\nFrameTimeout=10s\nOutputHigh=1M\n"
    "ShutdownGrace=5s\n\n[Scheduler]\nQueueTimeout=10min\n\n[Sessions]\nIdleTimeout=30min\n\n[Quota]   # everybody\n"
    "Connections=32\nSessions=16\nQueuedRequests=16\nWaitingBytes=32M\nTokensPerMinute=200000\nTokensPerDay=10M\nWeight=100\n",
    "[Quota gid:root]\nWeight=300\nTokensPerDay=infinity\n\n[Quota uid:1234]\nSessions=2\nConnections=3\n\n[Prices]\n"
    "Currency=USD\nInput=0.14\n",
    "[Model]\nPath=/srv/models/flash\nAliases=flash-latest default\nDevice=cpu\nNumerics=fast\nContext=262144\nKVBytes=24G\n"
    "Threads=8\nAllowUsers=root 1234\nAllowGroups=root\nTemperature=1.0\n",
};

static void damage_value(struct buf *out, const char *line, size_t n)
{
    static const char *const values[] = {"", "-1", "0", "99999999999999999999999999", "18446744073709551615", "1e9", "10 0", "0x10",
                                         "infinity", "nan", "%s%n", "=", "[", "no-such-name", "\"5\"", "5G5", "../../etc", "é"};
    const char *eq = memchr(line, '=', n);

    buf_append(out, line, eq ? (size_t)(eq + 1 - line) : n);
    buf_append_str(out, values[below(ELEMENTS(values))]);
    buf_append_str(out, "\n");
}

static void damage_byte(struct buf *out, const char *line, size_t n)
{
    size_t at = out->size + below(n);

    buf_append(out, line, n);
    out->data[at] = (char)(below(3) ? 32 + below(95) : below(256));
}

static void damage_line(struct buf *out, const char *line, size_t n)
{
    switch (below(7)) {
    case 0: /* gone */
        break;
    case 1:
        buf_append(out, line, n);
        buf_append(out, line, n);
        break;
    case 2:
    case 3:
        damage_byte(out, line, n);
        break;
    case 4:
    case 5:
        damage_value(out, line, n);
        break;
    default:
        for (size_t i = below(2) ? 1 : 600; i > 0; i--) /* without its end: it runs into the next */
            buf_append(out, line, n - 1);
    }
}

/* text with one to three of its lines damaged */
static void damage(const char *text, struct buf *out)
{
    size_t lines = 0, chosen[3];

    for (const char *p = text; (p = strchr(p, '\n')); p++)
        lines++;
    for (size_t i = 0; i < ELEMENTS(chosen); i++)
        chosen[i] = i > 0 && below(2) ? chosen[0] : below(lines);
    buf_clear(out);
    for (size_t i = 0; i < lines; i++) {
        size_t n = (size_t)(strchr(text, '\n') + 1 - text);
        if (i == chosen[0] || i == chosen[1] || i == chosen[2])
            damage_line(out, text, n);
        else
            buf_append(out, text, n);
        text += n;
    }
}

/* The message is "FILE:LINE: ..."; the line is there and holds the key, unless it is no line of Key=Value at all. */
static void check_error(const struct fail *f, const char *file, const struct buf *text)
{
    char prefix[256], line[8192] = "";
    const char *p = text->data, *end = text->data + text->size;
    unsigned number = 0;

    assert_string_equal(f->code, "CONFIG");
    snprintf(prefix, sizeof(prefix), "%s/mutated/%s:", top, file);
    if (strncmp(f->message, prefix, strlen(prefix)) != 0 || sscanf(f->message + strlen(prefix), "%u: ", &number) != 1)
        fail_msg("no file and line in \"%s\"", f->message);
    for (unsigned i = 1; i < number && p; i++)
        p = memchr(p, '\n', (size_t)(end - p)) ? (const char *)memchr(p, '\n', (size_t)(end - p)) + 1 : NULL;
    assert_true(number >= 1 && p && (p < end || text->size == 0));
    const char *stop = memchr(p, '\n', (size_t)(end - p));
    size_t n = (size_t)((stop ? stop : end) - p);
    memcpy(line, p, MIN(n, sizeof(line) - 1));
    if (!f->field[0]) {
        if (!strstr(f->message, "expected [Section]") && !strstr(f->message, "expected Key=Value") &&
            !strstr(f->message, "is not text in UTF-8") && !strstr(f->message, "the most is 4095"))
            fail_msg("no key in \"%s\"", f->message);
        return;
    }
    assert_non_null(strstr(f->message, f->field));
    if (!strstr(f->message, "Path= is missing") && !strstr(line, f->field))
        fail_msg("\"%s\" is not of the line \"%s\"", f->message, line);
}

static void check_good(const struct manager *m)
{
    static const uid_t uids[] = {0, 1234, 77};

    for (size_t u = 0; u < ELEMENTS(uids); u++) {
        gid_t group = 0;
        struct limits l = m->limits;
        quotas_apply(&m->quotas, &(struct who){.uid = uids[u], .gids = &group, .n_gids = 1}, &l);
        for (size_t i = 0; i < n_limit_defs; i++) {
            uint64_t v = limit_get(&l, &limit_defs[i]);
            assert_true(v >= limit_defs[i].min && v <= limit_defs[i].max);
        }
    }
    LIST_FOR_EACH(l, &m->models)
        assert_int_equal(LIST_MEMBER(l, struct model, link)->checkpoint[0], '/');
}

static void damaged_files(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf text = BUF_INIT;
    size_t refused = 0, taken = 0;

    for (size_t i = 0; i < 1000; i++) {
        struct manager *m = NULL;
        struct fail f = FAIL_INIT;
        size_t which = below(ELEMENTS(files));
        char path[64];
        for (size_t j = 0; j < ELEMENTS(files); j++) {
            snprintf(path, sizeof(path), "mutated/%s", files[j]);
            write_text(path, good[j]);
        }
        if (i > 0) { /* the first one is whole */
            damage(good[which], &text);
            snprintf(path, sizeof(path), "mutated/%s", files[which]);
            write_file(path, text.data ? text.data : "", text.size);
        }
        int r = read_below("mutated", &m, &f);
        if (r < 0)
            check_error(&f, files[which], &text);
        else
            check_good(m);
        assert_true(i > 0 || r == 0);
        refused += r < 0;
        taken += r == 0;
        manager_free(m);
    }
    print_message("%zu refused, %zu taken\n", refused, taken);
    assert_true(refused > 300 && taken > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(parts_and_their_order, set_up, tear_down),
        cmocka_unit_test_setup_teardown(three_directories, set_up, tear_down),
        cmocka_unit_test_setup_teardown(rules_must_hold, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damaged_files, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
