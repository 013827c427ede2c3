/* SPDX-License-Identifier: MIT
 * The gpu_worker stage: input 0 = npu -> gpu (h); output 0 = gpu -> npu (x), output 1 = gpu -> coordinator (logits, completions).
 */
#ifndef TANDEM_GPU_WORKER_GPU_H
#define TANDEM_GPU_WORKER_GPU_H

#include "proto/stage.h"

extern const struct stage_ops gpu_ops;

#endif
