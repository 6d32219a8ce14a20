/* SPDX-License-Identifier: MIT */
/* Hostile and odd messages against the scanner, and that what it passes protobuf-c unpacks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/buf.h"
#include "proto/dsv4.pb-c.h"
#include "proto/engine.pb-c.h"
#include "proto/scan.h"

#define BYTES(s) (s), sizeof(s) - 1

static struct fail f;

static int scan(const struct buf *b)
{
    f = FAIL_INIT;
    return scan_message(&dsv4__v1__client_message__descriptor, (const uint8_t *)b->data, b->size, &f);
}

static int scan_bytes(const char *data, size_t n)
{
    struct buf b = {.data = (char *)(uintptr_t)data, .size = n};
    return scan(&b);
}

static void put_varint(struct buf *b, uint64_t v)
{
    do {
        unsigned char c = (unsigned char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        assert_int_equal(buf_append(b, &c, 1), 0);
        v >>= 7;
    } while (v);
}

/* request_id 1 and field `number` of the oneof with these bytes in it. */
static void operation(struct buf *b, uint32_t number, const struct buf *inner)
{
    buf_clear(b);
    put_varint(b, 1 << 3);
    put_varint(b, 1);
    put_varint(b, number << 3 | 2);
    put_varint(b, inner->size);
    if (inner->size)
        assert_int_equal(buf_append(b, inner->data, inner->size), 0);
}

static void good_messages_pass(void **state)
{
    (void)state;
    Dsv4__V1__ClientMessage m = DSV4__V1__CLIENT_MESSAGE__INIT;
    Dsv4__V1__Generate g = DSV4__V1__GENERATE__INIT;
    Dsv4__V1__TokenIds ids = DSV4__V1__TOKEN_IDS__INIT;
    Dsv4__V1__Sampling sampling = DSV4__V1__SAMPLING__INIT;
    uint32_t numbers[] = {0, 1, 127, 128, 4294967295u};
    char a[] = "a", e[] = "b\xc3\xa9", *stop[] = {a, e};
    uint8_t data[512];

    m.request_id = UINT64_MAX;
    m.operation_case = DSV4__V1__CLIENT_MESSAGE__OPERATION_GENERATE;
    m.generate = &g;
    g.input_case = DSV4__V1__GENERATE__INPUT_TOKENS;
    g.tokens = &ids;
    ids.n_id = ELEMENTS(numbers);
    ids.id = numbers;
    g.sampling = &sampling;
    sampling.has_temperature = sampling.has_seed = true;
    sampling.temperature = 0.5f;
    sampling.seed = UINT64_MAX;
    g.n_stop = 2;
    g.stop = stop;
    size_t n = dsv4__v1__client_message__pack(&m, data);
    assert_int_equal(scan_bytes((char *)data, n), 0);

    Dsv4__V1__ClientMessage *u = dsv4__v1__client_message__unpack(NULL, n, data);
    assert_non_null(u);
    assert_int_equal(u->generate->tokens->n_id, 5);
    dsv4__v1__client_message__free_unpacked(u, NULL);

    /* cut anywhere, it is an error or a smaller message that unpacks; never anything else */
    for (size_t i = 0; i < n; i++) {
        int r = scan_bytes((char *)data, i);
        u = dsv4__v1__client_message__unpack(NULL, i, data);
        if (r == 0)
            assert_non_null(u);
        else
            assert_true(f.code[0]);
        if (u)
            dsv4__v1__client_message__free_unpacked(u, NULL);
    }
}

static void unknown_fields_are_skipped(void **state)
{
    (void)state;
    /* id 7; field 500 varint, 501 fixed32, 502 fixed64, 503 bytes; no operation known */
    assert_int_equal(scan_bytes(BYTES("\x08\x07\xa0\x1f\x05\xad\x1f"
                                      "1234\xb1\x1f"
                                      "12345678\xba\x1f\x03"
                                      "abc")), 0);
}

static void malformed_says_where(void **state)
{
    (void)state;
    static const struct {
        const char *data;
        size_t n;
        int at;
    } cases[] = {
        {BYTES("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"), 1}, /* 11-byte varint */
        {BYTES("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02"), 1},     /* 65 bits */
        {BYTES("\x08\x80"), 1},                                         /* cut off */
        {BYTES("\x08\x01\x1a\x05\x00"), 2},                             /* longer than what holds it */
        {BYTES("\x08\x01\x1b\x1c"), 2},                                 /* a group */
        {BYTES("\x08\x01\x1c"), 2},                                     /* the end of one */
        {BYTES("\x08\x01\x1e"), 2},                                     /* wire type 6 */
        {BYTES("\x08\x01\x00\x00"), 2},                                 /* field 0 */
        {BYTES("\x0d\x01\x00\x00\x00"), 0},                             /* request_id as fixed32 */
        {BYTES("\x08\x01\x18\x01"), 2},                                 /* a message as a number */
        {BYTES("\x0a\x01x"), 0},                                        /* a number as bytes */
        {BYTES("\x08\x01\x1a\x00\x1a\x00"), 4},                         /* ListModels twice */
        {BYTES("\x08\x01\x1a\x00\x32\x00"), 4},                         /* two operations */
        {BYTES("\x08\x01\xfd\x3f\x01\x02"), 2},                         /* unknown fixed32, cut off */
    };
    for (size_t i = 0; i < ELEMENTS(cases); i++) {
        assert_int_equal(scan_bytes(cases[i].data, cases[i].n), -EBADMSG);
        assert_string_equal(f.code, "MALFORMED");
        assert_true(f.has_value);
        assert_int_equal(f.value, cases[i].at);
    }
}

