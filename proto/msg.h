/* SPDX-License-Identifier: MIT
 * Messages as plain structs, from messages.def. No msgpack here. A frame is a u32 length (little-endian, of what follows) and a
 * msgpack map {"t": number, field: value, ...}; the very first frame in each direction is the fixed 16-byte preamble.
 * Threads: any; no state. */
#ifndef TANDEM_PROTO_MSG_H
#define TANDEM_PROTO_MSG_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct err;

#define MSG_VERSION 1u
#define MSG_MAX_FRAME (64u * 1024)
#define MSG_MAX_FDS 4
#define MSG_MAX_DEPTH 2
#define MSG_MAX_FIELDS 64

enum msg_role { MSG_ROLE_LOADER, MSG_ROLE_NPU, MSG_ROLE_GPU, MSG_ROLES };
const char *msg_role_name(enum msg_role r); /* "loader", "npu_worker", "gpu_worker" */

#define MSG_BEGIN(name, number, since, sender, n_fds, doc) struct msg_##name {
#define MSG_U32(name, field, min, max, doc) uint32_t field;
#define MSG_U64(name, field, doc) uint64_t field;
#define MSG_I32(name, field, doc) int32_t field;
#define MSG_F32(name, field, doc) float field;
#define MSG_STR(name, field, max, doc) char field[max];
#define MSG_BIN(name, field, max, doc) \
    uint8_t field[max];                \
    uint32_t field##_len;
#define MSG_END(name) \
    char end_;        \
    }                 \
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

enum msg_type {
    MSG_NONE = 0,
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) MSG_TYPE_##name = number,
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

/* Any message; which member is valid follows from type. */
struct msg {
    enum msg_type type;
    union {
#define MSG_BEGIN(name, number, since, sender, n_fds, doc) struct msg_##name name;
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
};

const char *msg_name(enum msg_type t); /* NULL when unknown */
int msg_n_fds(enum msg_type t);        /* fds that travel with it; negative when unknown */
/* Encode the body (without the length). *ret is malloc'ed, returned owned. */
int msg_encode(const struct msg *m, uint8_t **ret, size_t *ret_len, struct err *err);
/* Decode an untrusted body. -EPROTO with a message; -ENOTSUP for an unknown type (its number in *ret_unknown). */
int msg_decode(const uint8_t *data, size_t n, struct msg *ret, uint32_t *ret_unknown, struct err *err);
/* One line, for TANDEM_TRACE=msg. */
void msg_print(FILE *f, const struct msg *m);
/* docs/PROTOCOL.md's table. */
void msg_document(FILE *f);

#endif
