/* SPDX-License-Identifier: MIT */
/* What an arena begins with: for which checkpoint, backend and layout its bytes are, so that it is never used for others. */
#pragma once

#include <stdint.h>

#define ARENA_MAGIC "DSV4ARN"
#define ARENA_VERSION 1u

/* In the host's byte order: an arena never leaves its machine. Then `entries` of struct arena_entry, then the parts. */
struct arena_header {
    char magic[8];
    uint32_t version;
    uint32_t entries;       /* one per tensor of the checkpoint, sorted by shard and offset */
    char backend[32];
    char layout_id[32];     /* of the backend; says the numerics too where they change the layout */
    uint8_t digest[32];     /* of the checkpoint */
    uint64_t arena_bytes;
    uint64_t parts_offset;  /* where the header and its table end */
};

struct arena_entry {
    uint64_t offset;        /* in the arena; 0: not loaded */
    uint32_t how;           /* enum part_how */
    uint32_t type;          /* enum weight_type */
};
