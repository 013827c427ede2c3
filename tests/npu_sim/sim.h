/* SPDX-License-Identifier: MIT
 * The simulated NPU, a driver library (libxrt_core.so.2) for the real libxrt_coreutil 2.13: what its files share. Built for tests
 * only, never installed. XRT calls it on its own threads; one lock guards everything but the operators, which run on the device's
 * thread alone.
 *
 * Environment, read when the device is probed or opened:
 *   NPU_SIM=key=value,...   faults and speed (sim_faults.c lists the keys)
 *   NPU_SIM_REPORT=FILE     counters, written when a device is closed and at exit: "key value" lines */
#ifndef TANDEM_TESTS_NPU_SIM_H
#define TANDEM_TESTS_NPU_SIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* sim_faults.c */
enum sim_fault {
    SIM_NO_DEVICE,    /* 1: there is none */
    SIM_CRASH_OPEN,   /* 1: abort() when it is opened */
    SIM_HANG_OPEN,    /* 1: opening does not return */
    SIM_LOAD_FAIL,    /* 1: xclbins are refused */
    SIM_MEMORY,       /* bytes of buffers at most, command packets not counted: ENOMEM */
    SIM_MEMLOCK,      /* likewise, but EAGAIN, as a locked mapping above RLIMIT_MEMLOCK */
    SIM_MEMLOCK_OPEN, /* 1: opening throws what AMD's driver library throws where its heap may not be locked */
    SIM_SYNC_FAIL,    /* number of the sync that fails, from 1; all faults below likewise */
    SIM_SUBMIT_FAIL,
    SIM_HANG_AT,    /* the run never completes */
    SIM_TIMEOUT_AT, /* ERT_CMD_STATE_TIMEOUT */
    SIM_ERROR_AT,   /* ERT_CMD_STATE_ERROR */
    SIM_ABORT_AT,   /* ERT_CMD_STATE_ABORT */
    SIM_CRASH_AT,   /* abort() */
    SIM_DELAY_US,   /* that each run takes longer */
    SIM_CORNER, /* 1: of a matrix product only the first row and columns are computed, of attention the first head; the rest stays
                   as it was */
    SIM_FAULTS
};
void sim_faults_read(void);
uint64_t sim_fault(enum sim_fault f); /* 0 = not set */

/* sim_counters.c */
enum sim_counter {
    SIM_OPENS,
    SIM_LOADS,
    SIM_BUFFERS,
    SIM_BYTES, /* now */
    SIM_PEAK_BYTES,
    SIM_SYNCS_TO,
    SIM_SYNCS_FROM,
    SIM_BYTES_TO,
    SIM_BYTES_FROM,
    SIM_SUBMITS,
    SIM_RUNS, /* completed */
    SIM_COUNTERS
};
void sim_count(enum sim_counter c, uint64_t n);
void sim_count_allocated(int64_t bytes);
uint64_t sim_counter(enum sim_counter c);
void sim_counters_report(void);

/* sim_memory.c: all under sim_lock */
extern pthread_mutex_t sim_lock;
struct sim_bo {
    void *host, *device; /* apart, but for command packets */
    size_t bytes;
    unsigned flags;
    uint64_t address; /* the device's */
    bool used, borrowed;
};
#define SIM_BOS 8192u
/* Number of the buffer, from 1; 0 with errno. user: memory of the caller's, or NULL. */
unsigned sim_memory_alloc(void *user, size_t bytes, unsigned flags);
void sim_memory_free(unsigned bo);
struct sim_bo *sim_memory_get(unsigned bo);          /* NULL: no such buffer */
void *sim_memory_at(uint64_t address, size_t bytes); /* the device's view; NULL where it is not all one buffer */

/* sim_operators.c */
/* registers: what XRT wrote for the kernel's arguments. False: they do not fit an operator. */
bool sim_operators_run(const uint32_t *registers, unsigned n_registers);
/* sim_gemm.c: c = a b with f32 sums in the order of k; corner: the first row and the first SIM_GEMM_BLOCK columns of it */
#define SIM_GEMM_BLOCK 256u
bool sim_gemm(const uint16_t *a, const uint16_t *b, uint16_t *c, size_t m, size_t k, size_t n, bool b_nk, bool corner);

/* sim_queue.c */
int sim_queue_submit(unsigned bo);
int sim_queue_wait(int timeout_ms); /* 1: something completed since the last call; 0: nothing */
void sim_queue_restart(void);       /* runs are counted from 1 again */

/* sim_glue.cpp */
struct axlf;
void sim_glue_refuse_lock(void); /* throws */
void *sim_glue_attach(void *handle, unsigned index);
void sim_glue_detach(void *core);
int sim_glue_register(void *core, const struct axlf *top);

static inline float sim_float(uint16_t bf16)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)bf16 << 16};
    return v.f;
}
static inline uint16_t sim_bf16(float f) /* nearest, ties to even; NaN stays NaN */
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    if ((v.u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)((v.u + 0x7fff + (v.u >> 16 & 1)) >> 16);
}

#endif
