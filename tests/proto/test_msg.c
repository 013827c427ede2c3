/* SPDX-License-Identifier: MIT
 * Every message of messages.def: round trip, each bound one above and one below, and bodies that no honest peer sends. The
 * messages are taken from the table, so that a new one is tested the moment it is added. */
#include "tests/proto/proto_test.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <msgpack.h>

#include "proto/msg.h"
#include "proto/util.h"

static const enum msg_type all_types[] = {
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) MSG_TYPE_##name,
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

/* Smallest or largest values of every field. */
static void fill(struct msg *m, enum msg_type t, bool high)
{
    memset(m, 0, sizeof(*m));
    m->type = t;
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) if (t == MSG_TYPE_##name) {
#define MSG_U32(name, field, min, max, doc) m->name.field = high ? (max) : (min);
#define MSG_U64(name, field, doc) m->name.field = high ? UINT64_MAX : 0;
#define MSG_I32(name, field, doc) m->name.field = high ? INT32_MAX : INT32_MIN;
#define MSG_F32(name, field, doc) m->name.field = high ? 3.25e38f : -1e-6f;
#define MSG_STR(name, field, max, doc) memset(m->name.field, 'x', high ? (max)-1 : 0);
#define MSG_BIN(name, field, max, doc)             \
    memset(m->name.field, 0xc1, high ? (max) : 0); \
    m->name.field##_len = high ? (max) : 0;
#define MSG_END(name) }
#include "proto/messages.def"
#undef MSG_BEGIN
#undef MSG_U32
#undef MSG_U64
#undef MSG_I32
#undef MSG_F32
#undef MSG_STR
#undef MSG_BIN
#undef MSG_END
}

static struct msg back;

static int decode(const void *data, size_t n, struct err *err)
{
    uint32_t unknown = 0;
    return msg_decode(data, n, &back, &unknown, err);
}

static int through(const struct msg *m, struct err *err)
{
    uint8_t *body = NULL;
    size_t n = 0;
    int r = msg_encode(m, &body, &n, err);
    if (r == 0)
        r = decode(body, n, err);
    free(body);
    return r;
}

static void test_round_trip(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        for (int high = 0; high < 2; high++) {
            struct msg m;
            fill(&m, all_types[i], high);
            assert_ok(through(&m, err));
            assert_int_equal(back.type, all_types[i]);
            assert_memory_equal(&back.hello, &m.hello, sizeof(m) - offsetof(struct msg, hello));
        }
        assert_non_null(msg_name(all_types[i]));
        assert_in_range(msg_n_fds(all_types[i]), 0, MSG_MAX_FDS);
    }
    assert_null(msg_name((enum msg_type)99));
    assert_int_equal(msg_n_fds((enum msg_type)99), -1);
    struct msg bad = {.type = (enum msg_type)99};
    assert_err(through(&bad, err), -EINVAL, "type 99");
}

static void check_u32(struct msg *m, uint32_t *field, const char *name, uint64_t min, uint64_t max)
{
    *field = (uint32_t)min;
    assert_ok(through(m, err));
    *field = (uint32_t)max;
    assert_ok(through(m, err));
    if (min > 0) {
        *field = (uint32_t)min - 1;
        assert_err(through(m, err), -EPROTO, name);
    }
    if (max < UINT32_MAX) {
        *field = (uint32_t)max + 1;
        assert_err(through(m, err), -EPROTO, name);
    }
}

