/* SPDX-License-Identifier: MIT */
/* dsv4.h in a C++ program: it compiles there, its cleanup helpers included, and the calls link. */
#include "client/dsv4.h"

#include <cstdio>
#include <cstring>

int main()
{
    struct dsv4 *c = nullptr;
    struct dsv4_generate *g = nullptr;
    int bad = 0;

    bad += dsv4_new(&c) != 0;
    bad += dsv4_generate_new(&g) != 0;
    if (bad == 0) {
        bad += dsv4_generate_set_temperature(g, 0.5f) != 0;
        bad += dsv4_connect(c, "/nonexistent") >= 0;
        bad += std::strcmp(dsv4_error_get_code(dsv4_get_error(c)), "UNAVAILABLE") != 0;
    }
    dsv4_generate_unrefp(&g);
    dsv4_unrefp(&c);
    std::printf("%s\n", bad ? "not ok" : "ok");
    return bad != 0;
}
