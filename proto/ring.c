/* SPDX-License-Identifier: MIT
 * Owns the mapping of one ring or bell. One producer thread and one consumer thread per ring; neither blocks in here but in
 * bell_wait. The other side is another process and is not trusted: its index is read once and checked.
 *
 * Sleeping without losing a wake-up: a waiter reads the bell's sequence, looks at its rings, then announces itself in `waiting`
 * and sleeps only if the sequence is still the same (the kernel compares again). A ringer first publishes its index (release),
 * then adds to the sequence, then looks at `waiting`; both words are seq_cst, so either the ringer sees the waiter and wakes it
 * or the waiter sees the new sequence. The wake system call is skipped when nobody waits. */
#include "proto/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "proto/err.h"
#include "proto/shm.h"
#include "proto/util.h"

#define PAGE 4096u
#define LINE 64u
#define RING_MAGIC 0x474e4952u /* "RING" */
#define RING_VERSION 1u
#define BELL_MAGIC 0x4c4c4542u /* "BELL" */

struct bell {
    uint32_t magic;
    uint32_t pad[15];
    _Atomic uint32_t sequence;
    _Atomic uint32_t waiting; /* 1: somebody sleeps, or is about to */
};

struct ring_memory {
    uint32_t magic, version, epoch, n_slots;
    uint64_t slot_bytes;
    _Atomic uint32_t poisoned;
    uint8_t pad0[LINE - 28];
    _Atomic uint32_t head; /* written by the producer: slots committed so far */
    uint8_t pad1[LINE - 4];
    _Atomic uint32_t tail; /* written by the consumer: slots released so far */
    uint8_t pad2[LINE - 4];
};
_Static_assert(sizeof(struct ring_memory) == 3 * LINE, "layout");
_Static_assert(offsetof(struct ring_memory, head) == LINE && offsetof(struct ring_memory, tail) == 2 * LINE, "layout");

struct ring {
    struct ring_memory *m;
    uint8_t *slots;
    size_t bytes, slot_bytes; /* trusted copies */
    uint32_t n_slots;
    _Atomic uint32_t own;  /* our index: only we write it, so ours is the truth */
    _Atomic bool poisoned; /* by us: the mark in shared memory could be taken back */
    enum ring_side side;
    struct bell *own_bell, *peer_bell;
};

int bell_make(struct err *err)
{
    return shm_make_page("tandem-bell", BELL_MAGIC, err);
}

int bell_map(int fd, struct bell **ret, struct err *err)
{
    return shm_map_page(fd, "bell", BELL_MAGIC, (void **)ret, err);
}

void bell_unmap(struct bell *b)
{
    shm_unmap(b, SHM_PAGE_BYTES);
}

