/* SPDX-License-Identifier: MIT
 * Owns the texts of a vocabulary in one block, an index by hash, the merges as triples of ids, and for each place where a piece
 * can be split the rank of that merge. Filled by the reader of tokenizer.json, on its thread; it tokenizes nothing but runs of
 * spaces, to see how the list joins them. For Gemma 3 (262,144 pieces, 514,906 merges) it holds about 22 MiB.
 *
 * Ranks and scores agree when (a) every merge that the vocabulary allows is in the list and (b) the merges of one union follow one
 * another in it. For then the text of a union, taken alone, is always put together by the same last merge, and it is the same
 * inside any text as long as nothing merges across its ends; so wherever two places compete for one union, they compete with the
 * same merge, and both rules take the left one. Only runs of spaces need more: SentencePiece takes the longest user-defined
 * symbol from the left and merges nothing with it. */
#include "quantizer/bpe.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/utf8.h"
#include "proto/util.h"
#include "quantizer/spm.h"

#define MARK "\xe2\x96\x81" /* U+2581, a space inside pieces */
#define RUN_MAX 128u        /* spaces in one piece */

struct piece {
    uint32_t at; /* in texts */
    uint16_t n;
    uint8_t type; /* enum spm_type; 0: no such id */
};

struct merge {
    uint32_t left, right, whole;
};

struct bpe {
    struct piece *pieces;
    uint32_t n, n_max;
    char *texts;
    size_t n_texts, texts_cap;
    uint32_t *index; /* id + 1 at hash; a power of two */
    uint32_t mask;
    struct merge *merges;
    uint32_t n_merges, merges_cap;
    uint32_t *rank; /* [n_texts]: 1 + rank of the merge whose right part begins here; 0: none */
};

/* ---- vocabulary ---- */

static uint64_t hash_more(uint64_t h, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)s[i]) * UINT64_C(0x100000001b3);
    return h;
}

static uint32_t hash_end(uint64_t h)
{
    h ^= h >> 29;
    h *= UINT64_C(0xbf58476d1ce4e5b9);
    return (uint32_t)(h >> 32);
}

/* The slot of left + right: its id + 1, or 0 where it would go. */
static uint32_t *slot(const struct bpe *b, const char *left, size_t n_left, const char *right, size_t n_right)
{
    uint64_t h = hash_more(hash_more(UINT64_C(0xcbf29ce484222325), left, n_left), right, n_right);
    for (uint32_t i = hash_end(h);; i++) {
        uint32_t *s = &b->index[i & b->mask];
        if (*s == 0)
            return s;
        const struct piece *p = &b->pieces[*s - 1];
        const char *text = b->texts + p->at;
        if (p->n == n_left + n_right && memcmp(text, left, n_left) == 0 && memcmp(text + n_left, right, n_right) == 0)
            return s;
    }
}

int bpe_open(uint32_t n, struct bpe **ret, struct err *err)
{
    struct bpe *b = calloc(1, sizeof(*b));
    size_t slots = 1024;
    while (slots < n + (size_t)n / 2)
        slots *= 2;
    if (b) {
        b->n_max = n;
        b->mask = (uint32_t)(slots - 1);
        b->pieces = calloc(n ? n : 1, sizeof(*b->pieces));
        b->index = calloc(slots, sizeof(*b->index));
    }
    if (!b || !b->pieces || !b->index) {
        bpe_close(b);
        return err_set(err, -ENOMEM, "out of memory for %u pieces", n);
    }
    *ret = b;
    return 0;
}

void bpe_close(struct bpe *b)
{
    if (!b)
        return;
    free(b->pieces);
    free(b->texts);
    free(b->index);
    free(b->merges);
    free(b->rank);
    free(b);
}

uint32_t bpe_count(const struct bpe *b)
{
    return b->n;
}

int bpe_type(const struct bpe *b, uint32_t id)
{
    return id < b->n ? b->pieces[id].type : 0;
}

void bpe_set_type(struct bpe *b, uint32_t id, int type)
{
    b->pieces[id].type = (uint8_t)type;
}

const char *bpe_text(const struct bpe *b, uint32_t id, size_t *ret_n)
{
    *ret_n = b->pieces[id].n;
    return b->texts + b->pieces[id].at;
}

char *bpe_take_texts(struct bpe *b)
{
    return take_ptr(&b->texts);
}

int64_t bpe_find(const struct bpe *b, const char *text, size_t n)
{
    return (int64_t)*slot(b, text, n, "", 0) - 1;
}

