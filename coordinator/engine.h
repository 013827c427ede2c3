/* SPDX-License-Identifier: MIT
 * The running pipeline as the commands see it: submit token ids, get tokens. Owns the stages (supervise.c), rings and the
 * schedule (schedule.c). A stage that ends or hangs is started again and requests go on where they were; they see a pause.
 * Thread: the loop's; callbacks run inside engine_run. */
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
struct journal_file;
struct journal_request;
struct monitor;
struct monitor_snapshot;
struct request;

struct engine_options {
    const char *stage_dir;  /* where loader, npu_worker, gpu_worker lie; NULL = see proto/place.h */
    uint64_t command_bytes; /* what the command will hold in the coordinator beside the pipeline */
    const char *trace;      /* a file to be made, for what happens and when (tracer.h); NULL: none */
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

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_RECOVERING, ENGINE_FAILED };
const char *engine_state_name(enum engine_state s); /* "loading", "ready", "recovering", "failed" */
/* ret_reason: a sentence for people, borrowed until the loop runs again; never NULL. */
enum engine_state engine_state(const struct engine *e, const char **ret_reason);
/* For those who wait for a snapshot inside callbacks of the loop. NULL before the stages are started. */
struct monitor *engine_monitor(const struct engine *e);

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
    uint32_t n_cached;                              /* of the prompt, in the KV cache already */
    uint64_t queue_ns, prefill_ns, decode_ns;       /* prefill: until the first token's logits are there */
    struct chunk_times prefill_times, decode_times; /* summed over the request's chunks */
    uint32_t prefill_chunks, decode_chunks;
    bool numerics_changed;        /* a worker went on with another backend meanwhile */
    struct journal_file *journal; /* with keep_journal: `finished` takes it. NULL: there is none */
};

struct request_params {
    const uint32_t *ids; /* prompt, copied; 1 <= n_ids <= context */
    uint32_t n_ids;
    uint32_t max_tokens; /* 0: prompt only (eval, perplexity) */
    bool all_logits;     /* logits callback for every prompt position, otherwise never */
    bool ignore_end;     /* bench: go on after end tokens */
    struct sample_params sample;
    uint32_t choice;
    /* A request that another process began (coordinator/journal.h): tokens it has generated; they count in max_tokens and are not
     * told again. journal: taken; NULL: a new one. */
    const uint32_t *done;
    uint32_t n_done;
    struct journal_file *journal;
    bool reuse;      /* of the KV cache that an earlier such request left, for a prompt that begins as it; never with all_logits */
    bool no_journal; /* whom the answer is for goes with this process */
    bool keep_journal; /* its file outlives it, until whoever it is for has the answer */
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
/* The next request that a killed coordinator left unfinished (journal_claim, which says what is returned and to whom it belongs).
 */
int engine_left_request(struct engine *e, struct journal_request *ret, struct journal_file **ret_file, uint32_t *ret_others,
                        struct err *err);
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

struct engine_pool { /* npu_worker's, in bytes: of npu.memory; the most in use at once, the largest free part; in use for each use
                      */
    uint64_t bytes, peak, largest, weights, kv, scratch, tiles, instructions;
    bool limited; /* false: npu.memory sets no limit, and bytes and largest are those of the machine's memory */
};

struct engine_process_stats {
    const char *name;
    int pid; /* 0: does not run */
    char backend[64];
    bool working;   /* a stage: on a chunk at the moment, */
    uint32_t layer; /* at this layer */
    bool answered;  /* a stage: what it counts itself is of now; else of when it last answered */
    /* Bytes that it accounts for: now, at most so far, and as planned; of all, what it may take, and what it has besides. */
    uint64_t budget[BUDGET_CATEGORIES], peak[BUDGET_CATEGORIES], planned[BUDGET_CATEGORIES];
    uint64_t total_peak, limit, fixed;
    uint64_t rss, pss, anon;    /* pss: 0 where it was not asked for; anon: private pages */
    uint64_t usage, peak_bytes; /* usage: of its cgroup, 0 without; peak_bytes: likewise, or else the most that was seen */
    uint64_t cap, kills;        /* kills: by the kernel, for the cap */
    bool cap_enforced;          /* by a cgroup of ours */
    bool spawned;               /* false: others start it, and enforce its cap */
    uint64_t restarts;
    uint64_t busy_ns, idle_ns, blocked_ns, chunks, bytes_read;
    uint64_t stream_visits, stream_hits, stream_wait_ns, stream_wait_max_ns; /* of streamed layers: see msg_stats */
    uint32_t n_stream_layers, stream_layer_us[512]; /* waited for each layer, up to the last streamed one */
    uint64_t products, offloaded;                   /* npu_worker with an NPU: operations (attn_backend.h), and those it had */
    struct engine_pool pool;                        /* npu_worker; bytes is 0 in others */
    char last_reason[256];                          /* of the last restart; "" */
};
/* What the last death of a stage cost, from when it was noticed on. */
struct engine_recovery {
    uint32_t n;            /* so far; 0: none, and nothing else means anything */
    const char *stage;     /* the one that ended first */
    uint64_t detect_ns;    /* before: how long it hung; 0: its end was told at once */
    uint64_t restart_ns;   /* until it ran again and was configured, */
    uint64_t remap_ns;     /* until all stages had their weights and new rings, */
    uint64_t reprefill_ns; /* and until a request was further than before; 0: none ran */
    uint64_t pause_ns;     /* the sum of these three */
};
const struct engine_recovery *engine_last_recovery(const struct engine *e);

/* Asks every stage and waits for the answers. */
int engine_stats(struct engine *e, struct monitor_snapshot *ret, struct err *err);

#endif