void bell_ring(struct bell *b)
{
    atomic_fetch_add(&b->sequence, 1);
    if (atomic_load(&b->waiting))
        syscall(SYS_futex, &b->sequence, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

uint32_t bell_read(struct bell *b)
{
    return atomic_load(&b->sequence);
}

int bell_wait(struct bell *b, uint32_t seen, uint64_t spin_ns, int64_t timeout_ns)
{
    if (spin_ns) {
        uint64_t end = util_now_ns() + spin_ns;
        do {
            for (int i = 0; i < 32; i++) {
                if (atomic_load_explicit(&b->sequence, memory_order_acquire) != seen)
                    return 0;
                relax();
            }
        } while (util_now_ns() < end);
    }
    struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    atomic_store(&b->waiting, 1);
    long r = 0;
    if (atomic_load(&b->sequence) == seen)
        r = syscall(SYS_futex, &b->sequence, FUTEX_WAIT, seen, timeout_ns < 0 ? NULL : &ts, NULL, 0);
    int code = r < 0 && errno == ETIMEDOUT ? -ETIMEDOUT : 0;
    atomic_store(&b->waiting, 0);
    return code;
}

static size_t slots_offset(void)
{
    return PAGE;
}

size_t ring_bytes(uint32_t n_slots, size_t slot_bytes)
{
    return slots_offset() + (size_t)n_slots * util_round_up(slot_bytes, PAGE);
}

int ring_make_at(const char *name, uint32_t n_slots, size_t slot_bytes, uint32_t epoch, uint32_t index, struct err *err)
{
    size_t total;
    if (n_slots == 0 || n_slots > RING_MAX_SLOTS || (n_slots & (n_slots - 1)) || slot_bytes == 0 || slot_bytes > SIZE_MAX - PAGE ||
        !util_mul(n_slots, util_round_up(slot_bytes, PAGE), &total))
        return err_set(err, -EINVAL, "ring '%s': %u slots of %zu bytes; expected a power of two up to %u and a size", name, n_slots,
                       slot_bytes, RING_MAX_SLOTS);
    auto_fd fd = shm_make(name, ring_bytes(n_slots, slot_bytes), false, err);
    void *p;
    if (fd < 0)
        return fd;
    int r = shm_map(fd, PAGE, true, &p, err);
    if (r < 0)
        return r;
    struct ring_memory *m = p;
    m->magic = RING_MAGIC;
    m->version = RING_VERSION;
    m->epoch = epoch;
    m->n_slots = n_slots;
    m->slot_bytes = util_round_up(slot_bytes, PAGE);
    atomic_store(&m->head, index);
    atomic_store(&m->tail, index);
    shm_unmap(p, PAGE);
    return take_fd(&fd);
}

int ring_make(const char *name, uint32_t n_slots, size_t slot_bytes, uint32_t epoch, struct err *err)
{
    return ring_make_at(name, n_slots, slot_bytes, epoch, 0, err);
}

static int check_header(const struct ring_memory *h, uint32_t epoch, struct err *err)
{
    if (h->magic != RING_MAGIC || h->version != RING_VERSION)
        return err_set(err, -EPROTO, "ring: magic 0x%x version %u; expected 0x%x version %u", h->magic, h->version, RING_MAGIC,
                       RING_VERSION);
    if (h->epoch != epoch)
        return err_set(err, -ESTALE, "ring: epoch %u; expected %u", h->epoch, epoch);
    if (h->n_slots == 0 || h->n_slots > RING_MAX_SLOTS || (h->n_slots & (h->n_slots - 1)))
        return err_set(err, -EPROTO, "ring: %u slots; expected a power of two up to %u", h->n_slots, RING_MAX_SLOTS);
    if (h->slot_bytes == 0 || h->slot_bytes % PAGE || h->slot_bytes > SIZE_MAX / 2 / h->n_slots)
        return err_set(err, -EPROTO, "ring: slots of %" PRIu64 " bytes; expected a multiple of %u", h->slot_bytes, PAGE);
    return 0;
}

int ring_attach(int fd, enum ring_side side, uint32_t epoch, struct bell *own, struct bell *peer, struct ring **ret,
                struct err *err)
{
    void *p;
    struct ring_memory header;
    int r = shm_map(fd, PAGE, true, &p, err);
    if (r < 0)
        return err_wrap(err, r, "ring");
    memcpy(&header, p, sizeof(header));
    shm_unmap(p, PAGE);
    if ((r = check_header(&header, epoch, err)) < 0)
        return r;
    size_t bytes = ring_bytes(header.n_slots, header.slot_bytes);
    if ((r = shm_map(fd, bytes, true, &p, err)) < 0)
        return err_wrap(err, r, "ring of %u slots of %" PRIu64 " bytes", header.n_slots, header.slot_bytes);
    struct ring *ring = calloc(1, sizeof(*ring));
    if (!ring) {
        shm_unmap(p, bytes);
        return err_set(err, -ENOMEM, "ring: out of memory");
    }
    ring->m = p;
    ring->slots = (uint8_t *)p + slots_offset();
    ring->bytes = bytes;
    ring->slot_bytes = header.slot_bytes;
    ring->n_slots = header.n_slots;
    ring->side = side;
    atomic_init(&ring->own, atomic_load(side == RING_PRODUCER ? &ring->m->head : &ring->m->tail));
    ring->own_bell = own;
    ring->peer_bell = peer;
    *ret = ring;
    return 0;
}

void ring_detach(struct ring *r)
{
    if (!r)
        return;
    shm_unmap(r->m, r->bytes);
    free(r);
}

size_t ring_slot_bytes(const struct ring *r)
{
    return r->slot_bytes;
}

uint32_t ring_n_slots(const struct ring *r)
{
    return r->n_slots;
}

int ring_poisoned(const struct ring *r)
{
    return atomic_load_explicit(&r->poisoned, memory_order_relaxed) || atomic_load_explicit(&r->m->poisoned, memory_order_acquire);
}

void ring_poison(struct ring *r)
{
    atomic_store(&r->poisoned, true);
    atomic_store(&r->m->poisoned, 1);
    bell_ring(r->own_bell);
    bell_ring(r->peer_bell);
}

static uint32_t own_index(const struct ring *r)
{
    return atomic_load_explicit(&r->own, memory_order_relaxed);
}

uint32_t ring_fill(const struct ring *r)
{
    uint32_t own = own_index(r);
    return r->side == RING_PRODUCER ? own - atomic_load_explicit(&r->m->tail, memory_order_acquire)
                                    : atomic_load_explicit(&r->m->head, memory_order_acquire) - own;
}

int ring_look(int fd, struct ring_sight *ret, struct err *err)
{
    void *p;
    int r = shm_map(fd, PAGE, false, &p, err);
    if (r < 0)
        return err_wrap(err, r, "ring");
    struct ring_memory *m = p;
    uint32_t tail = atomic_load(&m->tail); /* first: the other one is not behind it then */
    uint32_t head = atomic_load(&m->head), n = MIN(m->n_slots, RING_MAX_SLOTS);
    shm_unmap(p, PAGE);
    *ret = (struct ring_sight){
        .head = head, .tail = tail, .n_slots = n, .fill = MIN(head - tail, n)}; /* between the two looks more may have moved */
    return 0;
}

/* Slots between the two indices as this side sees them; poisons and returns UINT32_MAX when that is impossible. */
static uint32_t fill(struct ring *r)
{
    uint32_t n = ring_fill(r);
    if (ring_poisoned(r))
        return UINT32_MAX;
    if (n > r->n_slots) {
        ring_poison(r);
        return UINT32_MAX;
    }
    return n;
}

static uint32_t step(struct ring *r)
{
    uint32_t next = own_index(r) + 1;
    atomic_store_explicit(&r->own, next, memory_order_relaxed);
    return next;
}

void *ring_reserve(struct ring *r)
{
    uint32_t n = fill(r);
    return n >= r->n_slots ? NULL : r->slots + (size_t)(own_index(r) & (r->n_slots - 1)) * r->slot_bytes;
}

void ring_commit(struct ring *r)
{
    atomic_store_explicit(&r->m->head, step(r), memory_order_release);
    bell_ring(r->peer_bell);
}

void *ring_peek(struct ring *r)
{
    uint32_t n = fill(r);
    return n == 0 || n == UINT32_MAX ? NULL : r->slots + (size_t)(own_index(r) & (r->n_slots - 1)) * r->slot_bytes;
}

void ring_release(struct ring *r)
{
    atomic_store_explicit(&r->m->tail, step(r), memory_order_release);
    bell_ring(r->peer_bell);
}