static bool is_byte(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && s[3] && strchr(digits, s[3]) && s[4] && strchr(digits, s[4]);
}

static int put_text(struct bpe *b, const char *text, size_t n, struct err *err)
{
    if (n > BPE_TEXTS_MAX - b->n_texts)
        return err_set(err, -EINVAL, "the pieces up to '%.*s' have more than %u MiB together; expected less", (int)MIN(n, 48), text,
                       BPE_TEXTS_MAX >> 20);
    if (b->n_texts + n > b->texts_cap) {
        size_t cap = MAX(b->texts_cap * 2, (size_t)65536);
        char *p = realloc(b->texts, cap);
        if (!p)
            return err_set(err, -ENOMEM, "out of memory for %zu bytes of pieces", cap);
        b->texts = p;
        b->texts_cap = cap;
    }
    memcpy(b->texts + b->n_texts, text, n);
    b->n_texts += n;
    return 0;
}

int bpe_add_piece(struct bpe *b, const char *text, size_t n, uint32_t id, struct err *err)
{
    int shown = (int)MIN(n, 48);
    if (n == 0 || n > BPE_PIECE_MAX || memchr(text, 0, n) || !utf8_valid(text, n))
        return err_set(err, -EINVAL, "piece '%.*s' (id %u) has %zu bytes; expected 1 to %u of UTF-8 without NUL", shown, text, id,
                       n, BPE_PIECE_MAX);
    if (id >= b->n_max)
        return err_set(err, -EINVAL, "piece '%.*s' has id %u; expected less than the %u rows of the embedding", shown, text, id,
                       b->n_max);
    if (b->pieces[id].type)
        return err_set(err, -EINVAL, "pieces '%.*s' and '%.*s' both have id %u; expected one piece for each id",
                       MIN(b->pieces[id].n, 48), b->texts + b->pieces[id].at, shown, text, id);
    uint32_t *s = slot(b, text, n, "", 0);
    if (*s)
        return err_set(err, -EINVAL, "piece '%.*s' has ids %u and %u; expected distinct pieces", shown, text, *s - 1, id);
    size_t at = b->n_texts;
    int r = put_text(b, text, n, err);
    if (r < 0)
        return r;
    b->pieces[id] = (struct piece){.at = (uint32_t)at, .n = (uint16_t)n, .type = is_byte(text, n) ? SPM_BYTE : SPM_NORMAL};
    *s = id + 1;
    b->n = MAX(b->n, id + 1);
    return 0;
}

/* ---- merges ---- */

int bpe_add_merge(struct bpe *b, const char *left, size_t n_left, const char *right, size_t n_right, struct err *err)
{
    uint32_t l = n_left ? *slot(b, left, n_left, "", 0) : 0, r = n_right ? *slot(b, right, n_right, "", 0) : 0;
    uint32_t whole = l && r ? *slot(b, left, n_left, right, n_right) : 0;
    if (!whole)
        return err_set(err, -EINVAL, "merge %u joins '%.*s' and '%.*s'; expected both, and what they give, in the vocabulary",
                       b->n_merges, (int)MIN(n_left, 48), left, (int)MIN(n_right, 48), right);
    if (b->n_merges == b->merges_cap) {
        uint32_t cap = MIN(b->merges_cap ? b->merges_cap + b->merges_cap / 2 : 8192, BPE_MERGES_MAX);
        if (b->n_merges == cap)
            return err_set(err, -EINVAL, "more than %u merges; expected fewer, each once", cap);
        struct merge *p = realloc(b->merges, cap * sizeof(*p));
        if (!p)
            return err_set(err, -ENOMEM, "out of memory for %u merges", cap);
        b->merges = p;
        b->merges_cap = cap;
    }
    b->merges[b->n_merges++] = (struct merge){l - 1, r - 1, whole - 1};
    return 0;
}

/* Refused here: a merge that is listed twice, of which the readers of the format take the last. */
static int rank_merges(struct bpe *b, struct err *err)
{
    free(b->rank);
    b->rank = calloc(b->n_texts ? b->n_texts : 1, sizeof(*b->rank));
    if (!b->rank)
        return err_set(err, -ENOMEM, "out of memory for %u merges", b->n_merges);
    for (uint32_t i = 0; i < b->n_merges; i++) {
        const struct merge *m = &b->merges[i];
        uint32_t *at = &b->rank[b->pieces[m->whole].at + b->pieces[m->left].n];
        if (*at)
            return err_set(err, -EINVAL, "merges %u and %u are the same; expected each once", *at - 1, i);
        *at = i + 1;
    }
    return 0;
}

