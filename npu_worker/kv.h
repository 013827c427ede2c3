/* SPDX-License-Identifier: MIT
 * The paged KV cache: pages of 64 positions per layer and sequence (layout: kernels/attn.h), all from one pool that is sized by
 * model/work_plan and taken from the budget at open, so that generation never allocates. Thread: the data thread. */
#ifndef TANDEM_NPU_WORKER_KV_H
#define TANDEM_NPU_WORKER_KV_H

#include <stdint.h>

#include "model/hparams.h"

struct arena;
struct budget;
struct err;
struct kv;

struct kv_options {
    const struct hparams *hparams; /* copied */
    struct budget *budget;         /* borrowed, as the arena */
    struct arena *arena;           /*, whose room for the pages is promised at open */
    uint32_t context, sequences, chunk_tokens, ring_slots;
    int kv_type;
    uint64_t pages; /* of the pool; 0: enough for every sequence to fill the context */
};

/* A pool of so many bytes (0: as the machine has), with blocks enough for such a cache and all else that a layer needs;
 * o->arena is not looked at. */
int kv_make_arena(const struct kv_options *o, uint64_t pool, struct arena **ret, struct err *err);
int kv_open(const struct kv_options *o, struct kv **ret, struct err *err);
void kv_close(struct kv *kv); /* NULL and half-built are fine */

/* Make room for positions pos .. pos + n - 1 of a sequence in a layer; in a local layer first give back the pages that lie wholly
 * below committed_pos - window + 1. *ret_pages: the table of that layer and sequence, indexed by position / 64; every page that
 * those positions see is there.
 * -EINVAL when earlier positions are missing (never stored, or given back) or the context ends; -ENOSPC when the pool is used up.
 */
int kv_prepare(struct kv *kv, uint32_t layer, uint32_t seq, uint32_t committed_pos, uint32_t pos, uint32_t n,
               void *const **ret_pages, struct err *err);
/* Forget a sequence: all its pages of all layers go back. */
void kv_free(struct kv *kv, uint32_t seq);

uint64_t kv_pages_used(const struct kv *kv); /* any thread */
uint64_t kv_pages_total(const struct kv *kv);

#endif
