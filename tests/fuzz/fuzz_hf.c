/* SPDX-License-Identifier: MIT
 * config.json: what is taken has values that the rest of the project may rely on. */
#include <math.h>

#include "proto/err.h"
#include "quantizer/hf.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct hf_config c;
    int r = hf_config_parse((const char *)data, size, &c, &err);
    fuzz_check(r, err.text);
    if (r == 0) {
        const struct hparams *h = &c.h;
        if (!h->n_layers || !h->hidden || !h->ffn || !h->n_kv_heads || h->n_heads % h->n_kv_heads || h->head_dim % 16 ||
            !h->vocab || !h->window || !h->context_max || !(h->eps > 0) || !(h->attn_scale > 0) || !(h->rope_factor_global > 0) ||
            !isfinite(h->attn_scale) || !isfinite(h->rope_base_global))
            abort();
    }
    return 0;
}
