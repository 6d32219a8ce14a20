/* SPDX-License-Identifier: MIT */
/* See scan.h. */
#include "proto/scan.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

#define VARINT_BYTES_MAX 10

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_LEN = 2, WIRE_GROUP = 3, WIRE_GROUP_END = 4, WIRE_32 = 5 };

struct level {
    const ProtobufCMessageDescriptor *d;
    const uint8_t *end;
    const ProtobufCFieldDescriptor *field; /* the one being looked at */
    uint32_t counts[SCAN_FIELDS_MAX];      /* of each declared field */
    uint32_t unknown;
};

struct scan {
    const uint8_t *start, *p;
    struct level levels[SCAN_DEPTH_MAX];
    uint32_t depth; /* levels in use */
    uint32_t total;
    struct fail *f;
};

static struct level *top(struct scan *s)
{
    return &s->levels[s->depth - 1];
}

/* ---- errors: the path of the field, the offset */

static void set_path(struct scan *s)
{
    char path[96] = "";
    size_t at = 0;

    for (uint32_t i = 0; i < s->depth && s->levels[i].field; i++) {
        const struct level *l = &s->levels[i];
        int k = snprintf(path + at, sizeof(path) - at, "%s%s", at ? "." : "", l->field->name);
        at = MIN(at + (size_t)k, sizeof(path) - 1);
        if (l->field->label != PROTOBUF_C_LABEL_REPEATED)
            continue;
        uint32_t count = l->counts[l->field - l->d->fields];
        k = snprintf(path + at, sizeof(path) - at, "[%u]", count ? count - 1 : 0);
        at = MIN(at + (size_t)k, sizeof(path) - 1);
    }
    fail_field(s->f, path);
}

static int malformed(struct scan *s, const uint8_t *at, const char *what)
{
    size_t offset = (size_t)(at - s->start);

    fail_set(s->f, EBADMSG, "MALFORMED", "the message is not valid protobuf at byte %zu: %s", offset, what);
    set_path(s);
    if (s->f) {
        s->f->has_value = true;
        s->f->value = (int64_t)offset;
    }
    return -EBADMSG;
}

static int too_many(struct scan *s, uint32_t limit, const char *what)
{
    fail_set(s->f, EBADMSG, "TOO_MANY_ITEMS", "more than %u %s", limit, what);
    set_path(s);
    fail_limit(s->f, limit, (int64_t)limit + 1);
    return -EBADMSG;
}

static int too_deep(struct scan *s)
{
    fail_set(s->f, EBADMSG, "NESTING", "messages are nested more than %d deep", SCAN_DEPTH_MAX);
    fail_limit(s->f, SCAN_DEPTH_MAX, SCAN_DEPTH_MAX + 1);
    return -EBADMSG;
}

/* ---- varints */

/* Length of the varint at p, or 0 if it is cut off, too long or more than 64 bits. */
static size_t varint(const uint8_t *p, const uint8_t *end, uint64_t *ret)
{
    uint64_t v = 0;

    for (size_t i = 0; i < VARINT_BYTES_MAX && p + i < end; i++) {
        if (i == VARINT_BYTES_MAX - 1 && p[i] > 1)
            return 0;
        v |= (uint64_t)(p[i] & 0x7f) << (7 * i);
        if (p[i] & 0x80)
            continue;
        *ret = v;
        return i + 1;
    }
    return 0;
}

static int next_varint(struct scan *s, const uint8_t *end, uint64_t *ret)
{
    size_t k = varint(s->p, end, ret);
    if (k == 0)
        return malformed(s, s->p, "a varint is cut off or longer than 10 bytes");
    s->p += k;
    return 0;
}

/* Does v fit a field of this type? protobuf-c would cut it silently. */
static int check_number(struct scan *s, ProtobufCType type, uint64_t v)
{
    bool fits = true;

    if (type == PROTOBUF_C_TYPE_UINT32 || type == PROTOBUF_C_TYPE_SINT32)
        fits = v <= UINT32_MAX;
    else if (type == PROTOBUF_C_TYPE_INT32 || type == PROTOBUF_C_TYPE_ENUM)
        fits = (int64_t)v >= INT32_MIN && (int64_t)v <= INT32_MAX;
    if (fits)
        return 0;
    int64_t limit = type == PROTOBUF_C_TYPE_UINT32 ? (int64_t)UINT32_MAX : INT32_MAX;
    fail_set(s->f, ERANGE, "RANGE", "%s is %s%llu; the largest value is %lld", top(s)->field->name,
             (int64_t)v < 0 ? "negative or " : "", (unsigned long long)v, (long long)limit);
    set_path(s);
    fail_limit(s->f, limit, v > INT64_MAX ? INT64_MAX : (int64_t)v);
    return -ERANGE;
}

