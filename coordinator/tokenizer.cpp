/* SPDX-License-Identifier: MIT
 * Text to token ids and back. Owns one libsentencepiece processor, built from the GGUF's pieces, scores and types, and a copy
 * of the pieces; called by the commands on the main thread. It keeps no reference to the GGUF. sentencepiece aborts the process
 * on some broken vocabularies, so everything it relies on (one unknown piece, 256 byte pieces, no empty, repeated or
 * malformed piece) is checked before it sees them.
 *
 * Markers. The processor knows pieces such as <start_of_turn> only as control pieces, which it never makes from text: that
 * is encoding without markers. With markers, the text is first cut at them (longest match, from the left) and the parts between
 * are encoded. This gives what sentencepiece gives when they are user-defined symbols, since those are matched in the same way
 * before anything else and nothing merges across them; and it spares a second copy of the vocabulary.
 *
 * Long texts. sentencepiece takes up to 252 bytes for a byte of text as it sees it (measured with 0.1.97, TOKENIZER_STRETCH), so
 * a text is encoded in parts, cut where nothing could have merged across (neighbours.h): the ids are the same. Once there are more
 * of them than the bound the rest is not looked at.
 *
 * ModelProto in protobuf's wire format: sentencepiece_model.proto of sentencepiece 0.1.97 (field numbers below). */
#include "coordinator/tokenizer.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <sentencepiece_processor.h>

#include "coordinator/neighbours.h"

extern "C" {
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/utf8.h"
}

namespace
{
enum piece_type : uint8_t { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

constexpr uint32_t VOCAB_MAX = 4194304;
constexpr size_t PIECE_MAX = 1024; /* bytes; sentencepiece's trie recurses once per byte */
constexpr size_t PART = 4 << 10;   /* bytes of a text that are encoded at once, about */
constexpr size_t TEXT_MAX = size_t(256) << 20;
constexpr char SPACE_MARK[] = "\xe2\x96\x81";  /* U+2581 stands for a space in pieces */
constexpr char REPLACEMENT[] = "\xef\xbf\xbd"; /* U+FFFD */

/* llama.cpp's converter stores user-defined space runs with plain spaces. */
std::string with_space_marks(std::string_view s)
{
    std::string r;
    for (char c : s) {
        if (c == ' ')
            r += SPACE_MARK;
        else
            r += c;
    }
    return r;
}

std::string with_spaces(std::string_view s)
{
    std::string r;
    for (size_t i = 0; i < s.size();) {
        bool mark = s.compare(i, 3, SPACE_MARK) == 0;
        r += mark ? ' ' : s[i];
        i += mark ? 3 : 1;
    }
    return r;
}

void put_varint(std::string &out, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        out += char(v | 0x80);
    out += char(v);
}

void put_number(std::string &out, unsigned field, uint64_t v)
{
    put_varint(out, field << 3 | 0);
    put_varint(out, v);
}

void put_bytes(std::string &out, unsigned field, std::string_view s)
{
    put_varint(out, field << 3 | 2);
    put_varint(out, s.size());
    out += s;
}

void put_float(std::string &out, unsigned field, float v)
{
    unsigned char b[4];
    memcpy(b, &v, sizeof(b)); /* little-endian, as all of GGUF here */
    put_varint(out, field << 3 | 5);
    out.append(reinterpret_cast<char *>(b), sizeof(b));
}
} // namespace

struct tokenizer {
    sentencepiece::SentencePieceProcessor processor;
    std::string text;             /* all pieces, each NUL-terminated */
    std::vector<uint32_t> offset; /* [vocab + 1] into text */
    std::vector<uint8_t> type;    /* piece_type */
    std::vector<bool> silent;     /* <pad>, <eos>, <bos>: never made from text, nothing when decoded */
    uint32_t bos = 0, unknown = 0;
    std::vector<uint32_t> ends;
    uint32_t turn_start = UINT32_MAX, turn_end = UINT32_MAX;
    std::unordered_map<std::string_view, uint32_t> symbols; /* markers and user-defined pieces, for cutting */
    std::vector<bool> marker;                               /* of those, the ones that become ids in cutting */
    std::vector<size_t> symbol_lengths;                     /* that occur, longest first */
    std::array<bool, 256> symbol_start{};
    std::unique_ptr<neighbours, decltype(&neighbours_close)> pairs{nullptr, neighbours_close};
    size_t longest = 1; /* bytes of text that one id can stand for */
    neighbours_bounds cuts{PART, TOKENIZER_STRETCH, false};
    size_t tokens_max = SIZE_MAX; /* of one text */