static void numbers_must_fit(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf in = BUF_INIT, b = BUF_INIT;
    static const uint64_t values[] = {1ull << 32, 1ull << 63, UINT64_MAX};

    for (size_t i = 0; i < ELEMENTS(values); i++) {
        buf_clear(&in);
        put_varint(&in, 8 << 3); /* max_tokens */
        put_varint(&in, values[i]);
        operation(&b, 9, &in);
        assert_int_equal(scan(&b), -ERANGE);
        assert_string_equal(f.code, "RANGE");
        assert_string_equal(f.field, "generate.max_tokens");
        assert_int_equal(f.limit, UINT32_MAX);
    }
    buf_clear(&in);
    put_varint(&in, 8 << 3);
    put_varint(&in, UINT32_MAX);
    operation(&b, 9, &in);
    assert_int_equal(scan(&b), 0);

    /* a token id above 32 bits in a packed list */
    _cleanup_buf_ struct buf ids = BUF_INIT, list = BUF_INIT;
    put_varint(&ids, 5);
    put_varint(&ids, 1ull << 40);
    put_varint(&list, 1 << 3 | 2);
    put_varint(&list, ids.size);
    buf_append(&list, ids.data, ids.size);
    buf_clear(&in);
    put_varint(&in, 5 << 3 | 2);
    put_varint(&in, list.size);
    buf_append(&in, list.data, list.size);
    operation(&b, 9, &in);
    assert_int_equal(scan(&b), -ERANGE);
    assert_string_equal(f.field, "generate.tokens.id[1]");
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf b = BUF_INIT;

    /* 9,000 messages in one another, by any field number, in the smallest form; built from the inside */
    for (uint32_t number = 1; number <= 40; number++) {
        if (number == 9)
            continue; /* generate.stop: a string, opaque */
        size_t at = 40000;
        _cleanup_free_ unsigned char *data = malloc(at);
        assert_non_null(data);
        size_t end = at;
        for (int i = 0; i < 9000; i++) {
            unsigned char head[8];
            _cleanup_buf_ struct buf h = BUF_INIT;
            put_varint(&h, number << 3 | 2);
            put_varint(&h, end - at);
            memcpy(head, h.data, h.size);
            if (at < h.size)
                break;
            at -= h.size;
            memcpy(data + at, head, h.size);
        }
        buf_clear(&b);
        if (number != 1)
            buf_append(&b, "\x08\x01", 2);
        buf_append(&b, data + at, end - at);
        assert_int_equal(scan(&b), -EBADMSG);
        assert_string_equal(f.code, "NESTING");
        assert_int_equal(f.limit, SCAN_DEPTH_MAX);
    }
}

static void items_are_counted(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf in = BUF_INIT, b = BUF_INIT;
    static const struct {
        uint32_t number;
        const char *field;
    } cases[] = {{9, "generate.stop[4096]"}, {77, "generate"}};

    for (size_t c = 0; c < ELEMENTS(cases); c++) {
        buf_clear(&in);
        for (int i = 0; i < 1000000; i++) {
            put_varint(&in, cases[c].number << 3 | 2);
            put_varint(&in, 0);
            if (i != 4095)
                continue;
            operation(&b, 9, &in);
            assert_int_equal(scan(&b), 0);
        }
        operation(&b, 9, &in);
        assert_int_equal(scan(&b), -EBADMSG);
        assert_string_equal(f.code, "TOO_MANY_ITEMS");
        assert_string_equal(f.field, cases[c].field);
        assert_int_equal(f.limit, SCAN_ITEMS_MAX);
    }
    /* few in each list, many in all: 20 messages of 4,000 tool calls each */
    _cleanup_buf_ struct buf message = BUF_INIT, chat = BUF_INIT;
    buf_append(&message, "\x08\x02", 2);
    for (int i = 0; i < 4000; i++)
        buf_append(&message, "\x22\x06\x0a\x00\x12\x00\x1a\x00", 8);
    for (int i = 0; i < 20; i++) {
        put_varint(&chat, 1 << 3 | 2);
        put_varint(&chat, message.size);
        buf_append(&chat, message.data, message.size);
    }
    buf_clear(&in);
    put_varint(&in, 4 << 3 | 2);
    put_varint(&in, chat.size);
    buf_append(&in, chat.data, chat.size);
    operation(&b, 9, &in);
    assert_int_equal(scan(&b), -EBADMSG);
    assert_string_equal(f.code, "TOO_MANY_ITEMS");
    assert_int_equal(f.limit, SCAN_TOTAL_MAX);
}

