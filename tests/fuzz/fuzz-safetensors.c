/* SPDX-License-Identifier: MIT */
/* A shard's header; the first two bytes say how many bytes of data there are. */
#include <stdint.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_safetensors_ struct safetensors s = SAFETENSORS_NULL;
    struct fail f = FAIL_INIT;

    if (size < 2)
        return 0;
    const uint64_t bytes = (uint64_t)data[0] | (uint64_t)data[1] << 8, start = 8 + size;
    int r = safetensors_parse((const char *)data + 2, size - 2, start, bytes, "fuzz", &s, &f);
    if ((r < 0) != (f.err != 0))
        __builtin_trap();
    uint64_t at = start; /* what is accepted covers the data exactly */
    for (size_t i = 0; r == 0 && i < s.n; at += s.tensors[i++].bytes)
        if (s.tensors[i].offset != at)
            __builtin_trap();
    if (r == 0 && at != start + bytes)
        __builtin_trap();
    return 0;
}
