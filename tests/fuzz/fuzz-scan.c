/* SPDX-License-Identifier: MIT */
/* Messages: what the scanner passes, protobuf-c must unpack, pack again, and find the same. First byte: which message. */
#include <stdint.h>
#include <stdlib.h>

#include "proto/dsv4.pb-c.h"
#include "proto/engine.pb-c.h"
#include "proto/scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &dsv4__v1__client_message__descriptor, &dsv4__v1__server_message__descriptor,
        &dsv4__engine__v1__front_message__descriptor, &dsv4__engine__v1__engine_message__descriptor};
    struct fail f = FAIL_INIT;
    uint64_t id;

    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *d = types[data[0] % 4];
    int r = scan_message(d, data + 1, size - 1, &f);
    if ((r < 0) != (f.err != 0))
        __builtin_trap();
    (void)scan_find_u64(data + 1, size - 1, 1, &id);
    if (r < 0)
        return 0;
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, size - 1, data + 1);
    if (!m)
        __builtin_trap(); /* the scanner promised */
    size_t n = protobuf_c_message_get_packed_size(m);
    uint8_t *again = malloc(n + 1);
    if (!again || protobuf_c_message_pack(m, again) != n || scan_message(d, again, n, NULL) < 0)
        __builtin_trap();
    free(again);
    protobuf_c_message_free_unpacked(m, NULL);
    return 0;
}
