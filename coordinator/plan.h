/* SPDX-License-Identifier: MIT
 * The memory plan: computed from config and GGUF metadata before anything is loaded; the same numbers size rings, chunks and
 * budgets. Threads: plain data. */
#ifndef TANDEM_COORDINATOR_PLAN_H
#define TANDEM_COORDINATOR_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "coordinator/gpu_device.h"
#include "coordinator/machine.h"
#include "coordinator/npu_device.h"
#include "model/hparams.h"
#include "model/residency.h"
#include "proto/budget.h"
#include "proto/config.h"

struct err;
struct gguf;

/* What there is to plan for; borrowed. */
struct plan_machine {
    const struct gpu_device *gpu;
    const struct npu_device *npu;
    struct machine memory; /* zeroes: not known, and not looked at */
};

/* KEY=VALUE of the configuration; of some, two keys change together. */
struct plan_change {
    const char *key, *also; /* also: NULL, or gets the same value; static */
    char value[32];
};
#define PLAN_CHANGES 12

/* Why the smallest plan does not fit, and with which changes one would. */
struct plan_refusal {
    char text[1664];                        /* "": it fits */
    struct plan_change raise[PLAN_CHANGES]; /* limits, all of them; */
    struct plan_change other[PLAN_CHANGES]; /* or one of these, each of which is enough */
    int n_raise, n_other;
};

struct plan {
    struct hparams hparams;
    uint32_t context, sequences, chunk_tokens, ring_slots, token_slots, logits_rows, logits_slots;
    int kv_type;
    uint32_t kv_pages;                            /* of the KV cache, shared by all sequences */
    uint64_t total_cap;                           /* of all processes together, from config; 0: none */
    uint64_t npu_pool;                            /* bytes that npu.memory allows: 80% of it; 0: no limit */
    struct residency residency[CONFIG_PROCESSES]; /* of the workers' layers */
    uint64_t streamed_bytes;                      /* of weights, read from the file for a token */
    uint32_t npu_resident;                        /* layers whose weights stay on the NPU, unpacked */
    uint32_t npu_threads, gpu_threads;
    bool pin_threads; /* the workers' threads share cores in turns: each stays on its own */
    struct {
        uint64_t bytes, time_ns, inode; /* of the model file, by who opens the pipeline; 0: not looked at */
    } model;
    uint64_t tensor_bytes;    /* of the file, the tied head counted once */
    uint64_t token_bytes;     /* of weights, all of which are read for a token, */
    uint64_t attention_bytes; /* and those of npu_worker */
    struct machine machine;
    double disk_rate; /* bytes/s of the model file's disk, likewise */
    double read_rate; /* bytes/s of memory, measured by who prints the plan; 0: not measured */
    uint64_t worker_slot_bytes, token_slot_bytes, out_slot_bytes;
    struct {
        uint64_t bytes[BUDGET_CATEGORIES];
        uint64_t fixed; /* program, libraries, heap: stated, not budgeted */
        uint64_t total; /* sum of the above; shared rings count for the coordinator only */
        bool others;    /* start it, and enforce its cap */
        uint64_t cap;   /* from config; else total + 10% + 16 MiB, or what memory.total or the machine leaves of that */
    } process[CONFIG_PROCESSES];
    struct gpu_device gpu;
    struct npu_device npu;
    uint64_t device_bytes; /* on a device with memory of its own: weights and scratch there, in no process */
    struct plan_refusal refusal;
    uint32_t n_types;
    uint8_t types[8192]; /* as CONFIGURE carries them */
};

/* command_bytes: what a command holds in the coordinator besides. -ENOMEM with the remedy when a cap does not fit; *ret is whole
 * then, too. */
int plan_make(const struct config *c, const struct gguf *g, const struct plan_machine *m, uint64_t command_bytes, struct plan *ret,
              struct err *err);
void plan_print(const struct plan *p, FILE *f);
int plan_print_json(const struct plan *p, FILE *f, struct err *err);
const char *plan_process_name(enum config_process p);
uint64_t plan_bytes(const struct plan *p); /* of all processes; weights that are streamed are in it with their slots */
/* More than the machine, or a group around us, has free now, page cache that can be taken back counted as free: it may start, and
 * memory of others has to make way. False: or not known. */
bool plan_lacks_memory(const struct plan *p);
bool plan_streams(const struct plan *p); /* weights of some layers are read for every pass */

#endif