/* ---- fields */

static enum wire wire_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return WIRE_32;
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return WIRE_64;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return WIRE_LEN;
    default:
        return WIRE_VARINT;
    }
}

/* Do n bytes nest deeper than allowed? Only chains that can be nothing else: a field that fills all, which again does. */
static bool nests_too_deep(const uint8_t *p, const uint8_t *end, uint32_t depth)
{
    for (; depth <= SCAN_DEPTH_MAX; depth++) {
        uint64_t tag, n;
        size_t k = varint(p, end, &tag);
        if (k == 0 || (tag & 7) != WIRE_LEN || tag >> 3 == 0)
            return false;
        size_t m = varint(p + k, end, &n);
        if (m == 0 || n != (uint64_t)(end - (p + k + m)))
            return false;
        p += k + m;
    }
    return true;
}

static int count_item(struct scan *s, const ProtobufCFieldDescriptor *fd, const uint8_t *at)
{
    struct level *l = top(s);
    uint32_t *count = &l->counts[fd - l->d->fields];
    uint32_t limit = wire_of(fd->type) == WIRE_LEN ? SCAN_ITEMS_MAX : SCAN_NUMBERS_MAX;

    if (++*count > limit)
        return too_many(s, limit, "items in one list");
    if (fd->label == PROTOBUF_C_LABEL_REPEATED)
        return 0;
    if (fd->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t members = 0;
        for (unsigned i = 0; i < l->d->n_fields; i++)
            if (l->d->fields[i].quantifier_offset == fd->quantifier_offset)
                members += l->counts[i];
        if (members > 1)
            return malformed(s, at, "more than one of a group of fields that exclude each other");
    }
    if (*count > 1 && fd->type == PROTOBUF_C_TYPE_MESSAGE)
        return malformed(s, at, "a message that is there once at most comes again");
    return 0;
}

/* n bytes of packed numbers at s->p. */
static int scan_packed(struct scan *s, const ProtobufCFieldDescriptor *fd, size_t n)
{
    struct level *l = top(s);
    uint32_t *count = &l->counts[fd - l->d->fields];
    const uint8_t *end = s->p + n;
    enum wire wire = wire_of(fd->type);

    while (s->p < end) {
        uint64_t v;
        if (++*count > SCAN_NUMBERS_MAX)
            return too_many(s, SCAN_NUMBERS_MAX, "numbers in one list");
        if (wire != WIRE_VARINT) {
            size_t width = wire == WIRE_32 ? 4 : 8;
            if ((size_t)(end - s->p) < width)
                return malformed(s, s->p, "a list of numbers is cut off");
            s->p += width;
            continue;
        }
        int r = next_varint(s, end, &v);
        if (r < 0 || (r = check_number(s, fd->type, v)) < 0)
            return r;
    }
    return 0;
}

static int check_string(struct scan *s, size_t n)
{
    const char *text = (const char *)s->p;
    const char *nul = memchr(text, 0, n);
    ssize_t bad = utf8_invalid_at(text, n);

    if (bad < 0 && !nul)
        return 0;
    if (bad < 0 || (nul && nul - text < bad))
        bad = nul - text;
    fail_set(s->f, EILSEQ, "BAD_UTF8", "%s %s at byte %zd", top(s)->field->name,
             (text[bad] == 0) ? "contains a NUL, which only a memfd can carry," : "is not valid UTF-8", bad);
    set_path(s);
    if (s->f) {
        s->f->has_value = true;
        s->f->value = bad;
    }
    return -EILSEQ;
}

static int enter(struct scan *s, const ProtobufCMessageDescriptor *d, size_t n)
{
    if (s->depth == SCAN_DEPTH_MAX)
        return too_deep(s);
    if (d->n_fields > SCAN_FIELDS_MAX)
        return fail_set(s->f, EINVAL, "INTERNAL", "%s declares %u fields; the scanner knows %d", d->name, d->n_fields,
                        SCAN_FIELDS_MAX);
    s->levels[s->depth++] = (struct level){.d = d, .end = s->p + n};
    return 0;
}

/* The end of the innermost message: is everything there that must be? */
static int leave(struct scan *s)
{
    struct level *l = top(s);

    for (unsigned i = 0; i < l->d->n_fields; i++) {
        if (l->d->fields[i].label != PROTOBUF_C_LABEL_REQUIRED || l->counts[i] > 0)
            continue;
        l->field = &l->d->fields[i];
        fail_set(s->f, EINVAL, "MISSING_FIELD", "%s needs %s", l->d->short_name, l->field->name);
        set_path(s);
        return -EINVAL;
    }
    s->depth--;
    return 0;
}