/* ---- runs of spaces ---- */

/* How many spaces a piece consists of; 0 when there is anything else in it. */
static unsigned marks(const struct bpe *b, const struct piece *p)
{
    const char *s = b->texts + p->at;
    if (p->type == 0 || p->n % 3)
        return 0;
    for (unsigned i = 0; i < p->n; i += 3) {
        if (memcmp(s + i, MARK, 3) != 0)
            return 0;
    }
    return p->n / 3;
}

struct runs {
    uint32_t id[RUN_MAX + 1]; /* of the piece of so many spaces, + 1; 0: none */
    unsigned longest, n_added;
};

static int find_runs(const struct bpe *b, struct runs *runs, struct err *err)
{
    *runs = (struct runs){0};
    for (uint32_t i = 0; i < b->n; i++) {
        unsigned n = marks(b, &b->pieces[i]);
        int type = b->pieces[i].type;
        if (n == 0)
            continue;
        if (n > RUN_MAX || (n == 1 && type != SPM_NORMAL) || (type != SPM_NORMAL && type != SPM_USER_DEFINED))
            return err_set(
                err, -ENOTSUP,
                "piece %u is a run of %u spaces of type %d; expected a single space as a normal piece, and runs of 2 to %u", i, n,
                type, RUN_MAX);
        runs->id[n] = i + 1;
        runs->longest = MAX(runs->longest, n);
        runs->n_added += type == SPM_USER_DEFINED;
    }
    return 0;
}

/* Rank of the merge of runs of i and of j spaces; 0: none. */
static uint32_t run_rank(const struct bpe *b, const struct runs *runs, unsigned i, unsigned j)
{
    uint32_t whole = i + j <= runs->longest ? runs->id[i + j] : 0;
    return whole ? b->rank[b->pieces[whole - 1].at + 3 * i] : 0;
}

