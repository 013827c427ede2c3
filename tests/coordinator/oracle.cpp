/* SPDX-License-Identifier: MIT
 * The C face of libsentencepiece for the tests; used by test_tokenizer.c on one thread. */
#include "tests/coordinator/oracle.h"

#include <sentencepiece_processor.h>
#include <vector>

struct oracle {
    sentencepiece::SentencePieceProcessor p;
};

struct oracle *oracle_open(const char *path)
{
    auto o = new oracle;
    if (o->p.Load(path).ok())
        return o;
    delete o;
    return nullptr;
}

void oracle_close(struct oracle *o)
{
    delete o;
}

uint32_t oracle_size(const struct oracle *o)
{
    return uint32_t(o->p.GetPieceSize());
}

const char *oracle_piece(const struct oracle *o, uint32_t id)
{
    return o->p.IdToPiece(int(id)).c_str();
}

float oracle_score(const struct oracle *o, uint32_t id)
{
    return o->p.GetScore(int(id));
}

int oracle_type(const struct oracle *o, uint32_t id)
{
    int i = int(id);
    return o->p.IsUnknown(i) ? 2 : o->p.IsControl(i) ? 3 : o->p.IsUnused(i) ? 5 : o->p.IsByte(i) ? 6 : 1;
}

size_t oracle_encode(const struct oracle *o, const char *text, size_t n, uint32_t *ret, size_t max)
{
    std::vector<int> ids;
    if (!o->p.Encode(std::string_view(text, n), &ids).ok() || ids.size() > max)
        return SIZE_MAX;
    for (size_t i = 0; i < ids.size(); i++)
        ret[i] = uint32_t(ids[i]);
    return ids.size();
}