    std::string_view piece(uint32_t id) const
    {
        return std::string_view(text).substr(offset[id], offset[id + 1] - offset[id] - 1);
    }
    uint32_t size() const
    {
        return uint32_t(type.size());
    }
};

struct detokenizer {
    const tokenizer *t;
    std::string pending, out;
};

namespace
{
int bad(struct err *err, const char *key, uint64_t i, const char *found, const char *expected)
{
    return err_set(err, -EINVAL, "tokenizer: '%s', element %llu: found %s; expected %s", key, (unsigned long long)i, found,
                   expected);
}

int missing(struct err *err, int r, const char *key, const char *expected)
{
    return r == -ENOENT ? err_set(err, -EINVAL, "tokenizer: key '%s' is missing; expected %s", key, expected) : r;
}

bool is_silent_name(std::string_view s)
{
    return s == "<pad>" || s == "<eos>" || s == "<bos>" || s == "<unk>";
}

int read_pieces(tokenizer *t, const struct gguf *g, uint64_t n, struct err *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    t->pairs.reset(neighbours_open(uint32_t(n)));
    if (!t->pairs)
        return err_set(err, -ENOMEM, "tokenizer: out of memory");
    for (uint64_t i = 0; i < n; i++) {
        const char *s;
        size_t length;
        int r = gguf_get_string_at(g, key, i, &s, &length, err);
        if (r < 0)
            return missing(err, r, key, "as many strings as token types");
        std::string piece = t->type[i] == USER_DEFINED ? with_space_marks({s, length}) : std::string(s, length);
        if (piece.empty() || piece.size() > PIECE_MAX)
            return bad(err, key, i, piece.empty() ? "an empty piece" : "a piece of more than 1024 bytes", "1 to 1024 bytes");
        if (piece.find('\0') != std::string::npos || !utf8_valid(piece.data(), piece.size()))
            return bad(err, key, i, "a NUL byte or invalid UTF-8", "a piece in UTF-8");
        if (t->type[i] != BYTE) { /* their names are not text */
            neighbours_add(t->pairs.get(), piece.data(), piece.size());
            t->longest = std::max(t->longest, piece.size());
        }
        t->offset.push_back(uint32_t(t->text.size()));
        t->text += piece;
        t->text += '\0';
        if (t->text.size() > UINT32_MAX / 2)
            return bad(err, key, i, "more than 2 GiB of text", "a vocabulary");
    }
    t->offset.push_back(uint32_t(t->text.size()));
    return 0;
}

int check_bytes(const tokenizer *t, struct err *err)
{
    std::array<bool, 256> seen{};
    unsigned n = 0;
    for (uint32_t id = 0; id < t->size(); id++) {
        if (t->type[id] != BYTE)
            continue;
        std::string piece(t->piece(id));
        unsigned value = 256;
        char back[8] = "";
        if (piece.size() == 6 && piece.compare(0, 3, "<0x") == 0) {
            value = unsigned(strtoul(piece.c_str() + 3, nullptr, 16));
            snprintf(back, sizeof(back), "<0x%02X>", value & 255);
        }
        if (value > 255 || piece != back)
            return err_set(err, -EINVAL, "tokenizer: byte piece %u is '%.40s'; expected <0x00> to <0xFF>", id, piece.c_str());
        n += !seen[value];
        seen[value] = true;
    }
    if (n != 256)
        return err_set(err, -EINVAL,
                       "tokenizer: %u of 256 byte pieces (token type 6) are there; expected all: Gemma's tokenizer needs them", n);
    return 0;
}

int check_pieces(tokenizer *t, struct err *err)
{
    std::unordered_set<std::string_view> seen;
    unsigned n_unknown = 0;
    seen.reserve(t->size());
    for (uint32_t id = 0; id < t->size(); id++) {
        std::string_view piece = t->piece(id);
        if (!seen.insert(piece).second)
            return err_set(err, -EINVAL, "tokenizer: piece '%.40s' (id %u) is in the vocabulary twice; expected distinct pieces",
                           t->text.c_str() + t->offset[id], id);
        if (t->type[id] < NORMAL || t->type[id] > BYTE)
            return err_set(err, -EINVAL, "tokenizer: 'tokenizer.ggml.token_type', element %u: found %u; expected 1 to 6", id,
                           t->type[id]);
        if (t->type[id] == UNKNOWN) {
            n_unknown++;
            t->unknown = id;
        }
    }
    if (n_unknown != 1)
        return err_set(err, -EINVAL, "tokenizer: %u pieces are of type unknown (2); expected exactly one, <unk>", n_unknown);
    return check_bytes(t, err);
}

/* What cuts a text: markers, and the other user-defined pieces so that the longest match is the same as sentencepiece's. */
void find_symbols(tokenizer *t)
{
    std::unordered_set<size_t> lengths;
    t->marker.assign(t->size(), false);
    t->silent.assign(t->size(), false);
    for (uint32_t id = 0; id < t->size(); id++) {
        std::string_view piece = t->piece(id);
        t->silent[id] = id == t->bos || is_silent_name(piece);
        if ((t->type[id] != CONTROL && t->type[id] != USER_DEFINED) || t->silent[id])
            continue;
        t->marker[id] = t->type[id] == CONTROL || (piece.front() == '<' && piece.back() == '>' && piece.size() > 2);
        t->symbols.emplace(piece, id);
        lengths.insert(piece.size());
        t->symbol_start[static_cast<unsigned char>(piece.front())] = true;
        if (piece == "<start_of_turn>")
            t->turn_start = id;
        if (piece == "<end_of_turn>")
            t->turn_end = id;
    }
    t->symbol_lengths.assign(lengths.begin(), lengths.end());
    std::sort(t->symbol_lengths.rbegin(), t->symbol_lengths.rend());
    if (t->turn_end != UINT32_MAX)
        t->ends.push_back(t->turn_end);
}

int read_id(const struct gguf *g, const tokenizer *t, const char *key, uint32_t *ret, struct err *err)
{
    uint32_t id;
    int r = gguf_get_u32(g, key, &id, err);
    if (r < 0)
        return r;
    if (id >= t->size())
        return err_set(err, -EINVAL, "tokenizer: '%s' is %u; expected less than the %u pieces", key, id, t->size());
    *ret = id;
    return 0;
}

int read_ids(tokenizer *t, const struct gguf *g, struct err *err)
{
    static const char bos[] = "tokenizer.ggml.bos_token_id";
    int r = read_id(g, t, bos, &t->bos, err);
    if (r < 0)
        return missing(err, r, bos, "the id of <bos>");
    if (t->type[t->bos] == BYTE || t->type[t->bos] == UNKNOWN)
        return err_set(err, -EINVAL, "tokenizer: '%s' is %u, the piece '%s'; expected the id of <bos>, a control piece", bos,
                       t->bos, t->text.c_str() + t->offset[t->bos]);
    for (const char *key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
        uint32_t id;
        r = read_id(g, t, key, &id, err);
        if (r < 0 && r != -ENOENT)
            return r;
        if (r == 0)
            t->ends.push_back(id);
    }
    for (uint32_t id = 0; id < t->size(); id++) {
        if (t->type[id] == CONTROL && t->piece(id) == "<eos>")
            t->ends.push_back(id); /* chat models name only <end_of_turn> in eos_token_id */
    }
    if (t->ends.empty())
        return err_set(err, -EINVAL, "tokenizer: key 'tokenizer.ggml.eos_token_id' is missing; expected the id of <eos>");
    return 0;
}

std::string build_model(const tokenizer *t, const float *scores)
{
    std::string model, part;
    model.reserve(t->text.size() + size_t(t->size()) * 12 + 512);
    for (uint32_t id = 0; id < t->size(); id++) { /* ModelProto.pieces = 1: piece 1, score 2, type 3 */
        bool hidden = t->type[id] != UNKNOWN && (t->marker[id] || t->silent[id]);
        part.clear();
        put_bytes(part, 1, t->piece(id));
        put_float(part, 2, scores[id]);
        put_number(part, 3, hidden ? uint64_t(CONTROL) : uint64_t(t->type[id]));
        put_bytes(model, 1, part);
    }
    part.clear();           /* ModelProto.trainer_spec = 2 */
    put_number(part, 3, 2); /* model_type: BPE */
    put_number(part, 4, t->size());
    put_number(part, 35, 1); /* byte_fallback */
    put_number(part, 40, t->unknown);
    put_number(part, 41, t->bos);
    put_number(part, 42, t->ends.front());
    put_number(part, 43, UINT64_MAX); /* pad_id: -1, none */
    put_bytes(part, 45, t->piece(t->unknown));
    put_bytes(part, 46, t->piece(t->bos));
    put_bytes(part, 47, t->piece(t->ends.front()));
    put_bytes(model, 2, part);
    part.clear(); /* ModelProto.normalizer_spec = 3 */
    put_bytes(part, 1, "identity");
    put_number(part, 3, 0); /* add_dummy_prefix */
    put_number(part, 4, 0); /* remove_extra_whitespaces */
    put_number(part, 5, 1); /* escape_whitespaces */
    put_bytes(model, 3, part);
    return model;
}

int read_kind(const struct gguf *g, struct err *err)
{
    const char *kind;
    size_t n;
    bool prefix;
    int r = gguf_get_string(g, "tokenizer.ggml.model", &kind, &n, err);
    if (r < 0)
        return missing(err, r, "tokenizer.ggml.model", "'llama' (SentencePiece)");
    if (strcmp(kind, "llama") != 0)
        return err_set(err, -EINVAL,
                       "tokenizer: 'tokenizer.ggml.model' is '%.40s'; expected 'llama' (SentencePiece), as Gemma 3 files have",
                       kind);
    r = gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &prefix, err);
    if (r == 0 && prefix)
        return err_set(err, -EINVAL, "tokenizer: 'tokenizer.ggml.add_space_prefix' is true; expected false, as Gemma 3 files have");
    return r == -ENOENT ? 0 : r;
}

int build(tokenizer *t, const struct gguf *g, struct err *err)
{
    static const char types_key[] = "tokenizer.ggml.token_type", scores_key[] = "tokenizer.ggml.scores";
    const void *types, *scores;
    uint64_t n, n_scores;
    int r = read_kind(g, err);
    if (r < 0)
        return r;
    r = gguf_get_array(g, types_key, GGUF_I32, &types, &n, err);
    if (r < 0)
        return missing(err, r, types_key, "one type per piece");
    r = gguf_get_array(g, scores_key, GGUF_F32, &scores, &n_scores, err);
    if (r < 0)
        return missing(err, r, scores_key, "one score per piece");
    if (n == 0 || n > VOCAB_MAX || n != n_scores)
        return err_set(err, -EINVAL, "tokenizer: %llu token types and %llu scores; expected one of each per piece, 1 to %u",
                       (unsigned long long)n, (unsigned long long)n_scores, VOCAB_MAX);
    const char *extra;
    size_t extra_n;
    if (gguf_get_string_at(g, "tokenizer.ggml.tokens", n, &extra, &extra_n, nullptr) == 0)
        return err_set(err, -EINVAL,
                       "tokenizer: more pieces in 'tokenizer.ggml.tokens' than the %llu token types; expected as many",
                       (unsigned long long)n);
    t->type.resize(n);
    for (uint64_t i = 0; i < n; i++) {
        int32_t type;
        memcpy(&type, static_cast<const char *>(types) + i * 4, 4);
        t->type[i] = uint8_t(type < 0 || type > 255 ? 255 : type);
    }
    std::vector<float> score(n);
    memcpy(score.data(), scores, n * sizeof(float));
    for (uint64_t i = 0; i < n; i++) {
        if (!(score[i] >= -3.4e38f && score[i] <= 3.4e38f))
            return bad(err, scores_key, i, "a score that is not finite", "a number");
    }
    r = read_pieces(t, g, n, err);
    if (r == 0)
        r = check_pieces(t, err);
    if (r == 0)
        r = read_ids(t, g, err);
    if (r < 0)
        return r;
    find_symbols(t);
    auto status = t->processor.LoadFromSerializedProto(build_model(t, score.data()));
    return status.ok() ? 0
                       : err_set(err, -EINVAL, "tokenizer: sentencepiece refuses the vocabulary: %s", status.ToString().c_str());
}

/* Runs f, so that no exception leaves this file. */
template <typename F> int guarded(struct err *err, F f)
{
    try {
        return f();
    } catch (const std::bad_alloc &) {
        return err_set(err, -ENOMEM, "tokenizer: out of memory");
    } catch (const std::exception &e) {
        return err_set(err, -EINVAL, "tokenizer: %s", e.what());
    }
}

int too_many(const tokenizer *t, size_t at_least, struct err *err)
{
    return err_set(err, -E2BIG, "the prompt has at least %zu tokens; the context has %zu ('context' in the config)", at_least,
                   t->tokens_max);
}

/* A text that is too long whatever it says, before there are copies of it. */
int check_bytes_of_text(const tokenizer *t, size_t n, struct err *err)
{
    size_t least = (n + t->longest - 1) / t->longest;
    return least > t->tokens_max ? too_many(t, least, err) : 0;
}

int encode_plain(const tokenizer *t, std::string_view s, std::vector<uint32_t> *ids, struct err *err)
{
    std::vector<int> part;
    while (!s.empty()) {
        size_t n = neighbours_cut(t->pairs.get(), &t->cuts, s.data(), s.size());
        if (n == 0)
            return err_set(err, -E2BIG,
                           "the prompt has more than %zu bytes in a row, from U+%04X on, that can only be tokenized as a whole (a "
                           "space counts as three); expected at most so many: shorten the row, or break it up",
                           t->cuts.stretch, neighbours_first(s.data(), s.size()));
        auto status = t->processor.Encode(s.substr(0, n), &part);
        if (!status.ok())
            return err_set(err, -EINVAL, "tokenizer: sentencepiece cannot encode the text: %s", status.ToString().c_str());
        ids->insert(ids->end(), part.begin(), part.end());
        s.remove_prefix(n);
        if (!s.empty() && ids->size() > t->tokens_max)
            return too_many(t, ids->size(), err);
    }
    return 0;
}

/* The longest symbol at the beginning of s, or -1. */
int64_t match_symbol(const tokenizer *t, std::string_view s)
{
    for (size_t length : t->symbol_lengths) {
        if (length > s.size())
            continue;
        auto it = t->symbols.find(s.substr(0, length));
        if (it != t->symbols.end())
            return it->second;
    }
    return -1;
}

int encode_markers(const tokenizer *t, std::string_view s, std::vector<uint32_t> *ids, struct err *err)
{
    size_t start = 0;
    for (size_t i = 0; i < s.size();) {
        int64_t id = t->symbol_start[static_cast<unsigned char>(s[i])] ? match_symbol(t, s.substr(i)) : -1;
        size_t length = id < 0 ? 1 : t->piece(uint32_t(id)).size();
        if (ids->size() > t->tokens_max)
            return too_many(t, ids->size(), err);
        if (id >= 0 && t->marker[size_t(id)]) {
            int r = encode_plain(t, s.substr(start, i - start), ids, err);
            if (r < 0)
                return r;
            ids->push_back(uint32_t(id));
            start = i + length;
        }
        i += length;
    }
    return encode_plain(t, s.substr(start), ids, err);
}

int give(const std::vector<uint32_t> &ids, uint32_t **ret, size_t *ret_n, struct err *err)
{
    auto p = static_cast<uint32_t *>(malloc((ids.size() + 1) * sizeof(uint32_t)));
    if (!p)
        return err_set(err, -ENOMEM, "tokenizer: out of memory for %zu ids", ids.size());
    std::copy(ids.begin(), ids.end(), p);
    *ret = p;
    *ret_n = ids.size();
    return 0;
}

/* Bytes of the white space character at s, 0 when it is none; the set that Python's str.strip() removes. */
size_t space_length(std::string_view s)
{
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    if (s.empty())
        return 0;
    unsigned char c = static_cast<unsigned char>(s[0]);
    if (c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x1f))
        return 1;
    for (const char *w : wide) {
        if (s.compare(0, strlen(w), w) == 0)
            return strlen(w);
    }
    bool general = s.size() >= 3 && s.compare(0, 2, "\xe2\x80") == 0 && static_cast<unsigned char>(s[2]) <= 0x8a; /* U+2000..200A */
    return general ? 3 : 0;
}

