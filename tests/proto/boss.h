/* SPDX-License-Identifier: MIT
 * What the tests of the stage skeleton share: a tiny stage, and the coordinator that it talks to. The test program runs itself
 * again as the stage (argument --stage) and plays the coordinator: one connection, segments and slots, rings, chunks. Every
 * function asserts that what it waits for comes. */
#ifndef TANDEM_TESTS_PROTO_BOSS_H
#define TANDEM_TESTS_PROTO_BOSS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "proto/chunk.h"
#include "proto/msg.h"

struct bell;
struct conn;
struct ring;

#define EPOCH 5
#define HIDDEN 16
#define SEGMENT_BYTES 8192
#define SLOTS 2

/* Chunk ids with a meaning to the tiny stage. */
enum { ID_FAIL = 1000, ID_SLEEP = 1001, ID_SILENT_FAIL = 1002 };

extern uint32_t boss_epoch; /* of rings and chunks */

struct boss {
    uv_loop_t loop;
    struct conn *conn;
    pid_t pid;
    bool closed, exited;
    int status;
    enum msg_role role;
    struct msg queue[64];
    int fds[64]; /* of segment_new */
    uint32_t n_queued, n_taken;
    uint64_t wanted; /* serial of the last SLOT_WANT that was looked at */
    int bell_fds[2]; /* ours, the stage's */
    int page_fd;     /* status page */
    struct bell *bells[2];
    int ring_fds[2][2]; /* direction, index */
    struct ring *rings[2][2];
};

/* First in main. True: this process is the stage, and this is its status. */
bool boss_is_stage(int argc, char **argv, int *ret_status);

/* Life: up to HELLO; up to READY; SHUTDOWN and its end; everything away, where the stage ends by itself or because of it. */
void boss_open(struct boss *b, enum msg_role role);
void boss_start(struct boss *b, enum msg_role role);
void boss_end(struct boss *b);
void boss_close(struct boss *b);
int boss_wait_exit(struct boss *b);

/* Messages. expect: the next one, which must be of type t. expect_error: and with it the stage ends.
 * expect_bad_ring: likewise, and it names a ring as the error does: 1 + the number of an input, or of an output, the other one 0.
 */
const struct msg *boss_expect(struct boss *b, enum msg_type t);
void boss_expect_error(struct boss *b, int code, const char *part);
void boss_expect_bad_ring(struct boss *b, uint32_t input, uint32_t output, const char *part);
void boss_tell(struct boss *b, const struct msg *m, const int *fds, int n_fds);
void boss_tell_type(struct boss *b, enum msg_type t);
struct msg boss_configure_msg(void);
void boss_attach(struct boss *b, uint32_t direction, uint32_t index, size_t slot_bytes);
void boss_attach_all(struct boss *b);
void boss_configure(struct boss *b);
const struct msg_stats *boss_stats(struct boss *b, uint64_t serial);
/* What the loader would do with the segments that the stage announces. */
void boss_fill_segments(struct boss *b, uint8_t value, bool seal);
void boss_drop_rings(struct boss *b);

/* Chunks of two tokens, in and out. */
struct chunk boss_chunk(uint64_t id, float **ret_x);
void boss_put_chunk(struct boss *b, uint32_t input, const struct chunk *c, const void *payload);
void boss_put(struct boss *b, uint32_t input, uint64_t id);
/* The next chunk of an output; *ret_payload is valid until the caller releases. */
void boss_get(struct boss *b, uint32_t output, struct chunk *ret, const void **ret_payload);
void boss_expect_chunk(struct boss *b, uint32_t output, uint64_t id, float added);
void boss_expect_failure(struct boss *b, uint32_t output, uint64_t id, int code, const char *part);
void boss_put_layer(struct boss *b, uint32_t input, uint64_t id, uint32_t layer, uint32_t index, uint32_t count);
void boss_expect_layer(struct boss *b, uint64_t id, float value);

#endif