static void packed_numbers_are_counted(void **state)
{
    (void)state;
    _cleanup_buf_ struct buf ids = BUF_INIT, in = BUF_INIT, b = BUF_INIT;

    assert_int_equal(buf_append(&in, "\x0a\x01m", 3), 0);
    for (uint32_t i = 0; i < SCAN_NUMBERS_MAX; i++)
        put_varint(&ids, 1);
    for (int over = 0; over < 2; over++) {
        in.size = 3;
        put_varint(&in, 2 << 3 | 2);
        put_varint(&in, ids.size);
        buf_append(&in, ids.data, ids.size);
        if (over)
            buf_append(&in, "\x12\x01\x01", 3); /* one more, in a second piece */
        operation(&b, 13, &in);
        assert_int_equal(scan(&b), over ? -EBADMSG : 0);
    }
    assert_string_equal(f.code, "TOO_MANY_ITEMS");
    assert_int_equal(f.limit, SCAN_NUMBERS_MAX);
}

static void strings_are_utf8_without_nul(void **state)
{
    (void)state;
    /* Tokenize{model "m", text ...} */
    assert_int_equal(scan_bytes(BYTES("\x08\x01\x62\x07\x0a\x01m\x12\x02\xc3\xa9")), 0);
    assert_int_equal(scan_bytes(BYTES("\x08\x01\x62\x08\x0a\x01m\x12\x03"
                                      "a\xff"
                                      "b")), -EILSEQ);
    assert_string_equal(f.code, "BAD_UTF8");
    assert_string_equal(f.field, "tokenize.text");
    assert_int_equal(f.value, 1);
    assert_int_equal(scan_bytes(BYTES("\x08\x01\x62\x08\x0a\x01m\x12\x03"
                                      "ab\0")), -EILSEQ);
    assert_int_equal(f.value, 2);
    assert_non_null(strstr(f.message, "NUL"));
}

static void required_fields(void **state)
{
    (void)state;
    assert_int_equal(scan_bytes(BYTES("")), -EINVAL);
    assert_string_equal(f.code, "MISSING_FIELD");
    assert_string_equal(f.field, "request_id");
    assert_int_equal(scan_bytes(BYTES("\x08\x01\x22\x00")), -EINVAL); /* OpenSession without model */
    assert_string_equal(f.field, "open_session.model");
}

static void ids_of_broken_messages(void **state)
{
    (void)state;
    uint64_t id = 0;

    assert_int_equal(scan_find_u64((const uint8_t *)"\x08\x2a\x1b", 3, 1, &id), 0);
    assert_int_equal(id, 42);
    assert_int_equal(scan_find_u64((const uint8_t *)"\x12\x01x\x08\x2b", 5, 1, &id), 0);
    assert_int_equal(id, 43);
    assert_int_equal(scan_find_u64((const uint8_t *)"\x15\x31\x32\x33\x34\x08\x2c", 7, 1, &id), 0);
    assert_int_equal(id, 44);
    assert_int_equal(scan_find_u64((const uint8_t *)"\x12\x09x\x08\x2b", 5, 1, &id), -ENOENT);
    assert_int_equal(scan_find_u64((const uint8_t *)"\x15\x31", 2, 1, &id), -ENOENT);
    assert_int_equal(scan_find_u64((const uint8_t *)"\x08", 1, 1, &id), -ENOENT);
    assert_int_equal(scan_find_u64(NULL, 0, 1, &id), -ENOENT);
}

static void count_fields(const ProtobufCMessageDescriptor *d, int depth)
{
    assert_true(d->n_fields <= SCAN_FIELDS_MAX);
    assert_true(depth <= SCAN_DEPTH_MAX); /* also ends, since the protocol has no recursion */
    for (unsigned i = 0; i < d->n_fields; i++)
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            count_fields(d->fields[i].descriptor, depth + 1);
}

static void every_message_type_fits_the_scanner(void **state)
{
    (void)state;
    count_fields(&dsv4__v1__client_message__descriptor, 1);
    count_fields(&dsv4__v1__server_message__descriptor, 1);
    count_fields(&dsv4__engine__v1__front_message__descriptor, 1);
    count_fields(&dsv4__engine__v1__engine_message__descriptor, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_messages_pass),
        cmocka_unit_test(unknown_fields_are_skipped),
        cmocka_unit_test(malformed_says_where),
        cmocka_unit_test(numbers_must_fit),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(items_are_counted),
        cmocka_unit_test(packed_numbers_are_counted),
        cmocka_unit_test(strings_are_utf8_without_nul),
        cmocka_unit_test(required_fields),
        cmocka_unit_test(ids_of_broken_messages),
        cmocka_unit_test(every_message_type_fits_the_scanner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
