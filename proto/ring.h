/* SPDX-License-Identifier: MIT
 * Single-producer single-consumer ring of fixed-size slots in a sealed memfd made by the coordinator; work happens in place.
 * Memory: header (magic, version, epoch, n_slots, slot_bytes) | head line | tail line | page-aligned slots.
 * Indices run freely in u32. fill > n_slots is a hostile peer: the ring is poisoned and both sides are woken.
 * A bell is one futex word in a memfd of its own: everything a thread waits for rings that one bell (all its input rings,
 * and space in its output rings); one thread waits. Threads: one producer, one consumer; ring_poison from any. No allocation after
 * attach. */
#ifndef TANDEM_PROTO_RING_H
#define TANDEM_PROTO_RING_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct bell;
/* Makes the memfd (owned fd returned) / maps one received. */
int bell_make(struct err *err);
int bell_map(int fd, struct bell **ret, struct err *err); /* borrows fd */
void bell_unmap(struct bell *b);
void bell_ring(struct bell *b);
/* How long a wait should be at most before one looks again: another who maps the bell can take back that somebody waits, after
 * which nobody wakes him. */
#define BELL_AGAIN_NS INT64_C(500000000)
/* Protocol of a wait: v = bell_read(); check everything; if nothing: bell_wait(v, timeout). */
uint32_t bell_read(struct bell *b);
/* Spins up to spin_ns, then futex-waits. timeout_ns < 0: for ever. 0 or -ETIMEDOUT. Spurious wakes happen. */
int bell_wait(struct bell *b, uint32_t seen, uint64_t spin_ns, int64_t timeout_ns);

#define RING_MAX_SLOTS 1024
size_t ring_bytes(uint32_t n_slots, size_t slot_bytes); /* of the memfd; slot_bytes is rounded up to a page */
/* Make the memfd: n_slots a power of two. Returns an owned fd. */
int ring_make(const char *name, uint32_t n_slots, size_t slot_bytes, uint32_t epoch, struct err *err);

/* As ring_make with both indices starting at `index`; for tests of wrapping. */
int ring_make_at(const char *name, uint32_t n_slots, size_t slot_bytes, uint32_t epoch, uint32_t index, struct err *err);

enum ring_side { RING_PRODUCER, RING_CONSUMER };
struct ring;
/* Map and check everything against expectations (n_slots/slot_bytes at least / exactly as the header says, epoch equal).
 * own: this side's bell, peer: the other side's; both borrowed and outlive the ring. */
int ring_attach(int fd, enum ring_side side, uint32_t epoch, struct bell *own, struct bell *peer, struct ring **ret,
                struct err *err);
void ring_detach(struct ring *r); /* NULL is fine */
size_t ring_slot_bytes(const struct ring *r);
uint32_t ring_n_slots(const struct ring *r);

/* Producer: next free slot or NULL (full or poisoned); commit publishes it and rings the peer. */
void *ring_reserve(struct ring *r);
void ring_commit(struct ring *r);
/* Consumer: oldest unread slot or NULL (empty or poisoned); release gives it back and rings the peer. */
void *ring_peek(struct ring *r);
void ring_release(struct ring *r);
/* Slots committed and not released, by this side's own index, which nobody else can change; approximate from other threads. */
uint32_t ring_fill(const struct ring *r);
struct ring_sight {
    uint32_t head, tail;    /* slots committed and released so far, as producer and consumer say */
    uint32_t fill, n_slots; /* how many are full, of how many */
};
/* For onlookers: the ring in a memfd; tail is read first. */
int ring_look(int fd, struct ring_sight *ret, struct err *err);
void ring_poison(struct ring *r); /* for ever; rings both bells */
int ring_poisoned(const struct ring *r);

#endif
