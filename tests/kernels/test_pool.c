/* SPDX-License-Identifier: MIT
 * The thread pool: every item exactly once, results visible when the loop returns, for any number of threads (more than processors
 * included), with and without spinning, and clean under the thread sanitizer. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/pool.h"

#define ITEMS 1000

struct loop {
    uint32_t count[ITEMS]; /* plain memory: an item has one owner */
    uint32_t value, n_items, grain;
    int n_threads;
    _Atomic int errors;
};

static void count_items(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct loop *l = ctx;
    uint32_t most = (l->n_items - begin) / (4 * (uint32_t)l->n_threads);
    bool small = l->n_threads == 1 || end - begin <= (most > l->grain ? most : l->grain);
    if (thread < 0 || thread >= l->n_threads || begin >= end || end > l->n_items || !small || begin % l->grain)
        l->errors++;
    for (uint32_t i = begin; i < end; i++)
        l->count[i] += l->value;
}

static void check_loops(int n_threads, int loops)
{
    static const uint32_t sizes[] = {0, 1, 2, 7, 64, 999, 1000}, grains[] = {1, 3, 64, 5000};
    static struct loop l;
    struct pool *p = NULL;
    uint32_t want[ITEMS] = {0};
    memset(&l, 0, sizeof(l));
    l.n_threads = n_threads;
    assert_int_equal(pool_open(n_threads, &p), 0);
    assert_int_equal(pool_threads(p), n_threads);
    for (int i = 0; i < loops; i++) {
        uint32_t n = sizes[i % 7];
        if (i % 20 == 0)
            pool_begin(p);
        l.value = (uint32_t)i;
        l.n_items = n;
        l.grain = grains[i / 7 % 4];
        pool_run(p, n, l.grain, count_items, &l);
        for (uint32_t k = 0; k < n; k++)
            want[k] += (uint32_t)i;
        assert_memory_equal(l.count, want, sizeof(want));
        if (i % 20 == 9)
            pool_end(p);
    }
    assert_int_equal(l.errors, 0);
    pool_close(p);
}

static void test_every_item_once(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        check_loops(n, 2000);
    check_loops(16, 200);
}

static int n_tasks(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void test_threads_come_and_go(void **state)
{
    (void)state;
    struct pool *p;
    int before = n_tasks();
    assert_int_equal(pool_open(1, &p), 0);
    assert_int_equal(n_tasks(), before);
    pool_close(p);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(pool_open(4, &p), 0);
        assert_int_equal(n_tasks(), before + 3);
        pool_close(p); /* also of threads that have not yet run */
    }
    assert_int_equal(n_tasks(), before);
    pool_close(NULL);
}

static int place; /* where the helper belongs */

static void see_place(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct loop *l = ctx;
    (void)begin;
    (void)end;
    if (thread == 0)
        return;
    if (sched_getcpu() != place || cpu_count() != 1)
        l->errors++;
    l->value++;
}

/* cpu_order names every processor once, and a pinned helper runs on its own. */
static void test_pinned(void **state)
{
    (void)state;
    static struct loop l;
    struct pool *p;
    int order[CPU_SETSIZE], n = cpu_count(), cores = cpu_order(order, CPU_SETSIZE);
    cpu_set_t seen, may;
    CPU_ZERO(&seen);
    assert_true(cores >= 1 && cores <= n);
    sched_getaffinity(0, sizeof(may), &may);
    for (int i = 0; i < n; i++) {
        assert_true(CPU_ISSET(order[i], &may) && !CPU_ISSET(order[i], &seen));
        CPU_SET(order[i], &seen);
    }
    assert_int_equal(pool_open(2, &p), 0);
    pool_pin(p);
    if (n >= 2) {
        place = order[1];
        pool_begin(p);
        while (l.value == 0)
            pool_run(p, 4, 1, see_place, &l);
        pool_end(p);
    }
    assert_int_equal(l.errors, 0);
    pool_close(p);
    sched_getaffinity(0, sizeof(seen), &seen);
    assert_true(CPU_EQUAL(&seen, &may)); /* the caller stays free */
    assert_int_equal(pool_open(n + 1, &p), 0);
    pool_pin(p); /* more threads than processors: the last one is left alone */
    check_loops(2, 100);
    pool_close(p);
}

static void test_refusals(void **state)
{
    (void)state;
    struct pool *p = NULL;
    assert_int_equal(pool_open(0, &p), -EINVAL);
    assert_int_equal(pool_open(-3, &p), -EINVAL);
    assert_int_equal(pool_open(1 << 20, &p), -EINVAL);
    assert_null(p);
}

static void see_mask(void *ctx, uint32_t begin, uint32_t end, int thread)
{
    struct loop *l = ctx;
    sigset_t now;
    (void)begin;
    (void)end;
    if (thread == 0) /* leave the items to the helpers until one has looked */
        return;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    if (!sigismember(&now, SIGTERM) || !sigismember(&now, SIGINT))
        l->errors++;
    l->value++;
}

static void test_signals_blocked(void **state)
{
    (void)state;
    static struct loop l;
    struct pool *p;
    sigset_t now;
    assert_int_equal(pool_open(2, &p), 0);
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    assert_false(sigismember(&now, SIGTERM));
    pool_begin(p);
    while (l.value == 0) /* a helper that sleeps too long for one loop gets the next */
        pool_run(p, 64, 1, see_mask, &l);
    pool_end(p);
    assert_int_equal(l.errors, 0);
    pool_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once), cmocka_unit_test(test_threads_come_and_go), cmocka_unit_test(test_pinned),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_signals_blocked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