/* Each integer range, one above and one below. */
static void test_ranges(void **state)
{
    (void)state;
    struct msg m;
#define MSG_BEGIN(name, number, since, sender, n_fds, doc)
#define MSG_U32(name, field, min, max, doc) \
    fill(&m, MSG_TYPE_##name, false);       \
    check_u32(&m, &m.name.field, "'" #field "'", min, max);
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
}

/* Packs m again with changes: `key` (or the map entry with that index) dropped, doubled, or with another value. */
enum change { KEEP, DROP, TWICE, NIL, NEGATIVE, BIG, STRING, BINARY, ADD_FIELDS, ADD_NESTED };

static size_t repack(const struct msg *m, const char *key, enum change change, size_t size, uint8_t **ret)
{
    uint8_t *body;
    size_t n;
    msgpack_unpacked u;
    msgpack_sbuffer buf;
    msgpack_packer pk;
    assert_int_equal(msg_encode(m, &body, &n, NULL), 0);
    msgpack_unpacked_init(&u);
    assert_int_equal(msgpack_unpack_next(&u, (const char *)body, n, NULL), MSGPACK_UNPACK_SUCCESS);
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&pk, &buf, msgpack_sbuffer_write);
    const msgpack_object_map *map = &u.data.via.map;
    size_t more = change == ADD_FIELDS ? size : change == ADD_NESTED || change == TWICE ? 1 : 0;
    msgpack_pack_map(&pk, map->size + more - (change == DROP));
    static const char zeros[1 << 17];
    for (uint32_t i = 0; i < map->size; i++) {
        bool hit = key && map->ptr[i].key.via.str.size == strlen(key) && memcmp(map->ptr[i].key.via.str.ptr, key, strlen(key)) == 0;
        if (hit && change == DROP)
            continue;
        for (int k = 0; k < (hit && change == TWICE ? 2 : 1); k++) {
            msgpack_pack_object(&pk, map->ptr[i].key);
            if (hit && change == NIL) {
                msgpack_pack_nil(&pk);
            } else if (hit && change == NEGATIVE) {
                msgpack_pack_int64(&pk, (int64_t)INT32_MIN - 1);
            } else if (hit && change == BIG) {
                msgpack_pack_uint64(&pk, (uint64_t)UINT32_MAX + 1);
            } else if (hit && change == STRING) {
                msgpack_pack_str(&pk, size);
                for (size_t b = 0; b < size; b++)
                    msgpack_pack_str_body(&pk, "y", 1);
            } else if (hit && change == BINARY) {
                msgpack_pack_bin(&pk, size);
                msgpack_pack_bin_body(&pk, zeros, size);
            } else {
                msgpack_pack_object(&pk, map->ptr[i].val);
            }
        }
    }
    for (size_t i = 0; change == ADD_FIELDS && i < size; i++) {
        char name[24];
        int len = snprintf(name, sizeof(name), "new%zu", i);
        msgpack_pack_str(&pk, (size_t)len);
        msgpack_pack_str_body(&pk, name, (size_t)len);
        msgpack_pack_nil(&pk);
    }
    if (change == ADD_NESTED) {
        msgpack_pack_str(&pk, 1);
        msgpack_pack_str_body(&pk, "n", 1);
        for (size_t i = 0; i < size; i++)
            msgpack_pack_array(&pk, 1);
        msgpack_pack_nil(&pk);
    }
    msgpack_unpacked_destroy(&u);
    free(body);
    *ret = (uint8_t *)buf.data;
    return buf.size;
}

static int changed(const struct msg *m, const char *key, enum change change, size_t size, struct err *err)
{
    uint8_t *body;
    size_t n = repack(m, key, change, size, &body);
    int r = decode(body, n, err);
    free(body);
    return r;
}

static void check_field(const struct msg *m, const char *key, bool is_u64)
{
    assert_err(changed(m, key, DROP, 0, err), -EPROTO, "is missing");
    assert_err(changed(m, key, TWICE, 0, err), -EPROTO, "appears twice");
    assert_err(changed(m, key, NIL, 0, err), -EPROTO, key);
    assert_err(changed(m, key, NEGATIVE, 0, err), -EPROTO, key);
    if (!is_u64)
        assert_err(changed(m, key, BIG, 0, err), -EPROTO, key);
}

/* Each field missing, doubled, of another type, too large; each string and binary at its limit and one above. */
static void test_fields(void **state)
{
    (void)state;
    struct msg m;
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) \
    fill(&m, MSG_TYPE_##name, true);                       \
    check_field(&m, "t", false);                           \
    assert_ok(changed(&m, NULL, KEEP, 0, err));
#define MSG_U32(name, field, min, max, doc) check_field(&m, #field, false);
#define MSG_U64(name, field, doc) check_field(&m, #field, true);
#define MSG_I32(name, field, doc) check_field(&m, #field, false);
#define MSG_F32(name, field, doc) check_field(&m, #field, false);
#define MSG_STR(name, field, max, doc)                                          \
    check_field(&m, #field, false);                                             \
    assert_ok(changed(&m, #field, STRING, (max)-1, err));                       \
    assert_int_equal(strlen(back.name.field), (max)-1);                         \
    assert_err(changed(&m, #field, STRING, max, err), -EPROTO, "'" #field "'"); \
    assert_err(changed(&m, #field, BINARY, 1, err), -EPROTO, "'" #field "'");
#define MSG_SECRET(name, field, max, doc)                                     \
    assert_ok(changed(&m, #field, DROP, 0, err));                             \
    assert_int_equal(back.name.field[0], 0);                                  \
    assert_err(changed(&m, #field, TWICE, 0, err), -EPROTO, "appears twice"); \
    assert_err(changed(&m, #field, NIL, 0, err), -EPROTO, "'" #field "'");    \
    assert_err(changed(&m, #field, STRING, max, err), -EPROTO, "'" #field "'");
#define MSG_BIN(name, field, max, doc)                                                \
    check_field(&m, #field, false);                                                   \
    assert_ok(changed(&m, #field, BINARY, max, err));                                 \
    assert_err(changed(&m, #field, BINARY, (size_t)(max) + 1, err), -EPROTO, #field); \
    assert_err(changed(&m, #field, STRING, 1, err), -EPROTO, "'" #field "'");
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
}

static void test_limits(void **state)
{
    (void)state;
    struct msg m = {.type = MSG_TYPE_drain};
    assert_ok(changed(&m, NULL, ADD_FIELDS, 1, err)); /* unknown fields are ignored */
    assert_int_equal(back.type, MSG_TYPE_drain);
    assert_ok(changed(&m, NULL, ADD_FIELDS, MSG_MAX_FIELDS - 1, err));
    assert_err(changed(&m, NULL, ADD_FIELDS, MSG_MAX_FIELDS, err), -EPROTO, "at most 64 fields");
    assert_ok(changed(&m, NULL, ADD_NESTED, MSG_MAX_DEPTH - 1, err));
    assert_err(changed(&m, NULL, ADD_NESTED, MSG_MAX_DEPTH, err), -EPROTO, "nested deeper than 2");
    assert_err(changed(&m, NULL, ADD_NESTED, 60000, err), -EPROTO, "nested deeper than 2");
    m = (struct msg){.type = MSG_TYPE_error, .error = {.code = -5, .text = "a"}};
    memset(m.error.text, 'x', sizeof(m.error.text));
    assert_err(through(&m, err), -EINVAL, "'text' is not terminated");
    m = (struct msg){.type = MSG_TYPE_configure, .configure = {.types_len = 8193}};
    assert_err(through(&m, err), -EINVAL, "'types' has 8193 bytes");
}

/* A known message with an unknown binary field that fills the frame exactly, and one byte more. */
static void test_frame_size(void **state)
{
    (void)state;
    static uint8_t body[MSG_MAX_FRAME + 1];
    static const uint8_t head[] = {0x82, 0xa1, 't', MSG_TYPE_drain, 0xa1, 'z', 0xc6};
    for (uint32_t over = 0; over < 2; over++) {
        uint32_t n = MSG_MAX_FRAME + over - (uint32_t)sizeof(head) - 4;
        memcpy(body, head, sizeof(head));
        for (int i = 0; i < 4; i++)
            body[sizeof(head) + (size_t)i] = (uint8_t)(n >> (24 - 8 * i));
        if (over)
            assert_err(decode(body, MSG_MAX_FRAME + 1, err), -EPROTO, "65537 bytes");
        else
            assert_ok(decode(body, MSG_MAX_FRAME, err));
    }
    assert_err(decode(body, 0, err), -EPROTO, "message of 0 bytes");
}

static void test_hostile(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        size_t n;
        const char *part;
    } cases[] = {
        {"\xc1", 1, "broken"},
        {"\xc0", 1, "not a map"},
        {"\x81", 1, "broken or cut off"},
        {"\x80", 1, "'t' is missing"},
        {"\x80\x80", 2, "1 bytes after its end"},
        {"\x90", 1, "not a map"},
        {"\x81\xa1t\xc3", 4, "'t' is not"},
        {"\x81\xa1t\xff", 4, "'t' is not"},
        {"\x81\xa1t\xa1t", 5, "'t' is not"},
        {"\x81\xa1t\xcf\xff\xff\xff\xff\xff\xff\xff\xff", 12, "'t' is not"},
        {"\xdf\xff\xff\xff\xff", 5, "broken or cut off"},
        {"\xdd\xff\xff\xff\xff\xc0", 6, "broken or cut off"},
        {"\xc6\xff\xff\xff\xff", 5, "broken or cut off"},
        {"\xdb\x00\x00\x00", 4, "broken or cut off"},
        {"\xc9\x00\x00\x00\x00", 5, "broken or cut off"},
        {"\x81\xa1t\x81\x81\x81\xc0\xc0\xc0\xc0", 10, "nested"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_err(decode(cases[i].body, cases[i].n, err), -EPROTO, cases[i].part);
    uint32_t unknown = 0;
    assert_err(msg_decode((const uint8_t *)"\x81\xa1t\x63", 4, &back, &unknown, err), -ENOTSUP, "type 99 is not known");
    assert_int_equal(unknown, 99);
    struct msg m = {.type = MSG_TYPE_error, .error = {.text = "ab"}};
    uint8_t *body;
    size_t n;
    assert_ok(msg_encode(&m, &body, &n, err));
    body[n - 1] = '\0';
    assert_err(decode(body, n, err), -EPROTO, "NUL byte");
    free(body);
}

/* Every proper prefix of every message, and many messages with changed bytes: no crash, and nothing out of bounds is accepted. */
static void test_mutations(void **state)
{
    (void)state;
    uint32_t random = 12345;
    size_t refused = 0;
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        struct msg m;
        uint8_t *body, copy[1024];
        size_t n;
        fill(&m, all_types[i], false);
        assert_ok(msg_encode(&m, &body, &n, err));
        assert_in_range(n, 1, sizeof(copy));
        for (size_t k = 0; k < n; k++)
            assert_int_equal(decode(body, k, NULL), -EPROTO);
        for (int k = 0; k < 2000; k++) {
            memcpy(copy, body, n);
            for (int changes = k % 3; changes >= 0; changes--) {
                random = random * 1664525u + 1013904223u;
                copy[(random >> 8) % n] ^= (uint8_t)(random >> 24);
            }
            int r = decode(copy, n, NULL);
            assert_true(r == 0 || r == -EPROTO || r == -ENOTSUP);
            refused += r != 0;
        }
        free(body);
    }
    assert_true(refused > 1000);
}

static void test_print(void **state)
{
    (void)state;
    char *text;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        struct msg m;
        fill(&m, all_types[i], false);
        msg_print(f, &m);
    }
    struct msg hello;
    fill(&hello, MSG_TYPE_hello, true);
    msg_print(f, &hello);
    fclose(f);
    assert_null(strstr(text, "token='x"));
    assert_non_null(strstr(text, " token='...'\n"));
    assert_non_null(strstr(text, "attach_ring direction=0 index=0 epoch=1\n"));
    assert_non_null(strstr(text, " types=<0 bytes> "));
    assert_non_null(strstr(text, "error code=-2147483648 bad_input=0 bad_output=0 text=''\n"));
    free(text);
    f = open_memstream(&text, &n);
    msg_document(f);
    fclose(f);
    for (size_t i = 0; i < ARRAY_LEN(all_types); i++) {
        char want[64];
        snprintf(want, sizeof(want), "### %d `%s`\n", (int)all_types[i], msg_name(all_types[i]));
        assert_non_null(strstr(text, want));
    }
    free(text);
    assert_string_equal(msg_role_name(MSG_ROLE_NPU), "npu_worker");
    assert_string_equal(msg_role_name((enum msg_role)9), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        FD_TEST(test_round_trip), FD_TEST(test_ranges),  FD_TEST(test_fields),    FD_TEST(test_limits),
        FD_TEST(test_frame_size), FD_TEST(test_hostile), FD_TEST(test_mutations), FD_TEST(test_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
