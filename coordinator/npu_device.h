/* SPDX-License-Identifier: MIT
 * Which NPU npu_worker would compute on, and what its operators take of a model, asked of the program itself before the plan is
 * made (device_ask.h). Thread: main, before the loop runs. */
#ifndef TANDEM_COORDINATOR_NPU_DEVICE_H
#define TANDEM_COORDINATOR_NPU_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct err;

#define NPU_DEVICE_GROUPS 4

struct npu_device {
    bool xrt;       /* else the cpu backend */
    uint64_t fixed; /* bytes of NPU memory whatever the chunk, */
    struct {
        uint32_t tokens;
        uint64_t bytes;
    } groups[NPU_DEVICE_GROUPS]; /* and for each so many tokens of a chunk */
    uint64_t scratch;            /* bytes of working memory of a thread */
    uint64_t moved;              /* bytes of weights that go to the NPU for a chunk, of one layer, where they do not stay there */
    uint64_t kept;               /* bytes of NPU memory of a layer whose weights stay */
    uint64_t heap;               /* bytes that the driver locks for itself in npu_worker; 0: this flavour's locks nothing */
    uint64_t lockable;           /* of it and of NPU memory together, at most: the limit of locked memory, where that counts */
    char name[256];
    char reason[768]; /* why not, where the config has a manifest; "" else */
};

/* By npu.backend: cpu asks nobody, nor does auto without a manifest; auto takes what there is, and says in `reason` why not; xrt
 * without a device or a manifest is an error. */
int npu_device_find(const struct config *c, const char *stage_dir, struct npu_device *ret, struct err *err);
uint64_t npu_device_bytes(const struct npu_device *d, uint32_t chunk_tokens); /* of NPU memory */

#endif
