/* SPDX-License-Identifier: MIT
 * Owns n - 1 threads that help the caller with one loop at a time. A loop is published by a new generation number; items are taken
 * in grains from one atomic counter; the caller returns when every helper that entered has left. Helpers sleep on a futex when
 * there is no loop; between pool_begin and pool_end they first spin for a bounded time, because another loop follows within
 * microseconds, and after pool_end a little: another process's pool that takes over wakes its own helpers on processors that have
 * not gone to sleep. A helper that was asleep is not waited for: it finds the loop closed and goes back to sleep. */
#include "kernels/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu.h"

#define SPINS 4000  /* pauses before a helper sleeps while loops follow each other; about 50 us */
#define LINGER 2000 /* the same after the last loop */
#define MAX_CPUS 1024
#define LINE 64

struct helper {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads, n_started;
    bool may_spin;
    struct helper *helpers;
    /* the loop, written by the caller before it publishes the generation */
    pool_fn fn;
    void *ctx;
    uint32_t n_items, grain;
    _Alignas(LINE) _Atomic uint32_t generation; /* futex; odd: a loop is open */
    _Atomic uint32_t sleepers;
    _Atomic bool active, stop;
    _Alignas(LINE) _Atomic uint32_t next;
    _Alignas(LINE) _Atomic uint32_t inside; /* futex; helpers within the loop */
    _Atomic bool waiting;                   /* the caller sleeps until `inside` is 0 */
};

static void relax(void)
{
#ifdef TANDEM_X86_KERNELS
    __builtin_ia32_pause();
#endif
}

/* Large pieces first and small ones last: few cuts in a stream, and all threads end together. */
static void work(struct pool *p, int thread)
{
    uint32_t parts = 4 * (uint32_t)p->n_threads, begin = atomic_load(&p->next), end;
    while (begin < p->n_items) {
        uint32_t left = p->n_items - begin, n = left / parts / p->grain * p->grain;
        n = n < p->grain ? p->grain : n;
        end = left < n ? p->n_items : begin + n;
        if (!atomic_compare_exchange_weak(&p->next, &begin, end))
            continue;
        p->fn(p->ctx, begin, end, thread);
        begin = atomic_load(&p->next);
    }
}

/* Wait for a generation other than `seen`. */
static uint32_t wait_change(struct pool *p, uint32_t seen)
{
    for (;;) {
        int spins = p->may_spin ? SPINS : 0;
        uint32_t g;
        while ((g = atomic_load(&p->generation)) == seen && spins > 0) {
            if (spins > LINGER && !atomic_load(&p->active))
                spins = LINGER;
            relax();
            spins--;
        }
        if (g != seen)
            return g;
        atomic_fetch_add(&p->sleepers, 1);
        if (atomic_load(&p->generation) == seen && !atomic_load(&p->stop))
            syscall(SYS_futex, &p->generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        atomic_fetch_sub(&p->sleepers, 1);
        if (atomic_load(&p->stop))
            return seen;
    }
}

static void leave(struct pool *p)
{
    if (atomic_fetch_sub(&p->inside, 1) == 1 && atomic_load(&p->waiting))
        syscall(SYS_futex, &p->inside, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The caller, with nothing left to do, until the last helper has left. */
static void wait_empty(struct pool *p)
{
    uint32_t n;
    for (int spins = p->may_spin ? SPINS : 0; (n = atomic_load(&p->inside)) && spins; spins--)
        relax();
    if (n == 0)
        return;
    atomic_store(&p->waiting, true);
    while ((n = atomic_load(&p->inside)))
        syscall(SYS_futex, &p->inside, FUTEX_WAIT_PRIVATE, n, NULL, NULL, 0);
    atomic_store(&p->waiting, false);
}

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct pool *p = h->pool;
    uint32_t seen = 0;
    pthread_setname_np(pthread_self(), "pool");
    while (!atomic_load(&p->stop)) {
        seen = wait_change(p, seen);
        if (!(seen & 1))
            continue;
        atomic_fetch_add(&p->inside, 1);
        if (atomic_load(&p->generation) == seen) /* still open: the caller waits until we leave */
            work(p, h->index);
        leave(p);
    }
    return NULL;
}

int pool_open(int n_threads, struct pool **ret)
{
    if (n_threads < 1 || n_threads > 1024)
        return -EINVAL;
    struct pool *p = aligned_alloc(LINE, sizeof(*p));
    if (!p)
        return -ENOMEM;
    *p = (struct pool){.n_threads = n_threads, .may_spin = cpu_count() >= n_threads};
    p->helpers = calloc((size_t)n_threads, sizeof(*p->helpers));
    if (!p->helpers) {
        free(p);
        return -ENOMEM;
    }
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = 0;
    for (int i = 1; i < n_threads && r == 0; i++) {
        struct helper *h = &p->helpers[p->n_started];
        *h = (struct helper){.pool = p, .index = i};
        r = pthread_create(&h->thread, NULL, helper_main, h);
        if (r == 0)
            p->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r) {
        pool_close(p);
        return -r;
    }
    *ret = p;
    return 0;
}

static void wake(struct pool *p)
{
    if (atomic_load(&p->sleepers))
        syscall(SYS_futex, &p->generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->generation, 2);
    syscall(SYS_futex, &p->generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    for (int i = 0; i < p->n_started; i++)
        pthread_join(p->helpers[i].thread, NULL);
    free(p->helpers);
    free(p);
}

void pool_pin(struct pool *p)
{
    int cpus[MAX_CPUS];
    memset(cpus, 0xff, sizeof(cpus));
    cpu_order(cpus, MAX_CPUS);
    for (int i = 0; i < p->n_started; i++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (p->helpers[i].index >= MAX_CPUS || cpus[p->helpers[i].index] < 0)
            continue; /* more threads than processors */
        CPU_SET(cpus[p->helpers[i].index], &set);
        pthread_setaffinity_np(p->helpers[i].thread, sizeof(set), &set);
    }
}

int pool_threads(const struct pool *p)
{
    return p->n_threads;
}

void pool_begin(struct pool *p)
{
    atomic_store(&p->active, true);
}

void pool_end(struct pool *p)
{
    atomic_store(&p->active, false);
}

void pool_run(struct pool *p, uint32_t n_items, uint32_t grain, pool_fn fn, void *ctx)
{
    if (n_items == 0)
        return;
    if (p->n_started == 0 || n_items <= grain) {
        fn(ctx, 0, n_items, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n_items = n_items;
    p->grain = grain;
    atomic_store(&p->next, 0);
    atomic_fetch_add(&p->generation, 1); /* odd: open */
    wake(p);
    work(p, 0);
    atomic_fetch_add(&p->generation, 1); /* even: nobody enters any more */
    wait_empty(p);
}
