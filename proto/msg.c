/* SPDX-License-Identifier: MIT
 * Encodes, decodes and prints control messages from the one table in messages.def. Owns nothing; any thread. The decoder reads
 * bytes from another process: nesting is checked before msgpack-c parses them, every count, length and range after. */
#include "proto/msg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include <msgpack.h>

#include "proto/err.h"
#include "proto/util.h"

enum field_kind { FIELD_U32, FIELD_U64, FIELD_I32, FIELD_F32, FIELD_STR, FIELD_BIN };

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset, len_offset, max; /* max: bytes of the array */
    uint64_t lo, hi;
    const char *doc;
    bool secret; /* may be missing, and is not shown */
};

#define MSG_BEGIN(m, number, since, sender, n_fds, doc) static const struct field fields_##m[] = {
#define AT(m, f) .name = #f, .offset = offsetof(struct msg_##m, f)
#define MSG_U32(m, f, min, max_, text) {AT(m, f), .kind = FIELD_U32, .lo = min, .hi = max_, .doc = text},
#define MSG_U64(m, f, text) {AT(m, f), .kind = FIELD_U64, .hi = UINT64_MAX, .doc = text},
#define MSG_I32(m, f, text) {AT(m, f), .kind = FIELD_I32, .doc = text},
#define MSG_F32(m, f, text) {AT(m, f), .kind = FIELD_F32, .doc = text},
#define MSG_STR(m, f, max_, text) {AT(m, f), .kind = FIELD_STR, .max = max_, .doc = text},
#define MSG_SECRET(m, f, max_, text) {AT(m, f), .kind = FIELD_STR, .max = max_, .doc = text, .secret = true},
#define MSG_BIN(m, f, max_, text) \
    {AT(m, f), .kind = FIELD_BIN, .len_offset = offsetof(struct msg_##m, f##_len), .max = max_, .doc = text},
#define MSG_END(m)   \
    {                \
        .name = NULL \
    }                \
    }                \
    ;
#include "proto/messages.def"
#undef MSG_BEGIN
#undef MSG_U32
#undef MSG_U64
#undef MSG_I32
#undef MSG_F32
#undef MSG_STR
#undef MSG_BIN
#undef MSG_END

static const struct type {
    const char *name, *sender, *doc;
    enum msg_type number;
    int since, n_fds;
    const struct field *fields;
} types[] = {
#define MSG_BEGIN(name_, number_, since_, sender_, n_fds_, doc_) \
    {.name = #name_,                                             \
     .sender = #sender_,                                         \
     .doc = doc_,                                                \
     .number = number_,                                          \
     .since = since_,                                            \
     .n_fds = n_fds_,                                            \
     .fields = fields_##name_},
#define MSG_U32(name, field, min, max, doc)
#define MSG_U64(name, field, doc)
#define MSG_I32(name, field, doc)
#define MSG_F32(name, field, doc)
#define MSG_STR(name, field, max, doc)
#define MSG_BIN(name, field, max, doc)
#define MSG_END(name)
#include "proto/messages.def"
#undef MSG_BEGIN
#undef MSG_U32
#undef MSG_U64
#undef MSG_I32
#undef MSG_F32
#undef MSG_STR
#undef MSG_BIN
#undef MSG_END
};

static const struct type *find_type(uint64_t number)
{
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if ((uint64_t)types[i].number == number)
            return &types[i];
    }
    return NULL;
}

const char *msg_role_name(enum msg_role r)
{
    static const char *const names[MSG_ROLES] = {"loader", "npu_worker", "gpu_worker"};
    return (unsigned)r < MSG_ROLES ? names[r] : "?";
}

const char *msg_name(enum msg_type t)
{
    const struct type *ty = find_type(t);
    return ty ? ty->name : NULL;
}

int msg_n_fds(enum msg_type t)
{
    const struct type *ty = find_type(t);
    return ty ? ty->n_fds : -1;
}

/* All members of the union start where the union does. */
static uint8_t *base(struct msg *m)
{
    return (uint8_t *)&m->hello;
}

static void pack_name(msgpack_packer *pk, const char *s)
{
    msgpack_pack_str(pk, strlen(s));
    msgpack_pack_str_body(pk, s, strlen(s));
}

static int pack_field(msgpack_packer *pk, const struct field *f, const uint8_t *b, struct err *err)
{
    const void *p = b + f->offset;
    pack_name(pk, f->name);
    switch (f->kind) {
    case FIELD_U32:
        msgpack_pack_uint32(pk, *(const uint32_t *)p);
        break;
    case FIELD_U64:
        msgpack_pack_uint64(pk, *(const uint64_t *)p);
        break;
    case FIELD_I32:
        msgpack_pack_int32(pk, *(const int32_t *)p);
        break;
    case FIELD_F32:
        msgpack_pack_float(pk, *(const float *)p);
        break;
    case FIELD_STR: {
        size_t n = strnlen(p, f->max);
        if (n == f->max)
            return err_set(err, -EINVAL, "field '%s' is not terminated within %zu bytes", f->name, f->max);
        msgpack_pack_str(pk, n);
        msgpack_pack_str_body(pk, p, n);
        break;
    }
    case FIELD_BIN:
    default: {
        uint32_t n = *(const uint32_t *)(const void *)(b + f->len_offset);
        if (n > f->max)
            return err_set(err, -EINVAL, "field '%s' has %u bytes; at most %zu", f->name, n, f->max);
        msgpack_pack_bin(pk, n);
        msgpack_pack_bin_body(pk, p, n);
        break;
    }
    }
    return 0;
}

int msg_encode(const struct msg *m, uint8_t **ret, size_t *ret_len, struct err *err)
{
    const struct type *ty = find_type(m->type);
    if (!ty)
        return err_set(err, -EINVAL, "message type %d does not exist", (int)m->type);
    size_t n = 1;
    for (const struct field *f = ty->fields; f->name; f++)
        n++;
    msgpack_sbuffer buf;
    msgpack_packer pk;
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&pk, &buf, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, n);
    pack_name(&pk, "t");
    msgpack_pack_uint32(&pk, (uint32_t)m->type);
    int r = 0;
    for (const struct field *f = ty->fields; r == 0 && f->name; f++)
        r = pack_field(&pk, f, (const uint8_t *)&m->hello, err);
    if (r == 0 && buf.size > MSG_MAX_FRAME)
        r = err_set(err, -E2BIG, "message '%s' has %zu bytes; at most %u", ty->name, buf.size, MSG_MAX_FRAME);
    if (r < 0) {
        msgpack_sbuffer_destroy(&buf);
        return err_wrap(err, r, "message '%s'", ty->name);
    }
    *ret_len = buf.size;
    *ret = (uint8_t *)msgpack_sbuffer_release(&buf);
    return *ret ? 0 : err_set(err, -ENOMEM, "message '%s': out of memory", ty->name);
}

