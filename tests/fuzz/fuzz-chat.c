/* SPDX-License-Identifier: MIT */
/* Conversations as JSON: no input crashes, and the spans of a prompt are the prompt. */
#include <stdint.h>
#include <stdlib.h>

#include "engine/chat-json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_json_ json_t *input = NULL;
    _cleanup_chat_ struct chat c = {0};
    _cleanup_chat_prompt_ struct chat_prompt p = {0};
    struct fail f = FAIL_INIT;
    size_t sum = 0;

    if (pyjson_load((const char *)data, size, PYJSON_LOOSE, &input) < 0 || chat_from_json(input, &c, &f) < 0 ||
        chat_encode(&c, &p, &f) < 0)
        return 0;
    for (size_t i = 0; i < p.n_spans; i++) {
        if (p.span[i].text != p.text.data + sum)
            abort();
        sum += p.span[i].n;
    }
    if (sum != p.text.size)
        abort();
    return 0;
}
