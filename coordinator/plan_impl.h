/* SPDX-License-Identifier: MIT
 * What the files of the plan share: plan.c (what a choice takes), plan_fit.c (which choice fits, and what to change when none
 * does). Nobody else includes it. Plain data; any thread. */
#ifndef TANDEM_COORDINATOR_PLAN_IMPL_H
#define TANDEM_COORDINATOR_PLAN_IMPL_H

#include "coordinator/plan.h"

#define PLAN_MARGIN (UINT64_C(8) << 20) /* between a plan and a cap that a total leaves no more room for */

struct plan_inputs {
    const struct config *config;
    const struct plan_machine *machine;
    uint64_t command_bytes;
    bool may_stream; /* false: layers are streamed only where the config says how many */
    struct hparams hparams;
    uint64_t layers[2][512];  /* bytes of npu_worker's and of gpu_worker's segments */
    uint64_t in_file[2][512]; /* bytes of the same tensors as they lie in the file */
    uint64_t head, least, tensor_bytes;
    uint32_t n_types;
    uint8_t types[8192];
};

struct plan_choice {
    uint32_t chunk, ring_slots, streamed[2]; /* streamed: layers of npu_worker, of gpu_worker */
    uint64_t pages;                          /* of the KV cache */
    uint32_t npu_resident;
};

enum plan_limit {
    PLAN_FITS,
    PLAN_CAP, /* of one process, */
    PLAN_TOTAL,
    PLAN_LOCKED, /* memory, by an NPU's driver */
    PLAN_NPU_POOL,
    PLAN_GPU_POOL,
    PLAN_DEVICE,
    PLAN_MACHINE
};

uint32_t plan_stream_slots(const struct config *c, uint32_t n_layers);          /* as the config says; at most half of the layers */
uint64_t plan_npu_memory(const struct config *c, const struct npu_device *npu); /* or its default; 0: no pool */
uint64_t plan_locked(const struct plan *p);                                     /* bytes, by an NPU's driver: buffers and heap */
/* The whole plan for a choice, whether it fits or not. */
void plan_compose(const struct plan_inputs *in, const struct plan_choice *ch, struct plan *ret);
/* The first limit that a plan passes; *ret_process: of PLAN_CAP. */
enum plan_limit plan_passes(const struct plan_inputs *in, const struct plan *p, enum config_process *ret_process);

/* -ENOMEM: *ret is the smallest one, and does not fit. */
int plan_choose(const struct plan_inputs *in, struct plan *ret);
/* Why p, the smallest plan there is, does not fit, and the smallest change with which one would: its `refusal`. */
void plan_refuse(const struct plan_inputs *in, struct plan *p);

#endif
