/* SPDX-License-Identifier: MIT
 * A bounded reader of the three messages of a SentencePiece model that matter. Called by the converter and by the fuzz target, on
 * one thread. Owns only the array of pieces; texts stay in the caller's buffer. Unknown fields are skipped, as protobuf wants. */
#include "quantizer/spm.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"

#define MAX_PIECES 4194304u
#define MAX_PIECE_BYTES 1024u
#define MODEL_TYPE_BPE 2

struct span {
    const uint8_t *begin, *at, *end; /* begin: of the whole file, for offsets in messages */
};

struct field {
    uint32_t number, wire;
    uint64_t value; /* wire 0, 1, 5 */
    struct span in; /* wire 2 */
};

struct settings {
    uint64_t model_type;
    bool dummy_prefix, remove_spaces, escape_spaces, has_map;
};

static bool take_varint(struct span *s, uint64_t *ret)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64 && s->at < s->end; shift += 7) {
        uint8_t b = *s->at++;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128) {
            *ret = v;
            return true;
        }
    }
    return false;
}

static bool take_fixed(struct span *s, unsigned n, uint64_t *ret)
{
    if ((size_t)(s->end - s->at) < n)
        return false;
    *ret = 0;
    memcpy(ret, s->at, n);
    s->at += n;
    return true;
}

/* The next field; 0 at the end, 1 when there is one. */
static int take_field(struct span *s, struct field *ret, struct err *err)
{
    uint64_t key, n;
    ptrdiff_t at = s->at - s->begin;
    if (s->at == s->end)
        return 0;
    bool ok = take_varint(s, &key) && key >> 3 > 0 && key >> 3 < 1u << 29;
    *ret = (struct field){.number = ok ? (uint32_t)(key >> 3) : 0, .wire = ok ? (uint32_t)(key & 7) : 7};
    if (ret->wire == 0)
        ok = take_varint(s, &ret->value);
    else if (ret->wire == 1 || ret->wire == 5)
        ok = take_fixed(s, ret->wire == 1 ? 8 : 4, &ret->value);
    else if (ret->wire == 2)
        ok = take_varint(s, &n) && n <= (size_t)(s->end - s->at);
    else
        ok = false;
    if (!ok)
        return err_set(err, -EPROTO, "field at offset %td is broken; expected a SentencePiece model (is it cut off?)", at);
    if (ret->wire == 2) {
        ret->in = (struct span){s->begin, s->at, s->at + n};
        s->at += n;
    }
    return 1;
}

static int read_piece(struct span in, struct spm_piece *p, struct err *err)
{
    struct field f;
    int r;
    ptrdiff_t at = in.at - in.begin;
    *p = (struct spm_piece){.type = SPM_NORMAL};
    while ((r = take_field(&in, &f, err)) > 0) {
        if (f.number == 1 && f.wire == 2) {
            p->text = (const char *)f.in.at;
            p->n = (uint32_t)MIN((size_t)(f.in.end - f.in.at), MAX_PIECE_BYTES + 1);
        } else if (f.number == 2 && f.wire == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&p->score, &bits, sizeof(bits));
        } else if (f.number == 3 && f.wire == 0) {
            p->type = (uint32_t)MIN(f.value, 255u);
        }
    }
    if (r == 0 &&
        (p->n == 0 || p->n > MAX_PIECE_BYTES || p->type < SPM_NORMAL || p->type > SPM_BYTE || !(p->score - p->score == 0)))
        r = err_set(err, -EPROTO,
                    "piece at offset %td has %u bytes, type %u, score %g; expected 1 to %u bytes, type 1 to 6, a finite score", at,
                    p->n, p->type, (double)p->score, MAX_PIECE_BYTES);
    return r;
}