std::string_view trim(std::string_view s)
{
    size_t n;
    while ((n = space_length(s)) > 0)
        s.remove_prefix(n);
    for (bool again = true; again;) {
        again = false;
        for (size_t k = 1; k <= 3 && k <= s.size(); k++) {
            if (space_length(s.substr(s.size() - k)) == k) {
                s.remove_suffix(k);
                again = true;
                break;
            }
        }
    }
    return s;
}

int encode_chat(const tokenizer *t, const struct tokenizer_message *m, size_t n, std::vector<uint32_t> *ids, struct err *err)
{
    std::string system;
    size_t first = 0;
    if (t->turn_start == UINT32_MAX || t->turn_end == UINT32_MAX)
        return err_set(err, -EINVAL,
                       "tokenizer: the model has no <start_of_turn> and <end_of_turn>; expected a chat model, or use no --chat");
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += trim(m[i].content).size();
    int r = check_bytes_of_text(t, bytes, err);
    if (r < 0)
        return r;
    if (n && strcmp(m[0].role, "system") == 0) {
        system = std::string(m[0].content) + "\n\n";
        first = 1;
    }
    if (first == n)
        return err_set(err, -EINVAL, "chat: %zu messages; expected at least one of the user", n - first);
    ids->push_back(t->bos);
    for (size_t i = first; i < n; i++) {
        const char *expected = (i - first) % 2 ? "assistant" : "user";
        if (ids->size() > t->tokens_max)
            return too_many(t, ids->size(), err);
        if (strcmp(m[i].role, expected) != 0)
            return err_set(err, -EINVAL, "chat: message %zu has role '%.40s'; expected '%s': user and assistant take turns", i,
                           m[i].role, expected);
        std::string turn = (i - first) % 2 ? "model\n" : "user\n";
        if (i == first)
            turn += system;
        turn += trim(m[i].content);
        ids->push_back(t->turn_start);
        r = encode_plain(t, turn, ids, err);
        if (r == 0) {
            ids->push_back(t->turn_end);
            r = encode_plain(t, "\n", ids, err);
        }
        if (r < 0)
            return r;
    }
    ids->push_back(t->turn_start);
    return encode_plain(t, "model\n", ids, err);
}

