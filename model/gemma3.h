/* SPDX-License-Identifier: MIT
 * Gemma 3 in GGUF: keys and tensor names as llama.cpp's converter writes them (llama.cpp src/llama-arch.cpp,
 * convert_hf_to_gguf.py), and the checks that a file is a model we can run.
 * Threads: immutable after gemma3_open. */
#ifndef TANDEM_MODEL_GEMMA3_H
#define TANDEM_MODEL_GEMMA3_H

#include <stdbool.h>

#include "model/hparams.h"

struct err;
struct gguf;
struct gguf_tensor;

/* Tensors of one layer, in segment order: first the attention's, then the FFN's. */
enum gemma3_tensor {
    GEMMA3_ATTN_NORM,
    GEMMA3_ATTN_Q,
    GEMMA3_ATTN_K,
    GEMMA3_ATTN_V,
    GEMMA3_ATTN_Q_NORM,
    GEMMA3_ATTN_K_NORM,
    GEMMA3_ATTN_OUTPUT,
    GEMMA3_POST_ATTN_NORM,
    GEMMA3_FFN_NORM,
    GEMMA3_FFN_GATE,
    GEMMA3_FFN_UP,
    GEMMA3_FFN_DOWN,
    GEMMA3_POST_FFN_NORM,
    GEMMA3_LAYER_TENSORS,
    GEMMA3_OUTPUT_NORM = GEMMA3_LAYER_TENSORS,
    GEMMA3_OUTPUT, /* output.weight, or token_embd.weight when tied */
    GEMMA3_TOKEN_EMBD,
    GEMMA3_TENSORS,
};

/* Rows and columns that the tensor must have (norms: 1 row). */
void gemma3_shape(const struct hparams *h, enum gemma3_tensor t, uint32_t *ret_rows, uint32_t *ret_cols);
bool gemma3_is_norm(enum gemma3_tensor t); /* a vector, always f32; else a matrix */
/* "blk.3.attn_q.weight"; layer ignored for the last three. buf >= 64. */
const char *gemma3_name(enum gemma3_tensor t, uint32_t layer, char *buf, unsigned buf_size);

/* Read the hyper-parameters and check that every tensor is there with the right shape and a supported type (norms f32).
 * attn_scale: gemma3.attention.scale; absent: (hidden/n_heads)^-0.5 when n_layers == 62, else head_dim^-0.5.
 * rope_base_local: gemma3.rope.freq_base_swa when present, else 10000. global_every: gemma3.attention.sliding_window_pattern,
 * absent: 6.
 * A missing sliding_window is an error that says so (llama.cpp would then treat all layers as global). */
int gemma3_hparams(const struct gguf *g, struct hparams *ret, struct err *err);
int gemma3_find(const struct gguf *g, enum gemma3_tensor t, uint32_t layer, const struct gguf_tensor **ret, struct err *err);

#endif
