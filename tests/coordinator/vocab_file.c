/* SPDX-License-Identifier: MIT
 * Writes GGUF v3 (specification: ggml/docs/gguf.md) with metadata only; used by the tests of the tokenizer on one thread. It
 * shares no code with the reader or with the quantizer, so that a mistake in one of them shows. */
#include "tests/coordinator/vocab_file.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/coordinator/oracle.h"

static bool is_user_defined(const char *piece)
{
    size_t n = strlen(piece);
    bool newlines = strspn(piece, "\n") == n, spaces = n >= 6;
    for (size_t i = 0; spaces && i < n; i += 3)
        spaces = strncmp(piece + i, "\xe2\x96\x81", 3) == 0;
    return newlines || spaces;
}

static struct vocab_piece convert(const struct oracle *o, uint32_t id)
{
    const char *text = oracle_piece(o, id);
    struct vocab_piece p = {.n = strlen(text), .score = oracle_score(o, id), .type = oracle_type(o, id)};
    memcpy(p.text, text, p.n);
    if (p.type != 1)
        return p;
    if (p.text[0] == '<' && p.text[p.n - 1] == '>' && p.n > 2) {
        p.type = 3;
    } else if (is_user_defined(text)) {
        p.type = 4;
        p.score = -1000.0f;
        if (p.text[0] != '\n') {
            p.n /= 3;
            memset(p.text, ' ', p.n);
        }
    }
    return p;
}

struct vocab vocab_of_model(const char *path)
{
    struct vocab v = {.kind = "llama", .bos = 2, .eos = 1, .space_prefix = 0};
    struct oracle *o = oracle_open(path);
    if (!o)
        return v;
    v.n = v.n_scores = v.n_types = oracle_size(o);
    v.pieces = calloc(v.n, sizeof(*v.pieces));
    for (uint32_t i = 0; v.pieces && i < v.n; i++)
        v.pieces[i] = convert(o, i);
    oracle_close(o);
    return v;
}

void vocab_free(struct vocab *v)
{
    free(v->pieces);
    v->pieces = NULL;
}

static void put_u32(FILE *f, uint32_t x)
{
    fwrite(&x, 4, 1, f);
}

static void put_u64(FILE *f, uint64_t x)
{
    fwrite(&x, 8, 1, f);
}

static void put_string(FILE *f, const char *s, size_t n)
{
    put_u64(f, n);
    fwrite(s, 1, n, f);
}

static void put_key(FILE *f, const char *key, uint32_t type)
{
    put_string(f, key, strlen(key));
    put_u32(f, type);
}

static void put_array(FILE *f, const char *key, uint32_t type, uint64_t n)
{
    put_key(f, key, 9);
    put_u32(f, type);
    put_u64(f, n);
}

void vocab_write(const struct vocab *v, const char *path)
{
    FILE *f = fopen(path, "wb");
    fwrite("GGUF", 1, 4, f);
    put_u32(f, 3);
    put_u64(f, 0);
    put_u64(f, 4u + (v->kind != NULL) + (v->bos >= 0) + (v->eos >= 0) + (v->space_prefix >= 0));
    put_key(f, "general.architecture", 8);
    put_string(f, "gemma3", 6);
    if (v->kind) {
        put_key(f, "tokenizer.ggml.model", 8);
        put_string(f, v->kind, strlen(v->kind));
    }
    put_array(f, "tokenizer.ggml.tokens", 8, v->n);
    for (size_t i = 0; i < v->n; i++)
        put_string(f, v->pieces[i].text, v->pieces[i].n);
    put_array(f, "tokenizer.ggml.scores", 6, v->n_scores);
    for (size_t i = 0; i < v->n_scores; i++)
        fwrite(&v->pieces[i % v->n].score, 4, 1, f);
    put_array(f, "tokenizer.ggml.token_type", 5, v->n_types);
    for (size_t i = 0; i < v->n_types; i++)
        fwrite(&v->pieces[i % v->n].type, 4, 1, f);
    if (v->bos >= 0) {
        put_key(f, "tokenizer.ggml.bos_token_id", 4);
        put_u32(f, (uint32_t)v->bos);
    }
    if (v->eos >= 0) {
        put_key(f, "tokenizer.ggml.eos_token_id", 4);
        put_u32(f, (uint32_t)v->eos);
    }
    if (v->space_prefix >= 0) {
        put_key(f, "tokenizer.ggml.add_space_prefix", 7);
        fputc(v->space_prefix, f);
    }
    while (ftell(f) % 32)
        fputc(0, f);
    fclose(f);
}