/* Move what is complete in d->pending to d->out; `all`: nothing will follow. */
void flush(detokenizer *d, bool all)
{
    const char *p = d->pending.data();
    size_t i = 0, n = d->pending.size();
    while (i < n) {
        int length = utf8_length(p + i, n - i);
        if (length == 0 && !all)
            break;
        if (length > 0 && p[i] != 0)
            d->out.append(d->pending, i, size_t(length));
        else
            d->out += REPLACEMENT;
        i += length > 0 ? size_t(length) : length < 0 ? size_t(-length) : n - i;
    }
    d->pending.erase(0, i);
}

void append_id(detokenizer *d, uint32_t id)
{
    const tokenizer *t = d->t;
    if (id >= t->size() || (t->silent[id] && t->type[id] != UNKNOWN))
        return;
    if (t->type[id] == BYTE)
        d->pending += char(strtoul(t->text.c_str() + t->offset[id] + 3, nullptr, 16));
    else if (t->type[id] == UNKNOWN)
        d->pending += " \xe2\x81\x87 "; /* as sentencepiece shows it */
    else
        d->pending += with_spaces(t->piece(id));
}
} // namespace

int tokenizer_open(const struct gguf *g, struct tokenizer **ret, struct err *err)
{
    tokenizer *t = nullptr;
    int r = guarded(err, [&] {
        t = new tokenizer;
        return build(t, g, err);
    });
    if (r < 0)
        delete t;
    else
        *ret = t;
    return r;
}

