/* SPDX-License-Identifier: MIT
 * The Vulkan backend between its two files: ffn_vulkan.c, which owns device, buffers and recorded commands and runs them, and
 * ffn_record.c, which records them. Nobody else includes this. Threads: as ffn_backend.h says. */
#ifndef TANDEM_GPU_WORKER_FFN_VULKAN_H
#define TANDEM_GPU_WORKER_FFN_VULKAN_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu_worker/vk_pipeline.h"
#include "gpu_worker/vk_submit.h"
#include "gpu_worker/vk_weights.h"
#include "model/hparams.h"
#include "model/work_plan.h"

struct err;
struct vk_profile;

#define FEW ((uint32_t)WORK_PLAN_VULKAN_GROUP) /* tokens that a matrix-vector shader takes at once */
#define KERNELS_MAX 512
#define MANY_ROWS 256u                                /* what a workgroup of a matrix-matrix shader may write of y at most: rows, */
#define MANY_TOKENS ((uint32_t)WORK_PLAN_VULKAN_TILE) /* tokens */
#define MANY_PAD 64u                                  /* columns of zeros behind activations as f16, at least a step's */
#define PARTS_MAX ((uint32_t)WORK_PLAN_VULKAN_PARTS)  /* of a product that is split along its columns to fill the device: down */
#define PARTS_WIDE ((uint32_t)WORK_PLAN_VULKAN_WIDE)  /* gate and up */
#define SHAPES 8                                      /* numbers of tokens whose commands are kept, */
#define SETS_MAX 32768u                               /* and descriptor sets of all of them before another one is recorded */
#define HEAD_SHAPES 4                                 /* 1, 2, 4, 8 rows */
#define MARKS_FEW 12u                                 /* kernels for FEW tokens at most */

struct named_kernel {
    char shader[32];
    uint32_t constants[VK_KERNEL_CONSTANTS], n_constants;
    struct vk_kernel kernel;
};

/* Commands of all layers for so many tokens; those not used for longest make way for others. */
struct shape {
    uint32_t tokens; /* 0: none */
    uint64_t used;   /* number of the run that used it last */
    struct vk_recorder *recorder;
    VkCommandBuffer *layers; /* [n_layers]; NULL: not recorded yet */
};

/* Buffers of `group` tokens. */
enum { X, ACT, NORM, GATE, UP, ACT_FFN, FFN, DOWN, LOGITS, SCALES, HALVES, BUFFERS };

struct streamed {
    struct segment_layout layout;
    const void *data; /* where the layer lies when it is there */
};

struct ffn {
    struct hparams hparams;
    struct vk_device *device;
    struct vk_memory memory;
    struct vk_cache *cache;
    struct vk_queue *queue;
    struct vk_profile *profile; /* NULL: nobody asked */
    struct named_kernel *kernels[KERNELS_MAX];
    uint32_t n_kernels;
    struct vk_buffer staging, in, out, out_logits, buffers[BUFFERS];
    uint32_t chunk_tokens, logits_rows, group; /* group: tokens of one pass through the buffers, a multiple of 8 */
    uint32_t head_group;
    struct vk_weights *layers, head; /* [n_layers] */
    struct streamed *streamed;       /* [n_layers], or NULL */
    struct vk_shared shared;         /* buffers of streamed layers that are copied */
    struct shape shapes[SHAPES];
    uint64_t runs;
    struct vk_recorder *head_recorder;
    VkCommandBuffer head_commands[HEAD_SHAPES];
    uint32_t many;                 /* from so many tokens on by cooperative matrices; UINT32_MAX: never */
    uint32_t tiled;                /* from so many tokens on by the tiled shaders, where there are none; UINT32_MAX: never */
    bool need_floats, need_quants; /* forms of activations that the file's types take */
    bool said, unmeasured;         /* unmeasured: `many` or `tiled` is to be found with the first layer */
    char name[64];
};

/* Bytes of a token prepared for an integer type; of a token in buffers[which]; rows of y as cooperative matrices write them. */
uint64_t ffn_record_act_bytes(uint32_t n);
uint64_t ffn_record_token_bytes(const struct ffn *f, int which);
/* Bytes of a workgroup's shared memory that the norm takes. */
uint32_t ffn_record_norm_shared(const struct ffn *f);
/* Has a workgroup of cooperative matrices room? */
bool ffn_record_has_tile(const struct vk_device *d);
uint32_t ffn_record_padded(const struct ffn *f, uint32_t rows);

/* Layer: command buffer `layer` of rec (NULL: for one run), f->in to f->out, `tokens` as they are (padding is the caller's); dump,
 * for one run: step by step, all intermediates as floats in their buffers, at most f->group tokens; head: number `index` of its
 * recorder, f->in to f->out_logits, at most f->head_group. */
int ffn_record_layer(struct ffn *f, struct vk_recorder *rec, uint32_t layer, uint32_t tokens, VkCommandBuffer *ret,
                     struct err *err);
int ffn_record_dump(struct ffn *f, uint32_t layer, uint32_t tokens, VkCommandBuffer *ret, struct err *err);
int ffn_record_head(struct ffn *f, uint32_t index, uint32_t tokens, VkCommandBuffer *ret, struct err *err);

#endif