static uint64_t be(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

/* Size of the value's head and what follows it (msgpack specification, "Formats"): body bytes or child values. */
static bool head(const uint8_t *p, size_t left, size_t *ret_head, uint64_t *ret_body, uint64_t *ret_children)
{
    static const uint8_t fixed_body[32] = {
        /* c0.. */ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17, 0, 0, 0, 0, 0, 0, 0};
    uint8_t b = p[0];
    unsigned len = 0;
    *ret_head = 1;
    *ret_body = *ret_children = 0;
    if (b <= 0x7f || b >= 0xe0 || b == 0xc0 || b == 0xc2 || b == 0xc3)
        return true;
    if (b <= 0x8f) {
        *ret_children = 2u * (b & 15);
    } else if (b <= 0x9f) {
        *ret_children = b & 15;
    } else if (b <= 0xbf) {
        *ret_body = b & 31;
    } else if (b == 0xc1) {
        return false;
    } else if ((b >= 0xc4 && b <= 0xc9) || b >= 0xd9) {
        static const uint8_t len_of[] = {1, 2, 4, 1, 2, 4};
        len = b <= 0xc9 ? len_of[b - 0xc4] : b <= 0xdb ? 1u << (b - 0xd9) : 2u << ((b - 0xdc) & 1);
        if (left < 1 + len)
            return false;
        uint64_t n = be(p + 1, len);
        *ret_head = 1 + len;
        if (b >= 0xde)
            *ret_children = 2 * n;
        else if (b >= 0xdc)
            *ret_children = n;
        else
            *ret_body = n + (b >= 0xc7 && b <= 0xc9);
    } else {
        *ret_body = fixed_body[b - 0xc0];
    }
    return true;
}

/* Walk without recursion: everything inside the frame, not deeper than MSG_MAX_DEPTH, one value, nothing after it. */
static int check_shape(const uint8_t *p, size_t n, struct err *err)
{
    uint64_t open[MSG_MAX_DEPTH + 1] = {1};
    int depth = 0;
    size_t at = 0;
    while (depth >= 0) {
        if (open[depth] == 0) {
            depth--;
            continue;
        }
        open[depth]--;
        size_t h;
        uint64_t body, children;
        if (at >= n || !head(p + at, n - at, &h, &body, &children) || body > n - at - h || children > n - at)
            return err_set(err, -EPROTO, "message: broken or cut off at byte %zu of %zu", at, n);
        at += h + (size_t)body;
        if (children) {
            if (++depth > MSG_MAX_DEPTH)
                return err_set(err, -EPROTO, "message: nested deeper than %d at byte %zu", MSG_MAX_DEPTH, at);
            open[depth] = children;
        }
    }
    return at == n ? 0 : err_set(err, -EPROTO, "message: %zu bytes after its end", n - at);
}

static int bad_field(const struct field *f, const char *found, const char *expected, struct err *err)
{
    return err_set(err, -EPROTO, "field '%s' is %s; expected %s", f->name, found, expected);
}

static int unpack_integer(const struct field *f, const msgpack_object *o, uint8_t *b, struct err *err)
{
    char found[64], expected[96];
    uint64_t lo = f->lo, hi = f->hi;
    snprintf(expected, sizeof(expected), "an integer from %" PRIu64 " to %" PRIu64, lo, hi);
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return bad_field(f, "not a positive integer", expected, err);
    if (o->via.u64 < lo || o->via.u64 > hi) {
        snprintf(found, sizeof(found), "%" PRIu64, o->via.u64);
        return bad_field(f, found, expected, err);
    }
    if (f->kind == FIELD_U32)
        *(uint32_t *)(void *)(b + f->offset) = (uint32_t)o->via.u64;
    else
        *(uint64_t *)(void *)(b + f->offset) = o->via.u64;
    return 0;
}

static int unpack_bytes(const struct field *f, const msgpack_object *o, uint8_t *b, struct err *err)
{
    bool str = f->kind == FIELD_STR;
    char found[64];
    if (o->type != (str ? MSGPACK_OBJECT_STR : MSGPACK_OBJECT_BIN))
        return bad_field(f, "of another type", str ? "a string" : "binary", err);
    size_t n = str ? o->via.str.size : o->via.bin.size;
    const char *p = str ? o->via.str.ptr : o->via.bin.ptr;
    if (n > f->max - (str ? 1 : 0)) {
        snprintf(found, sizeof(found), "%zu bytes long", n);
        return bad_field(f, found, "a shorter one", err);
    }
    if (str && memchr(p, 0, n))
        return bad_field(f, "a string with a NUL byte", "text", err);
    memcpy(b + f->offset, p, n);
    if (!str)
        *(uint32_t *)(void *)(b + f->len_offset) = (uint32_t)n;
    return 0;
}

static int unpack_field(const struct field *f, const msgpack_object *o, uint8_t *b, struct err *err)
{
    switch (f->kind) {
    case FIELD_U32:
    case FIELD_U64:
        return unpack_integer(f, o, b, err);
    case FIELD_I32: {
        bool pos = o->type == MSGPACK_OBJECT_POSITIVE_INTEGER, neg = o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER;
        if ((!pos || o->via.u64 > INT32_MAX) && (!neg || o->via.i64 < INT32_MIN))
            return bad_field(f, "not a 32-bit integer", "one", err);
        *(int32_t *)(void *)(b + f->offset) = (int32_t)o->via.i64;
        return 0;
    }
    case FIELD_F32:
        if (o->type != MSGPACK_OBJECT_FLOAT32)
            return bad_field(f, "not a 32-bit float", "one", err);
        *(float *)(void *)(b + f->offset) = (float)o->via.f64;
        return 0;
    case FIELD_STR:
    case FIELD_BIN:
    default:
        return unpack_bytes(f, o, b, err);
    }
}

static bool key_is(const msgpack_object *k, const char *name)
{
    return k->type == MSGPACK_OBJECT_STR && k->via.str.size == strlen(name) && memcmp(k->via.str.ptr, name, k->via.str.size) == 0;
}

/* -ENOENT: it is not there, and err is as it was. */
static int find_key(const msgpack_object_map *map, const char *name, const msgpack_object **ret, struct err *err)
{
    *ret = NULL;
    for (uint32_t i = 0; i < map->size; i++) {
        if (!key_is(&map->ptr[i].key, name))
            continue;
        if (*ret)
            return err_set(err, -EPROTO, "field '%s' appears twice", name);
        *ret = &map->ptr[i].val;
    }
    return *ret ? 0 : -ENOENT;
}

static int is_missing(const char *name, struct err *err)
{
    return err_set(err, -EPROTO, "field '%s' is missing", name);
}

static int decode_map(const msgpack_object *o, struct msg *ret, uint32_t *ret_unknown, struct err *err)
{
    const msgpack_object *v;
    if (o->type != MSGPACK_OBJECT_MAP || o->via.map.size > MSG_MAX_FIELDS)
        return err_set(err, -EPROTO, "message is not a map of at most %d fields", MSG_MAX_FIELDS);
    int r = find_key(&o->via.map, "t", &v, err);
    if (r < 0)
        return r == -ENOENT ? is_missing("t", err) : r;
    if (v->type != MSGPACK_OBJECT_POSITIVE_INTEGER || v->via.u64 > UINT32_MAX)
        return err_set(err, -EPROTO, "field 't' is not a message number");
    const struct type *ty = find_type(v->via.u64);
    if (!ty) {
        *ret_unknown = (uint32_t)v->via.u64;
        return err_set(err, -ENOTSUP, "message type %u is not known to version %u of the protocol", *ret_unknown, MSG_VERSION);
    }
    memset(ret, 0, sizeof(*ret));
    ret->type = ty->number;
    for (const struct field *f = ty->fields; r == 0 && f->name; f++) {
        r = find_key(&o->via.map, f->name, &v, err);
        if (r == -ENOENT)
            r = f->secret ? 0 : is_missing(f->name, err);
        else if (r == 0)
            r = unpack_field(f, v, base(ret), err);
    }
    return r < 0 ? err_wrap(err, r, "message '%s'", ty->name) : 0;
}

int msg_decode(const uint8_t *data, size_t n, struct msg *ret, uint32_t *ret_unknown, struct err *err)
{
    if (n == 0 || n > MSG_MAX_FRAME)
        return err_set(err, -EPROTO, "message of %zu bytes; expected 1 to %u", n, MSG_MAX_FRAME);
    int r = check_shape(data, n, err);
    if (r < 0)
        return r;
    msgpack_unpacked u;
    msgpack_unpacked_init(&u);
    msgpack_unpack_return got = msgpack_unpack_next(&u, (const char *)data, n, NULL);
    r = got == MSGPACK_UNPACK_SUCCESS ? decode_map(&u.data, ret, ret_unknown, err)
                                      : err_set(err, -EPROTO, "message: msgpack cannot be parsed (code %d)", (int)got);
    msgpack_unpacked_destroy(&u);
    return r;
}

void msg_print(FILE *f, const struct msg *m)
{
    const struct type *ty = find_type(m->type);
    const uint8_t *b = (const uint8_t *)&m->hello;
    fprintf(f, "%s", ty ? ty->name : "?");
    for (const struct field *d = ty ? ty->fields : NULL; d && d->name; d++) {
        const void *p = b + d->offset;
        switch (d->kind) {
        case FIELD_U32:
            fprintf(f, " %s=%u", d->name, *(const uint32_t *)p);
            break;
        case FIELD_U64:
            fprintf(f, " %s=%" PRIu64, d->name, *(const uint64_t *)p);
            break;
        case FIELD_I32:
            fprintf(f, " %s=%d", d->name, *(const int32_t *)p);
            break;
        case FIELD_F32:
            fprintf(f, " %s=%g", d->name, (double)*(const float *)p);
            break;
        case FIELD_STR:
            fprintf(f, " %s='%s'", d->name, d->secret && *(const char *)p ? "..." : (const char *)p);
            break;
        case FIELD_BIN:
        default:
            fprintf(f, " %s=<%u bytes>", d->name, *(const uint32_t *)(const void *)(b + d->len_offset));
            break;
        }
    }
    fputc('\n', f);
}

static void document_field(FILE *f, const struct field *d)
{
    static const char *const kinds[] = {"u32", "u64", "i32", "f32", "string", "binary"};
    fprintf(f, "| `%s` | %s", d->name, kinds[d->kind]);
    if (d->kind == FIELD_U32)
        fprintf(f, ", %" PRIu64 " to %" PRIu64, d->lo, d->hi);
    else if (d->kind == FIELD_STR)
        fprintf(f, ", at most %zu bytes", d->max - 1);
    else if (d->kind == FIELD_BIN)
        fprintf(f, ", at most %zu bytes", d->max);
    fprintf(f, " | %s%s |\n", d->doc, d->secret ? "; may be missing" : "");
}

void msg_document(FILE *f)
{
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const struct type *t = &types[i];
        fprintf(f, "### %d `%s`\n\nSent by: %s. File descriptors: %d. Since version %d.%s%s\n\n", (int)t->number, t->name,
                strcmp(t->sender, "STAGE") == 0   ? "stage"
                : strcmp(t->sender, "COORD") == 0 ? "coordinator"
                                                  : "both",
                t->n_fds, t->since, *t->doc ? " " : "", t->doc);
        if (!t->fields->name)
            continue;
        fprintf(f, "| field | type | meaning |\n| --- | --- | --- |\n");
        for (const struct field *d = t->fields; d->name; d++)
            document_field(f, d);
        fputc('\n', f);
    }
}
