/* SPDX-License-Identifier: MIT
 * How many bytes of KV pool and scratch the stages take for a configuration: pure functions that both the memory plan and the
 * stages' allocations use, so that plan and reality cannot differ. Threads: any. */
#ifndef TANDEM_MODEL_WORK_PLAN_H
#define TANDEM_MODEL_WORK_PLAN_H

#include <stdint.h>

#include "model/hparams.h"

/* KV pool of npu_worker. */
uint64_t work_plan_kv_bytes(const struct hparams *h, uint32_t context, uint32_t sequences, uint32_t chunk_tokens, uint32_t ring_slots,
                            int kv_type);
/* Scratch of the attention backend (CPU). types: as CONFIGURE carries them. */
uint64_t work_plan_attn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t ring_slots, uint32_t n_threads);
/* Scratch of the FFN backend (CPU). */
uint64_t work_plan_ffn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t logits_rows);
/* Loader: bounce buffer for the largest segment, row cache. */
uint64_t work_plan_loader_bytes(const struct hparams *h, uint64_t bounce_bytes);

#endif