void tokenizer_close(struct tokenizer *t)
{
    delete t;
}

void tokenizer_bound(struct tokenizer *t, const struct tokenizer_bounds *b)
{
    t->tokens_max = b->tokens;
    t->cuts = {b->part ? b->part : PART, b->stretch ? b->stretch : TOKENIZER_STRETCH, true};
}

uint64_t tokenizer_encode_bytes(uint32_t tokens)
{
    return TOKENIZER_STRETCH * UINT64_C(256) + tokens * UINT64_C(16); /* ids: twice where they grow, and copies */
}

uint32_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->size();
}

uint32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

bool tokenizer_is_end(const struct tokenizer *t, uint32_t id)
{
    return std::find(t->ends.begin(), t->ends.end(), id) != t->ends.end();
}

const char *tokenizer_piece(const struct tokenizer *t, uint32_t id)
{
    return id < t->size() ? t->text.c_str() + t->offset[id] : nullptr;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, bool markers, uint32_t **ret, size_t *ret_n,
                     struct err *err)
{
    if (n > TEXT_MAX)
        return err_set(err, -E2BIG, "tokenizer: text of %zu bytes; expected at most %zu", n, TEXT_MAX);
    return guarded(err, [&] {
        std::vector<uint32_t> ids;
        std::string_view s(text, n);
        int r = check_bytes_of_text(t, n, err);
        if (r == 0)
            r = markers ? encode_markers(t, s, &ids, err) : encode_plain(t, s, &ids, err);
        return r < 0 ? r : give(ids, ret, ret_n, err);
    });
}

