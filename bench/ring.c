/* SPDX-License-Identifier: MIT
 * One ring hop between two processes: latency (there and back through two rings, halved) with and without spinning before the
 * sleep, and throughput of a one-way stream with slots of several sizes whose bytes are written and read. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/err.h"
#include "proto/ring.h"
#include "proto/util.h"

#define SLOTS 4
#define PING_PONGS 20000

struct side {
    struct bell *own;
    struct ring *in, *out;
    uint64_t spin_ns;
};

static int check(int r, const struct err *err)
{
    if (r < 0) {
        fprintf(stderr, "bench_ring: %s\n", err->text);
        exit(1);
    }
    return r;
}

/* Two rings and two bells, both ends mapped; the child uses sides[1] after the fork. */
static void connect_sides(struct side *sides, size_t slot_bytes, uint64_t spin_ns)
{
    struct err err = {0};
    for (int i = 0; i < 2; i++) {
        int fd = check(bell_make(&err), &err);
        check(bell_map(fd, &sides[i].own, &err), &err);
        close(fd);
        sides[i].spin_ns = spin_ns;
    }
    for (int i = 0; i < 2; i++) {
        int fd = check(ring_make("bench", SLOTS, slot_bytes, 1, &err), &err);
        check(ring_attach(fd, RING_PRODUCER, 1, sides[i].own, sides[1 - i].own, &sides[i].out, &err), &err);
        check(ring_attach(fd, RING_CONSUMER, 1, sides[1 - i].own, sides[i].own, &sides[1 - i].in, &err), &err);
        close(fd);
    }
}

static void disconnect(struct side *sides)
{
    for (int i = 0; i < 2; i++) {
        ring_detach(sides[i].in);
        ring_detach(sides[i].out);
    }
    for (int i = 0; i < 2; i++)
        bell_unmap(sides[i].own);
}

static void *wait_for(const struct side *s, struct ring *r, void *(*next)(struct ring *))
{
    for (;;) {
        uint32_t seen = bell_read(s->own);
        void *slot = next(r);
        if (slot)
            return slot;
        bell_wait(s->own, seen, s->spin_ns, -1);
    }
}

static void send_number(const struct side *s, uint64_t v)
{
    *(uint64_t *)wait_for(s, s->out, ring_reserve) = v;
    ring_commit(s->out);
}

static uint64_t take_number(const struct side *s)
{
    uint64_t v = *(const uint64_t *)wait_for(s, s->in, ring_peek);
    ring_release(s->in);
    return v;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void join(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "bench_ring: the second process failed (status 0x%x)\n", (unsigned)status);
        exit(1);
    }
}

static void latency(uint64_t spin_ns)
{
    static uint64_t ns[PING_PONGS];
    struct side sides[2];
    connect_sides(sides, 4096, spin_ns);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < PING_PONGS; i++)
            send_number(&sides[1], take_number(&sides[1]) + 1);
        _exit(0);
    }
    bool right = true;
    for (uint64_t i = 0; i < PING_PONGS; i++) {
        uint64_t start = util_now_ns();
        send_number(&sides[0], i);
        right &= take_number(&sides[0]) == i + 1;
        ns[i] = (util_now_ns() - start) / 2;
    }
    join(child);
    qsort(ns, PING_PONGS, sizeof(ns[0]), by_value);
    printf("hop, spin %5.0f us   median %8.2f us   p99 %8.2f us   %s\n", (double)spin_ns / 1e3, (double)ns[PING_PONGS / 2] / 1e3,
           (double)ns[PING_PONGS / 100 * 99] / 1e3, right ? "" : "WRONG VALUES");
    disconnect(sides);
}

static void throughput(size_t bytes, uint32_t n)
{
    struct side sides[2];
    connect_sides(sides, bytes, 0);
    pid_t child = fork();
    if (child == 0) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint64_t *p = wait_for(&sides[1], sides[1].in, ring_peek);
            for (size_t k = 0; k < bytes / 8; k++)
                sum += p[k];
            ring_release(sides[1].in);
        }
        _exit(sum != (uint64_t)(bytes / 8) * n * (n - 1) / 2);
    }
    uint64_t start = util_now_ns();
    for (uint32_t i = 0; i < n; i++) {
        uint64_t *p = wait_for(&sides[0], sides[0].out, ring_reserve);
        for (size_t k = 0; k < bytes / 8; k++)
            p[k] = i;
        ring_commit(sides[0].out);
    }
    join(child);
    double s = (double)(util_now_ns() - start) / 1e9;
    printf("stream of %8zu bytes   %10.0f slots/s   %7.2f GB/s\n", bytes, n / s, (double)bytes * n / s / 1e9);
    disconnect(sides);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        printf("usage: %s\nLatency and throughput of proto/ring between two processes.\n", argv[0]);
        return strcmp(argv[1], "--help") != 0;
    }
    static const uint64_t spins[] = {0, 20000, 200000};
    for (size_t i = 0; i < ARRAY_LEN(spins); i++)
        latency(spins[i]);
    static const size_t sizes[] = {8, 4096, 65536, 1 << 20, 8 << 20};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        throughput(sizes[i], (uint32_t)MIN(100000, (2ull << 30) / sizes[i]));
    return 0;
}
