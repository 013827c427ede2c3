/* SPDX-License-Identifier: MIT
 * How many bytes of KV pool and scratch the stages take for a configuration, and how that scratch is laid out: pure functions
 * that both the memory plan and the stages' allocations use, so that plan and reality cannot differ. Threads: any. */
#ifndef TANDEM_MODEL_WORK_PLAN_H
#define TANDEM_MODEL_WORK_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "model/hparams.h"

struct attn_shape;

/* KV pool of npu_worker. pages: as for work_plan_kv_init. */
uint64_t work_plan_kv_bytes(const struct hparams *h, uint32_t context, uint32_t sequences, uint32_t chunk_tokens,
                            uint32_t ring_slots, int kv_type, uint64_t pages);
/* Pages that a sequence of so many positions holds at most at once, in all layers. */
uint64_t work_plan_kv_pages(const struct hparams *h, uint32_t positions, uint32_t chunk_tokens, uint32_t ring_slots);
/* Scratch of the attention backend (CPU). types: as CONFIGURE carries them. */
uint64_t work_plan_attn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t ring_slots,
                              uint32_t n_threads);
/* Scratch of the FFN backend (CPU). */
uint64_t work_plan_ffn_bytes(const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens, uint32_t logits_rows);

/* gpu_worker on a Vulkan device: staging, rows and logits in and out, and what passes between shaders; at most. */
uint64_t work_plan_vulkan_bytes(const struct hparams *h, uint32_t chunk_tokens);
/* What its driver keeps of recorded commands: those of eight numbers of tokens. Measured with 62 layers on lavapipe: 22 KiB for
 * each of them and layer. */
uint64_t work_plan_vulkan_commands(const struct hparams *h);
#define WORK_PLAN_VULKAN_STAGING (UINT64_C(16) << 20)
#define WORK_PLAN_VULKAN_GROUP 8  /* tokens of a matrix-vector shader, rows of logits at once */
#define WORK_PLAN_VULKAN_TILE 128 /* tokens of a matrix-matrix shader: chunks are rounded up to it */
#define WORK_PLAN_VULKAN_PARTS 8  /* sums of down that are kept apart at most, */
#define WORK_PLAN_VULKAN_WIDE 3   /* of gate and of up */

/* Loader: what fills segments, and the row cache. least: the largest segment_bounce_min. */
uint64_t work_plan_loader_bytes(const struct hparams *h, uint64_t least);
#define WORK_PLAN_FILL_THREADS 4 /* two or three keep a disk busy while the others repack */
/* Bytes of the file that a thread which fills segments reads at a time; and the buffers of all of them. */
size_t work_plan_piece_bytes(uint64_t least);
size_t work_plan_fill_bytes(uint64_t least);

#define WORK_PLAN_PAGE_POSITIONS 64 /* kernels/attn.h: ATTN_PAGE */

/* The parts of work_plan_kv_bytes. */
struct work_plan_kv {
    uint32_t table_pages;       /* entries of the page table of one layer and sequence: ceil(context / 64) */
    uint32_t local, global;     /* pages that one sequence needs at most in a layer of that kind */
    uint64_t sequence_pages;    /* of all layers */
    uint64_t pages, page_bytes; /* of the pool */
    uint64_t pool_bytes, tables_bytes, blocks_bytes;
};
/* pages: of the pool, which all sequences share; 0: so many that each may fill the context. */
void work_plan_kv_init(struct work_plan_kv *ret, const struct hparams *h, uint32_t context, uint32_t sequences,
                       uint32_t chunk_tokens, uint32_t ring_slots, int kv_type, uint64_t pages);
/* Shape of one layer's attention for the kernels. */
void work_plan_attn_shape(const struct hparams *h, int global, int kv_type, struct attn_shape *ret);

/* Activations come in two forms, see gemm_same_act: [0] float, [1] integer. */
int work_plan_form(int type);

/* Byte offsets in the attention backend's scratch; all 64-aligned. [T] = chunk_tokens. */
struct work_plan_attn {
    size_t act[2];               /* prepared inputs of q, k, v: [T] of each form that occurs */
    size_t act_out;              /* prepared inputs of the output projection; lies over `act` */
    size_t q, k, v, heads;       /* f32 [T][heads * head_dim] */
    size_t out;                  /* f32 [T][hidden] */
    size_t rope;                 /* f32 [rope_slots][4][head_dim / 2]: local cos, sin, global cos, sin */
    size_t thread, thread_bytes; /* per thread: a spare rope row, then the attention kernel's scratch */
    uint32_t rope_slots;         /* a power of two */
    uint32_t block_queries;      /* queries per call of the attention kernel */
    size_t bytes;
};
void work_plan_attn_init(struct work_plan_attn *ret, const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens,
                         uint32_t ring_slots, uint32_t n_threads);

/* Byte offsets in the FFN backend's scratch. */
struct work_plan_ffn {
    size_t act[2];   /* prepared inputs of gate and up, or of the head */
    size_t act_down; /* prepared inputs of down; lies over `act` */
    size_t norm;     /* f32 [T][hidden]: normed input, later the output of down */
    size_t product;  /* f32 [T][ffn] */
    size_t bytes;
};
void work_plan_ffn_init(struct work_plan_ffn *ret, const struct hparams *h, const uint8_t *types, uint32_t chunk_tokens,
                        uint32_t logits_rows);
/* Rows of the last layer that gpu_worker keeps for the head: f32 [chunk_tokens][hidden]. */
size_t work_plan_gather_bytes(const struct hparams *h, uint32_t chunk_tokens);

#define WORK_PLAN_EMBED_ROWS 256
/* Scratch of the embedding: cached f32 rows, their ids, one row as it lies in the file. */
size_t work_plan_embed_bytes(const struct hparams *h);
/* What single-stage mode makes of the least bounce buffer: large reads are what disks like. */
size_t work_plan_bounce_bytes(uint64_t least);

/* Tiles that a thread takes at a time out of n_tiles; and tokens, for element-wise work on rows of `width` floats. */
uint32_t work_plan_tile_grain(size_t tile_bytes, uint32_t n_tiles, uint32_t n_tokens, uint32_t n_threads);
uint32_t work_plan_token_grain(uint32_t width);

#endif
