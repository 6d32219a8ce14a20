/* SPDX-License-Identifier: MIT */
/* Command lines: one table of options per verb feeds getopt_long and --help, so that the two agree. */
#include "client/tool.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"

#define OPTIONS_MAX 40
#define HELP_COLUMN 28

static void print_option(const struct option_spec *o)
{
    char left[80];

    snprintf(left, sizeof(left), "  %c%c%s --%s%s%s", o->value < 256 ? '-' : ' ', o->value < 256 ? o->value : ' ',
             o->value < 256 ? "," : " ", o->name, o->argument ? "=" : "", o->argument ? o->argument : "");
    if (strlen(left) < HELP_COLUMN)
        printf("%-*s%s\n", HELP_COLUMN, left, o->help);
    else
        printf("%s\n%*s%s\n", left, HELP_COLUMN, "", o->help);
}

static void help_of(const struct verb *v)
{
    printf("Usage: %s [OPTION...]%s%s\n\n%s\n\n", tool_name, v->arguments[0] ? " " : "", v->arguments, v->summary);
    for (const struct option_spec *o = v->options; o->name; o++)
        print_option(o);
}

/* getopt's two tables from ours. The leading ":" of the short ones leaves the messages to us. */
static void make_tables(const struct option_spec *options, struct option *longs, char *shorts)
{
    size_t n = 0;

    *shorts++ = ':';
    for (const struct option_spec *o = options; o->name && n < OPTIONS_MAX; o++) {
        longs[n++] = (struct option){.name = o->name, .has_arg = o->argument ? required_argument : no_argument,
                                     .val = o->value};
        if (o->value < 256) {
            *shorts++ = (char)o->value;
            if (o->argument)
                *shorts++ = ':';
        }
    }
    longs[n] = (struct option){0};
    *shorts = '\0';
}

int options_next(const struct verb *v, int argc, char **argv)
{
    struct option longs[OPTIONS_MAX + 1];
    char shorts[2 * OPTIONS_MAX + 2];

    make_tables(v->options, longs, shorts);
    int o = getopt_long(argc, argv, shorts, longs, NULL);
    if (o == 'h') {
        help_of(v);
        exit(EXIT_OK);
    }
    if (o == OPTION_VERSION) {
        printf("dsv4d %s\n", PACKAGE_VERSION);
        exit(EXIT_OK);
    }
    if (o == '?' || o == ':')
        exit(tool_fail(EXIT_USAGE, "%s: %s; --help shows the options", argv[optind - 1],
                       o == ':' ? "its argument is missing" : "there is no such option, or it takes no argument"));
    return o;
}

void options_help_verbs(const char *program, const char *summary, const struct verb *const *verbs,
                        const struct option_spec *global)
{
    char left[80];

    printf("Usage: %s COMMAND [OPTION...]\n\n%s\n\nCommands:\n", program, summary);
    for (; *verbs; verbs++) {
        snprintf(left, sizeof(left), "  %s %s", (*verbs)->name, (*verbs)->arguments);
        printf("%-*s%s\n", HELP_COLUMN, left, (*verbs)->summary);
    }
    printf("\nOptions (each command has its own: %s COMMAND --help):\n", program);
    for (const struct option_spec *o = global; o->name; o++)
        print_option(o);
}

static const struct verb *find_verb(const struct verb *const *verbs, const char *name)
{
    for (; *verbs; verbs++)
        if (strcmp((*verbs)->name, name) == 0)
            return *verbs;
    return NULL;
}

int options_main(const char *program, const char *summary, const struct verb *const *verbs,
                 const char *default_verb, const struct option_spec *global, int argc, char **argv)
{
    static char name[64];
    bool bare = argc < 2 || argv[1][0] == '-';

    tool_name = program;
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        options_help_verbs(program, summary, verbs, global);
        return EXIT_OK;
    }
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        printf("dsv4d %s\n", PACKAGE_VERSION);
        return EXIT_OK;
    }
    if (bare && !default_verb)
        return tool_fail(EXIT_USAGE, "a command is missing; --help lists them");
    const struct verb *v = find_verb(verbs, bare ? default_verb : argv[1]);
    if (!v)
        return tool_fail(EXIT_USAGE, "%s: there is no such command; --help lists them", argv[1]);
    snprintf(name, sizeof(name), "%s %s", program, v->name);
    tool_name = name;
    return bare ? v->run(v, argc, argv) : v->run(v, argc - 1, argv + 1);
}

uint64_t option_u64(const char *name, const char *s, uint64_t min, uint64_t max)
{
    uint64_t v;

    if (parse_u64(s, min, max, &v) < 0)
        exit(tool_fail(EXIT_USAGE, "--%s=%s: a whole number from %llu to %llu is needed", name, s,
                       (unsigned long long)min, (unsigned long long)max));
    return v;
}

double option_double(const char *name, const char *s, double min, double max)
{
    double v;

    if (parse_double(s, min, max, &v) < 0)
        exit(tool_fail(EXIT_USAGE, "--%s=%s: a number from %g to %g is needed", name, s, min, max));
    return v;
}
