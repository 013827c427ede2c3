/* SPDX-License-Identifier: MIT
 * Makes synthetic checkpoints for the tests of the quantizer. Owns nothing after it returns; one thread. Weights are small
 * numbers from a counter, so that every tensor differs and every run is the same. */
#include "tests/unit/checkpoint.h"

#include <stdio.h>
#include <sys/stat.h>

#include "tests/unit/unit_test.h"

#define LAYER "model.layers.0."

static const struct {
    const char *name;
    unsigned rows, cols; /* cols: 0 = hidden; rows: 0 = hidden, 1 = a vector */
} tensors[] = {
    {"model.embed_tokens.weight", 512, 0},
    {LAYER "input_layernorm.weight", 1, 0},
    {LAYER "self_attn.q_proj.weight", 32, 0},
    {LAYER "self_attn.k_proj.weight", 16, 0},
    {LAYER "self_attn.v_proj.weight", 16, 0},
    {LAYER "self_attn.q_norm.weight", 1, 16},
    {LAYER "self_attn.k_norm.weight", 1, 16},
    {LAYER "self_attn.o_proj.weight", 0, 32},
    {LAYER "post_attention_layernorm.weight", 1, 0},
    {LAYER "pre_feedforward_layernorm.weight", 1, 0},
    {LAYER "mlp.gate_proj.weight", 64, 0},
    {LAYER "mlp.up_proj.weight", 64, 0},
    {LAYER "mlp.down_proj.weight", 0, 64},
    {LAYER "post_feedforward_layernorm.weight", 1, 0},
    {"model.norm.weight", 1, 0},
};

struct maker {
    const struct checkpoint *c;
    struct bytes header, data;
    uint32_t random;
};

static bool is(const char *a, const char *b)
{
    return a && strcmp(a, b) == 0;
}

static void add(struct maker *m, const char *name, unsigned rows, unsigned cols)
{
    char entry[512], shape[32];
    size_t begin = m->data.n, size = is(m->c->f64, name) ? 8 : 2;
    if (is(m->c->skip, name))
        return;
    for (unsigned i = 0; i < rows * cols; i++) {
        m->random = m->random * 1664525u + 1013904223u;
        uint16_t bits = (uint16_t)((m->random >> 16 & 0x80ff) | 0x3c00); /* +- 2^-7 to 2^-5 */
        if (is(m->c->poke, name) && i + 1 == rows * cols)
            bits = m->c->poke_bits;
        unit_put(&m->data, &bits, 2);
        for (size_t k = 2; k < size; k++)
            unit_put(&m->data, "", 1);
    }
    snprintf(shape, sizeof(shape), rows == 1 ? "[%u]" : "[%u,%u]", rows == 1 ? cols : rows, cols);
    int n = snprintf(entry, sizeof(entry), "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                     m->header.n > 1 ? "," : "", name, size == 8 ? "F64" : "BF16", shape, begin, m->data.n);
    unit_put(&m->header, entry, (size_t)n);
}

static void write_config(const char *folder, const struct checkpoint *c, unsigned hidden)
{
    char path[4096], text[2048];
    int n =
        snprintf(text, sizeof(text),
                 "{\"architectures\":[\"Gemma3ForCausalLM\"],\"num_hidden_layers\":1,\"hidden_size\":%u,\"intermediate_size\":64,"
                 "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,\"vocab_size\":512,\"sliding_window\":8%s}",
                 hidden, c->config ? c->config : "");
    snprintf(path, sizeof(path), "%s/config.json", folder);
    unit_write(path, text, (size_t)n);
}

void checkpoint_make(const char *folder, const struct checkpoint *c)
{
    char path[4096];
    unsigned hidden = c->cols ? c->cols : 32;
    struct maker m = {.c = c, .random = 1};
    struct bytes file = {0};
    mkdir(folder, 0755);
    write_config(folder, c, hidden);
    snprintf(path, sizeof(path), "%s/tokenizer.model", folder);
    unit_copy(unit_source("tests/golden/tiny-27b/tokenizer.model"), path);
    snprintf(path, sizeof(path), "%s/tokenizer_config.json", folder);
    if (c->tokenizer_config)
        unit_write(path, c->tokenizer_config, strlen(c->tokenizer_config));
    unit_put(&m.header, "{", 1);
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++)
        add(&m, tensors[i].name, tensors[i].rows ? tensors[i].rows : hidden, tensors[i].cols ? tensors[i].cols : hidden);
    if (c->head != CHECKPOINT_NO_HEAD) {
        if (c->head == CHECKPOINT_SAME_HEAD)
            m.random = 1;
        add(&m, "lm_head.weight", 512, hidden);
    }
    if (c->extra)
        add(&m, c->extra, 1, 1);
    unit_put(&m.header, "}", 1);
    unit_put_u64(&file, m.header.n);
    unit_put(&file, m.header.data, m.header.n);
    unit_put(&file, m.data.data, m.data.n);
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    unit_write(path, file.data, file.n);
    unit_free(&file);
    unit_free(&m.header);
    unit_free(&m.data);
}
