/* SPDX-License-Identifier: MIT */
/*
 * The main() of a fuzz target in a build without --enable-fuzzing: runs it on its seeds (tests/fuzz/corpus/NAME/), cut
 * short and changed in a fixed pseudo-random way, as a plain test. With libFuzzer the library brings its own main().
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

#define CHANGES 2000
#define SEED_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t random_state = 1;

static uint32_t random_below(size_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

/* A copy of its own size, so that a sanitizer sees every read past the end. */
static void run(const char *data, size_t n)
{
    _cleanup_free_ uint8_t *copy = malloc(n ? n : 1);
    if (!copy)
        abort();
    memcpy(copy, data, n);
    (void)LLVMFuzzerTestOneInput(copy, n);
}

static void run_changed(char *data, size_t n)
{
    static const char telling[] = "\"{}[]:,0-9e\\ \xff"; /* the NUL too */

    run(data, n);
    for (size_t cut = 0; cut < n; cut += n / 100 + 1)
        run(data, cut);
    for (int i = 0; i < CHANGES && n > 0; i++) {
        const size_t at = random_below(n);
        const char was = data[at];
        if (i % 2)
            data[at] = (char)(was ^ (1 << random_below(8)));
        else
            data[at] = telling[random_below(sizeof(telling))];
        run(data, n);
        data[at] = was;
    }
}

int main(int argc, char **argv)
{
    const char *top = getenv("top_srcdir"), *name = strrchr(argv[0], '/');
    char path[4096];
    size_t seeds = 0;

    name = name ? name + 1 : argv[0];
    name = strncmp(name, "lt-", 3) == 0 ? name + 3 : name; /* libtool's wrapper */
    snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/%s", top ? top : ".", name);
    DIR *dir = opendir(argc > 1 ? argv[1] : path);
    if (!dir) {
        fprintf(stderr, "%s: no seeds in %s\n", name, path);
        return 99;
    }
    for (struct dirent *e; (e = readdir(dir));) {
        _cleanup_free_ char *data = NULL;
        size_t n;
        if (e->d_name[0] == '.' || fd_read_file(dirfd(dir), e->d_name, SEED_BYTES_MAX, &data, &n, NULL) < 0)
            continue;
        run_changed(data, n);
        seeds++;
    }
    closedir(dir);
    printf("%s: %zu seeds\n", name, seeds);
    return seeds > 0 ? 0 : 99;
}