static int add_piece(struct spm *s, uint32_t *cap, struct span in, struct err *err)
{
    if (s->n == MAX_PIECES)
        return err_set(err, -EPROTO, "more than %u pieces", MAX_PIECES);
    if (s->n == *cap) {
        uint32_t more = MAX(*cap * 2, 1024u);
        struct spm_piece *p = realloc(s->pieces, more * sizeof(*p));
        if (!p)
            return err_set(err, -ENOMEM, "out of memory for %u pieces", more);
        s->pieces = p;
        *cap = more;
    }
    int r = read_piece(in, &s->pieces[s->n], err);
    s->n += r == 0;
    return r;
}

static int read_trainer(struct span in, struct spm *s, struct settings *set, struct err *err)
{
    struct field f;
    int r;
    while ((r = take_field(&in, &f, err)) > 0) {
        int64_t id = (int32_t)(uint32_t)f.value; /* a negative int32 is written as ten bytes */
        if (f.wire != 0)
            continue;
        if (f.number == 3)
            set->model_type = f.value;
        else if (f.number == 40)
            s->unk = id;
        else if (f.number == 41)
            s->bos = id;
        else if (f.number == 42)
            s->eos = id;
        else if (f.number == 43)
            s->pad = id;
    }
    return r;
}

static int read_normalizer(struct span in, struct settings *set, struct err *err)
{
    struct field f;
    int r;
    while ((r = take_field(&in, &f, err)) > 0) {
        if (f.number == 2 && f.wire == 2)
            set->has_map = f.in.at != f.in.end;
        else if (f.number == 3 && f.wire == 0)
            set->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.wire == 0)
            set->remove_spaces = f.value != 0;
        else if (f.number == 5 && f.wire == 0)
            set->escape_spaces = f.value != 0;
    }
    return r;
}

static int check(const struct spm *s, const struct settings *set, struct err *err)
{
    if (s->n == 0)
        return err_set(err, -EPROTO, "has no pieces; expected a SentencePiece model");
    if (set->model_type != MODEL_TYPE_BPE)
        return err_set(err, -ENOTSUP, "model type %llu; expected 2 (BPE), as every Gemma 3 has",
                       (unsigned long long)set->model_type);
    if (set->dummy_prefix || set->remove_spaces || !set->escape_spaces || set->has_map)
        return err_set(err, -ENOTSUP,
                       "normalizer: dummy prefix %d, space removal %d, space escaping %d, character map %d; expected 0, 0, 1, 0 "
                       "(identity, as every Gemma 3 has)",
                       set->dummy_prefix, set->remove_spaces, set->escape_spaces, set->has_map);
    const int64_t ids[] = {s->unk, s->bos, s->eos, s->pad};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        if (ids[i] >= (int64_t)s->n)
            return err_set(err, -EPROTO, "special id %lld; expected less than the %u pieces", (long long)ids[i], s->n);
    }
    return 0;
}

int spm_parse(const uint8_t *data, size_t n, struct spm *ret, struct err *err)
{
    struct span in = {data, data, data + n};
    struct spm s = {.unk = 0, .bos = 1, .eos = 2, .pad = -1}; /* the defaults of the .proto file */
    struct settings set = {.model_type = 1, .dummy_prefix = true, .remove_spaces = true, .escape_spaces = true};
    struct field f;
    uint32_t cap = 0;
    int r;
    while ((r = take_field(&in, &f, err)) > 0) {
        if (f.wire != 2)
            continue;
        if (f.number == 1)
            r = add_piece(&s, &cap, f.in, err);
        else if (f.number == 2)
            r = read_trainer(f.in, &s, &set, err);
        else if (f.number == 3)
            r = read_normalizer(f.in, &set, err);
        if (r < 0)
            break;
    }
    if (r == 0)
        r = check(&s, &set, err);
    if (r < 0) {
        spm_fini(&s);
        return r;
    }
    *ret = s;
    return 0;
}

void spm_fini(struct spm *s)
{
    free(s->pieces);
    *s = (struct spm){0};
}
