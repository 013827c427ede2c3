/* SPDX-License-Identifier: MIT
 * The device's thread: takes command packets in order, runs the operator that the instruction stream names, writes the state that
 * XRT polls. Faults of runs happen here. A run that hangs leaves its packet untouched; the ones behind it are still taken, since it
 * is for the caller to stop. */
#include "tests/npu_sim/sim.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <ert.h>

#define DEPTH 1024u

static unsigned queue[DEPTH];
static uint64_t head, tail, completed, seen, run_number, submit_number;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static bool running;

static uint32_t state_of_run(const struct ert_start_kernel_cmd *c)
{
    unsigned masks = 1 + c->extra_cu_masks; /* words before the registers */
    bool ok = c->opcode == ERT_START_CU && c->count >= masks && sim_operators_run(c->data + c->extra_cu_masks, c->count - masks);
    return ok ? ERT_CMD_STATE_COMPLETED : ERT_CMD_STATE_ERROR;
}

/* 0: it hangs. The lock is free while the operator works: buffers are not freed under a run that is waited for. */
static uint32_t execute(const struct ert_start_kernel_cmd *c, uint64_t number)
{
    if (sim_fault(SIM_DELAY_US))
        usleep((useconds_t)sim_fault(SIM_DELAY_US));
    if (number == sim_fault(SIM_HANG_AT))
        return 0;
    if (number == sim_fault(SIM_CRASH_AT))
        abort();
    if (number == sim_fault(SIM_TIMEOUT_AT))
        return ERT_CMD_STATE_TIMEOUT;
    if (number == sim_fault(SIM_ERROR_AT))
        return ERT_CMD_STATE_ERROR;
    if (number == sim_fault(SIM_ABORT_AT))
        return ERT_CMD_STATE_ABORT;
    return state_of_run(c);
}

static void *device(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&sim_lock);
    for (;;) {
        while (head == tail)
            pthread_cond_wait(&work, &sim_lock);
        const struct sim_bo *b = sim_memory_get(queue[head++ % DEPTH]);
        uint64_t number = ++run_number;
        if (!b)
            continue;
        struct ert_start_kernel_cmd *c = b->host;
        pthread_mutex_unlock(&sim_lock);
        uint32_t state = execute(c, number);
        pthread_mutex_lock(&sim_lock);
        if (state == 0)
            continue;
        sim_count(SIM_RUNS, state == ERT_CMD_STATE_COMPLETED);
        __atomic_store_n(&c->header, (c->header & ~0xfu) | state, __ATOMIC_RELEASE);
        completed++;
        pthread_cond_broadcast(&done);
    }
    return NULL;
}

int sim_queue_submit(unsigned bo)
{
    pthread_t thread;
    int r = 0;
    pthread_mutex_lock(&sim_lock);
    if (!running && pthread_create(&thread, NULL, device, NULL) == 0) {
        pthread_detach(thread);
        running = true;
    }
    submit_number++;
    if (!running || tail - head == DEPTH || submit_number == sim_fault(SIM_SUBMIT_FAIL)) {
        r = -EIO;
    } else {
        queue[tail++ % DEPTH] = bo;
        sim_count(SIM_SUBMITS, 1);
        pthread_cond_signal(&work);
    }
    pthread_mutex_unlock(&sim_lock);
    return r;
}

int sim_queue_wait(int timeout_ms)
{
    struct timespec until;
    int r = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&sim_lock);
    while (seen == completed && r == 0)
        r = pthread_cond_timedwait(&done, &sim_lock, &until);
    r = seen != completed;
    seen = completed;
    pthread_mutex_unlock(&sim_lock);
    return r;
}

void sim_queue_restart(void)
{
    run_number = submit_number = 0;
}
