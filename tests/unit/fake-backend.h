/* SPDX-License-Identifier: MIT */
/* A backend that keeps weights as they are stored, in groups of rows that are odd on purpose; enough to load with. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/backend.h"
#include "base/size.h"

#define FAKE_ROW_GROUP 24
#define FAKE_SCALE_GROUP 3

static size_t fake_row_bytes(enum weight_type type, uint32_t cols, enum weight_part part)
{
    if (part == WEIGHT_SCALE)
        return type == WEIGHT_FP4 ? cols / INDEX_BLOCK : div_up(cols, FP8_BLOCK);
    return type == WEIGHT_FP4 ? cols / 2 : type == WEIGHT_FP8 ? cols : type == WEIGHT_BF16 ? 2ul * cols : 4ul * cols;
}

static uint32_t fake_scale_rows(enum weight_type type, uint32_t rows)
{
    return type == WEIGHT_FP4 ? rows : (uint32_t)div_up(rows, FP8_BLOCK);
}

static int fake_layout(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols,
                       struct weight_layout *ret)
{
    (void)b;
    *ret = (struct weight_layout){
        .data_bytes = rows * fake_row_bytes(type, cols, WEIGHT_DATA),
        .scale_bytes = fake_scale_rows(type, rows) * fake_row_bytes(type, cols, WEIGHT_SCALE),
        .row_group = FAKE_ROW_GROUP,
        .scale_group = FAKE_SCALE_GROUP,
    };
    return 0;
}

static unsigned fake_pack_usec; /* how slow it is */
static bool fake_broken; /* a run that breaks the rule of groups was seen */

static void fake_pack(struct backend *b, enum weight_type type, uint32_t rows, uint32_t cols, enum weight_part part,
                      uint32_t row, uint32_t n, const void *src, void *dst)
{
    const uint32_t all = part == WEIGHT_SCALE ? fake_scale_rows(type, rows) : rows;
    const uint32_t group = part == WEIGHT_SCALE ? FAKE_SCALE_GROUP : FAKE_ROW_GROUP;
    const size_t bytes = fake_row_bytes(type, cols, part);

    (void)b;
    if (row % group != 0 || row + n > all || (n % group != 0 && row + n != all))
        fake_broken = true;
    if (fake_pack_usec)
        usleep(fake_pack_usec);
    memcpy((char *)dst + row * bytes, src, n * bytes);
}

static int fake_map_arena(struct backend *b, void *host, size_t n, void **ret)
{
    (void)b, (void)n;
    *ret = host;
    return 0;
}

static void fake_info(struct backend *b, struct backend_info *ret)
{
    (void)b;
    *ret = (struct backend_info){.name = "fake", .layout_id = "stored-1"};
}

static const struct backend_ops fake_ops = {
    .name = "fake", .info = fake_info, .layout = fake_layout, .pack = fake_pack, .map_arena = fake_map_arena,
};
