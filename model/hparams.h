/* SPDX-License-Identifier: MIT
 * The hyper-parameters of a Gemma 3 text model: filled once from GGUF (model/gemma3) and sent unchanged to every stage in
 * CONFIGURE (proto/messages.def lists the same fields in the same order; a static assertion compares sizes). */
#ifndef TANDEM_MODEL_HPARAMS_H
#define TANDEM_MODEL_HPARAMS_H

#include <stdint.h>

struct hparams {
    uint32_t n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim, vocab;
    uint32_t window;       /* positions a local layer sees, itself included */
    uint32_t global_every; /* layer i is global when (i + 1) % global_every == 0 */
    uint32_t context_max;  /* of the checkpoint */
    float eps;
    float rope_base_global, rope_base_local;
    float rope_factor_global; /* linear scaling: angles divided by it; 1 = none */
    float attn_scale;         /* multiplies q . k */
};

static inline int hparams_is_global(const struct hparams *h, uint32_t layer)
{
    return (layer + 1) % h->global_every == 0;
}

struct msg_configure;
void hparams_from_msg(const struct msg_configure *m, struct hparams *ret);
void hparams_to_msg(const struct hparams *h, struct msg_configure *ret);

#endif