/* A length-delimited field: its length is next. fd is NULL if it is unknown. */
static int scan_len(struct scan *s, const ProtobufCFieldDescriptor *fd, const uint8_t *at)
{
    uint64_t n;
    int r = next_varint(s, top(s)->end, &n);

    if (r < 0)
        return r;
    if (n > (uint64_t)(top(s)->end - s->p))
        return malformed(s, at, "a field is longer than what holds it");
    bool packed = fd && fd->label == PROTOBUF_C_LABEL_REPEATED && wire_of(fd->type) != WIRE_LEN;
    if (!fd || (wire_of(fd->type) != WIRE_LEN && !packed)) {
        if (nests_too_deep(s->p, s->p + n, s->depth + 1))
            return too_deep(s);
        if (fd)
            return malformed(s, at, "a number is written as bytes");
    }
    if (packed)
        return scan_packed(s, fd, n);
    if (fd && (r = count_item(s, fd, at)) < 0)
        return r;
    if (fd && fd->type == PROTOBUF_C_TYPE_MESSAGE)
        return enter(s, fd->descriptor, n);
    if (fd && fd->type == PROTOBUF_C_TYPE_STRING && (r = check_string(s, n)) < 0)
        return r;
    s->p += n;
    return 0;
}

static int scan_number(struct scan *s, const ProtobufCFieldDescriptor *fd, enum wire wire, const uint8_t *at)
{
    uint64_t v = 0;
    int r;

    if (fd && wire_of(fd->type) != wire)
        return malformed(s, at, "the field's wire type does not fit");
    if (wire == WIRE_VARINT) {
        r = next_varint(s, top(s)->end, &v);
        if (r < 0)
            return r;
    } else {
        size_t width = wire == WIRE_32 ? 4 : 8;
        if ((size_t)(top(s)->end - s->p) < width)
            return malformed(s, at, "the last field is cut off");
        s->p += width;
    }
    if (!fd)
        return 0;
    r = count_item(s, fd, at);
    return r < 0 || wire != WIRE_VARINT ? r : check_number(s, fd->type, v);
}

static int scan_field(struct scan *s)
{
    struct level *l = top(s);
    const uint8_t *at = s->p;
    uint64_t tag;

    l->field = NULL;
    int r = next_varint(s, l->end, &tag);
    if (r < 0)
        return r;
    if (tag > UINT32_MAX || tag >> 3 == 0)
        return malformed(s, at, "there is no such field number");
    if (++s->total > SCAN_TOTAL_MAX)
        return too_many(s, SCAN_TOTAL_MAX, "fields in one message and all in it");
    const ProtobufCFieldDescriptor *fd = protobuf_c_message_descriptor_get_field(l->d, (unsigned)(tag >> 3));
    l->field = fd;
    if (!fd && ++l->unknown > SCAN_ITEMS_MAX)
        return too_many(s, SCAN_ITEMS_MAX, "unknown fields in one message");
    switch (tag & 7) {
    case WIRE_LEN:
        return scan_len(s, fd, at);
    case WIRE_VARINT:
    case WIRE_64:
    case WIRE_32:
        return scan_number(s, fd, (enum wire)(tag & 7), at);
    default:
        return malformed(s, at, "groups are not part of this protocol");
    }
}

int scan_message(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t n, struct fail *f)
{
    struct scan s;

    s.start = s.p = data;
    s.depth = s.total = 0;
    s.f = f;
    int r = enter(&s, d, n);
    while (r == 0 && s.depth > 0)
        r = s.p < top(&s)->end ? scan_field(&s) : leave(&s);
    return r;
}

int scan_find_u64(const uint8_t *data, size_t n, uint32_t number, uint64_t *ret)
{
    if (n == 0) /* data may be NULL then */
        return -ENOENT;
    const uint8_t *p = data, *end = data + n;

    while (p < end) {
        uint64_t tag, v;
        size_t k = varint(p, end, &tag);
        if (k == 0)
            return -ENOENT;
        p += k;
        if ((tag & 7) == WIRE_32 || (tag & 7) == WIRE_64) {
            v = (tag & 7) == WIRE_32 ? 4 : 8;
        } else {
            k = varint(p, end, &v);
            if (k == 0 || (tag & 7) > WIRE_LEN)
                return -ENOENT;
            p += k;
        }
        if ((tag & 7) == WIRE_VARINT) {
            if (tag >> 3 == number) {
                *ret = v;
                return 0;
            }
            continue;
        }
        if (v > (uint64_t)(end - p))
            return -ENOENT;
        p += v;
    }
    return -ENOENT;
}
