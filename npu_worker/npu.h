/* SPDX-License-Identifier: MIT
 * The npu_worker stage: input 0 = gpu -> npu (x), input 1 = loader -> npu (x0); output 0 = npu -> gpu (h). */
#ifndef TANDEM_NPU_WORKER_NPU_H
#define TANDEM_NPU_WORKER_NPU_H

#include "proto/stage.h"

extern const struct stage_ops npu_ops;

#endif