int tokenizer_chat(const struct tokenizer *t, const struct tokenizer_message *m, size_t n, uint32_t **ret, size_t *ret_n,
                   struct err *err)
{
    return guarded(err, [&] {
        std::vector<uint32_t> ids;
        int r = encode_chat(t, m, n, &ids, err);
        return r < 0 ? r : give(ids, ret, ret_n, err);
    });
}

size_t tokenizer_trim(const char **text, size_t n)
{
    std::string_view s = trim(std::string_view(*text, n));
    *text = s.data();
    return s.size();
}

size_t tokenizer_bytes(const struct tokenizer *t, uint32_t id, char *buf, size_t room)
{
    size_t n = 0;
    guarded(nullptr, [&] {
        detokenizer d{t, {}, {}};
        append_id(&d, id);
        n = std::min(room, d.pending.size());
        memcpy(buf, d.pending.data(), n);
        return 0;
    });
    return n;
}

int detokenizer_open(const struct tokenizer *t, struct detokenizer **ret)
{
    return guarded(nullptr, [&] {
        *ret = new detokenizer{t, {}, {}};
        return 0;
    });
}

void detokenizer_close(struct detokenizer *d)
{
    delete d;
}

const char *detokenizer_push(struct detokenizer *d, uint32_t id)
{
    d->out.clear();
    guarded(nullptr, [&] {
        append_id(d, id);
        flush(d, false);
        return 0;
    });
    return d->out.c_str();
}

const char *detokenizer_finish(struct detokenizer *d)
{
    d->out.clear();
    guarded(nullptr, [&] {
        flush(d, true);
        return 0;
    });
    return d->out.c_str();
}

int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, char **ret, size_t *ret_n, struct err *err)
{
    return guarded(err, [&] {
        detokenizer d{t, {}, {}};
        for (size_t i = 0; i < n; i++)
            append_id(&d, ids[i]);
        flush(&d, true);
        auto p = static_cast<char *>(malloc(d.out.size() + 1));
        if (!p)
            return err_set(err, -ENOMEM, "tokenizer: out of memory for %zu bytes of text", d.out.size());
        memcpy(p, d.out.c_str(), d.out.size() + 1);
        *ret = p;
        *ret_n = d.out.size();
        return 0;
    });
}
