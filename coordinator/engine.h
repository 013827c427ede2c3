/* SPDX-License-Identifier: MIT
 * The running pipeline as the commands see it: submit token ids, get tokens. Owns the stages (supervise.c), rings and the
 * schedule (schedule.c). Thread: the loop's; callbacks run inside engine_run. */
#ifndef TANDEM_COORDINATOR_ENGINE_H
#define TANDEM_COORDINATOR_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/plan.h"
#include "coordinator/sample.h"
#include "proto/chunk.h"

struct config;
struct engine;
struct uv_loop_s;
struct err;
struct gguf;
struct request;

struct engine_options {
    const char *stage_dir;  /* where loader, npu_worker, gpu_worker lie; NULL = beside the coordinator */
    uint64_t command_bytes; /* what the command will hold in the coordinator beside the pipeline */
    int *ret_signal;        /* may be NULL: the signal that ended engine_open with -EINTR */
    /* Both or none. started: the loop and the plan are there, the stages are not. stopping: first step of engine_close, also of an
     * engine_open that fails; handles that `started` put into the loop are closed here, and requests cancelled. */
    int (*started)(void *ctx, struct engine *e, struct err *err);
    void (*stopping)(void *ctx);
    void *ctx;
};

/* Plans, makes rings, starts the stages and waits until all are ready. SIGINT, SIGTERM and SIGHUP end engine_run with -EINTR.
 * g, c: borrowed until engine_close. */
int engine_open(const struct config *c, const struct gguf *g, const struct engine_options *o, struct engine **ret, struct err *err);
void engine_close(struct engine *e); /* stops the stages and waits for their exit; NULL is fine */
const struct plan *engine_plan(const struct engine *e);
struct uv_loop_s *engine_loop(struct engine *e);

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_FAILED };
/* ret_reason: a sentence for people, borrowed until the loop runs again; never NULL. */
enum engine_state engine_state(const struct engine *e, const char **ret_reason);

enum engine_finish {
    ENGINE_FINISH_STOP,
    ENGINE_FINISH_LENGTH,
    ENGINE_FINISH_CONTEXT,
    ENGINE_FINISH_CANCELLED,
    ENGINE_FINISH_ERROR
};
const char *engine_finish_name(enum engine_finish f); /* "stop", "length", "context", "cancelled", "error" */

struct request_result {
    enum engine_finish finish;
    const struct err *err; /* ENGINE_FINISH_ERROR */
    uint32_t n_prompt, n_output;
    uint64_t queue_ns, prefill_ns, decode_ns;       /* prefill: until the first token's logits are there */
    struct chunk_times prefill_times, decode_times; /* summed over the request's chunks */
    uint32_t prefill_chunks, decode_chunks;
};

struct request_params {
    const uint32_t *ids; /* prompt, copied; 1 <= n_ids <= context */
    uint32_t n_ids;
    uint32_t max_tokens; /* 0: prompt only (eval, perplexity) */
    bool all_logits;     /* logits callback for every prompt position, otherwise never */
    bool ignore_end;     /* bench: go on after end tokens */
    struct sample_params sample;
    uint32_t choice;
    /* May be NULL. scored: before token, the row that the token was chosen from and a sampler to look at it with, borrowed for the
     * call. token: every generated token, the end token excluded. logits: row for prompt position pos, borrowed for the call. */
    void (*scored)(void *ctx, struct sampler *s, uint32_t id, const float *row);
    void (*token)(void *ctx, uint32_t id, uint32_t index);
    void (*logits)(void *ctx, uint32_t pos, const float *row, uint32_t vocab);
    void (*finished)(void *ctx, const struct request_result *r);
    bool (*is_end)(void *ctx, uint32_t id); /* NULL: no end tokens */
    void *ctx;
};

/* Queues; runs when a sequence slot is free, in order. The request frees itself after `finished`. */
int engine_submit(struct engine *e, const struct request_params *p, struct request **ret, struct err *err);
void engine_cancel(struct engine *e, struct request *r);
/* Until every request has finished (0), a signal came (-EINTR; requests stay), or the pipeline failed (they have finished). */
int engine_run(struct engine *e, struct err *err);
/* Until a signal came (-EINTR) or the pipeline failed. Callbacks of the loop submit and cancel, then call engine_pump. */
int engine_serve(struct engine *e, struct err *err);
void engine_pump(struct engine *e);

/* Run the loop until fd can be read (0), a signal came (-EINTR) or the pipeline failed. */
int engine_wait_readable(struct engine *e, int fd, struct err *err);
/* The signal that ended engine_run or engine_wait_readable with -EINTR; 0 = none. */
int engine_signal(const struct engine *e);
/* The caller has answered the signal: engine_run may go on. */
void engine_forget_signal(struct engine *e);

/* From now on the workers sum the squares of what enters their matrices. area: [0] npu_worker's, [1] gpu_worker's, in the layout of
 * model/collect.h; they live until engine_close, are read when nothing runs, and count as the command's memory. Once. */
int engine_collect(struct engine *e, double *ret_area[2], struct err *err);

struct engine_process_stats {
    const char *name;
    int pid;
    char backend[64];
    uint64_t budget[BUDGET_CATEGORIES], total_peak;
    uint64_t rss, pss, peak_bytes; /* peak_bytes: cgroup peak where there is one, else VmHWM less shared pages */
    uint64_t cap;
    bool cap_enforced; /* by a cgroup */
    uint64_t busy_ns, idle_ns, blocked_ns, chunks, bytes_read;
    uint64_t products, offloaded; /* npu_worker with an NPU: matrix products, and those that it made */
};
/* Asks every stage and waits for the answers. ret: [CONFIG_PROCESSES]. */
int engine_stats(struct engine *e, struct engine_process_stats *ret, struct err *err);
/* The same inside a callback of the loop: `done` comes later, with NULL or why there are no numbers. -EBUSY while another one
 * waits, -EAGAIN while the stages start. */
int engine_stats_ask(struct engine *e, struct engine_process_stats *ret, void (*done)(void *ctx, const struct err *failed),
                     void *ctx, struct err *err);

#endif