/* Whether the list cuts n spaces into the longest runs from the left. */
static bool joins_longest(const struct bpe *b, const struct runs *runs, unsigned n)
{
    unsigned length[2 * RUN_MAX], count = n;
    for (unsigned i = 0; i < n; i++)
        length[i] = 1;
    for (;;) {
        uint32_t best = UINT32_MAX, at = 0;
        for (unsigned i = 0; i + 1 < count; i++) {
            uint32_t rank = run_rank(b, runs, length[i], length[i + 1]);
            if (rank && rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == UINT32_MAX)
            break;
        length[at] += length[at + 1];
        memmove(&length[at + 1], &length[at + 2], (--count - at - 1) * sizeof(*length));
    }
    for (unsigned i = 0, left = n; i < count; left -= length[i++]) {
        unsigned longest = MIN(left, runs->longest);
        while (longest > 1 && !runs->id[longest])
            longest--;
        if (length[i] != longest)
            return false;
    }
    return true;
}

/* Whether every merge of runs comes before any other merge that takes a single space and gives the longest runs, and nothing joins
 * a run with something else. If cutting n spaces ever differs, it does so for some n below twice the longest run: of the least such
 * n, all but the last piece and all but the first are cut right, so the first is too short by less than the last. */
static bool runs_are_symbols(const struct bpe *b, const struct runs *runs)
{
    uint32_t last_of_runs = 0, first_of_others = UINT32_MAX;
    for (uint32_t i = 0; i < b->n_merges; i++) {
        const struct merge *m = &b->merges[i];
        bool others_normal = b->pieces[m->whole].type == SPM_NORMAL;
        unsigned left = marks(b, &b->pieces[m->left]), right = marks(b, &b->pieces[m->right]);
        if (marks(b, &b->pieces[m->whole])) {
            last_of_runs = i;
            continue;
        }
        others_normal &= left || b->pieces[m->left].type == SPM_NORMAL;
        others_normal &= right || b->pieces[m->right].type == SPM_NORMAL;
        if (others_normal && (left > 1 || right > 1))
            return false;
        if (others_normal && (left || right))
            first_of_others = MIN(first_of_others, i);
    }
    bool ok = last_of_runs < first_of_others;
    for (unsigned n = 2; ok && n < 2 * runs->longest; n++)
        ok = joins_longest(b, runs, n);
    return ok;
}

/* Says which pieces are runs that behave like user-defined symbols, and makes them that. */
static int settle_runs(struct bpe *b, struct err *err)
{
    struct runs runs;
    int r = find_runs(b, &runs, err);
    if (r < 0 || runs.longest < 2)
        return r;
    bool symbols = runs_are_symbols(b, &runs);
    if (!symbols && runs.n_added)
        return err_set(err, -ENOTSUP,
                       "merges do not join spaces into the longest runs from the left, before and apart from anything else, but %u "
                       "runs are added tokens; expected that they do, as in every Gemma 3: GGUF cannot say another order",
                       runs.n_added);
    for (unsigned i = 2; symbols && i <= runs.longest; i++) {
        if (runs.id[i])
            b->pieces[runs.id[i] - 1].type = SPM_USER_DEFINED;
    }
    return 0;
}

/* ---- scores ---- */

static int refuse(const struct bpe *b, struct err *err, uint32_t i, const char *why)
{
    const struct piece *l = &b->pieces[b->merges[i].left], *r = &b->pieces[b->merges[i].right];
    return err_set(err, -ENOTSUP, "merge %u ('%.*s' and '%.*s') %s", i, MIN(l->n, 48), b->texts + l->at, MIN(r->n, 48),
                   b->texts + r->at, why);
}

/* Takes the rank from merges that never happen: of added tokens, which are cut out of a text before, so that what is left holds
 * none; and from those of runs that are symbols. Then only normal pieces have ranks. */
static int keep_normal(struct bpe *b, struct err *err)
{
    for (uint32_t i = 0; i < b->n_merges; i++) {
        const struct merge *m = &b->merges[i];
        const struct piece *l = &b->pieces[m->left], *r = &b->pieces[m->right], *w = &b->pieces[m->whole];
        if (l->type == SPM_NORMAL && r->type == SPM_NORMAL && w->type == SPM_NORMAL)
            continue;
        if (l->type == SPM_BYTE || r->type == SPM_BYTE || w->type == SPM_BYTE)
            return refuse(b, err, i, "concerns a byte piece; GGUF merges none: expected byte pieces outside the merges");
        b->rank[w->at + l->n] = 0;
    }
    return 0;
}

/* Numbers the unions in the order of the list: scores 0, -1, -2, ... as SentencePiece's trainer writes them. */
static int order_unions(const struct bpe *b, float *scores, uint32_t *ret_n, struct err *err)
{
    uint32_t last = UINT32_MAX, n = 0;
    for (uint32_t i = 0; i < b->n_merges; i++) {
        const struct merge *m = &b->merges[i];
        if (m->whole == last || !b->rank[b->pieces[m->whole].at + b->pieces[m->left].n])
            continue;
        last = m->whole;
        if (scores[last] <= 0)
            return refuse(
                b, err, i,
                "gives a piece that earlier merges gave, with others between; scores cannot say that: expected the list of a "
                "SentencePiece model, ordered by what the merges give");
        scores[last] = -(float)n++;
    }
    *ret_n = n;
    return 0;
}

static int64_t normal(const struct bpe *b, const char *s, size_t n)
{
    int64_t id = bpe_find(b, s, n);
    return id >= 0 && b->pieces[id].type == SPM_NORMAL ? id : -1;
}

/* A reader of scores merges any two neighbours whose union is a piece: each such merge must be in the list. */
static int check_complete(const struct bpe *b, struct err *err)
{
    for (uint32_t id = 0; id < b->n; id++) {
        const struct piece *p = &b->pieces[id];
        const char *s = b->texts + p->at;
        for (unsigned i = 1; p->type == SPM_NORMAL && i < p->n; i++) {
            if ((s[i] & 0xc0) == 0x80 || b->rank[p->at + i] || normal(b, s, i) < 0 || normal(b, s + i, p->n - i) < 0)
                continue;
            return err_set(
                err, -ENOTSUP,
                "no merge joins '%.*s' and '%.*s', although both and what they give (id %u) are pieces; a reader of GGUF "
                "would join them: expected the complete list of a SentencePiece model",
                (int)MIN(i, 48u), s, (int)MIN(p->n - i, 48u), s + i, id);
        }
    }
    return 0;
}

int bpe_scores(struct bpe *b, float *scores, struct err *err)
{
    uint32_t n = 0;
    int r = rank_merges(b, err);
    if (r == 0)
        r = settle_runs(b, err);
    if (r == 0)
        r = keep_normal(b, err);
    if (r < 0)
        return r;
    for (uint32_t id = 0; id < b->n; id++)
        scores[id] = b->pieces[id].type == SPM_NORMAL ? 1 : 0; /* 1: none yet */
    r = order_unions(b, scores, &n, err);
    if (r == 0)
        r = check_complete(b, err);
    for (uint32_t id = 0; r == 0 && id < b->n; id++) {
        if (scores[id] > 0)
            scores[id] = -(float)n++;
    }
    return r;
}
