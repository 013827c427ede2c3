/* SPDX-License-Identifier: MIT
 * Reads a text along all derivations at once. A thread of the state is a symbol that reads a byte, and a linked list of where to go
 * on when its rule ends; lists share their tails. A call at the end of an alternate leaves nothing behind, so that repetition does
 * not nest. Called by schema.c, which builds, and api_format.c, which asks; nothing here knows JSON.
 *
 * Nodes are only added, each list once; grammar_state_match gives back what it added, and grammar_state_feed moves what is alive to
 * the front. While words are matched, sets of threads are numbered and their steps remembered, so that most bytes cost one look-up.
 */
#include "coordinator/grammar.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/util.h"

#define MAX_THREADS 320u /* further ones are forgotten: then some texts that fit are refused, never the reverse */
#define MAX_NODES 8192u
#define MAX_NESTING 96u /* of lists: deeper texts are refused */
#define MAX_WORD 128u   /* longer words are refused */
#define MAX_SETS 192u   /* remembered while words are matched; further ones are computed each time */
#define N_SETS (MAX_SETS + MAX_WORD + 1)
#define TABLE 16384u    /* of nodes by content; a power of two above MAX_NODES */
#define MAX_CHAIN 1024u /* of rules that a rule comes to without reading */
#define NONE UINT32_MAX

enum { KIND_SHIFT = 28, VALUE_MASK = (1 << KIND_SHIFT) - 1 };
enum kind { KIND_BYTE, KIND_SET, KIND_CALL, KIND_END };

struct alternate {
    uint32_t start, next; /* of its symbols; of the rule */
};

struct grammar {
    uint32_t *symbols;
    struct alternate *alternates;
    uint32_t *rules; /* first alternate; NONE: has none */
    uint64_t (*sets)[4];
    uint32_t n_symbols, n_alternates, n_rules, n_sets;
    uint32_t symbols_room, alternates_room, rules_room, sets_room;
    int failed;
};

struct node {
    uint32_t pos, parent, depth;
};

struct thread {
    uint32_t pos, parent; /* pos NONE: the text may end here */
};

struct threads {
    uint32_t n;
    struct thread list[MAX_THREADS];
};

struct grammar_state {
    const struct grammar *g;
    struct node *nodes, *moved; /* [MAX_NODES]; moved: while compacting */
    uint16_t *table;            /* [TABLE]: node + 1, by content; 0: free */
    uint32_t n_nodes;
    struct threads now;
};

struct grammar_matcher {
    uint32_t n;
    struct threads sets[N_SETS], next_set;
    uint16_t next[MAX_SETS][256]; /* set + 1 after a byte; 0: not known; DEAD: none */
};
enum { DEAD = UINT16_MAX };

int grammar_open(struct grammar **ret)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret ? 0 : -ENOMEM;
}

void grammar_close(struct grammar *g)
{
    if (!g)
        return;
    free(g->symbols);
    free(g->alternates);
    free(g->rules);
    free(g->sets);
    free(g);
}

/* Room for n more elements; false: failed. */
static bool make_room(struct grammar *g, void *array, uint32_t *room, uint32_t used, size_t n, size_t size, uint32_t limit)
{
    void *p;
    if (g->failed || used + n > limit) {
        g->failed = g->failed ? g->failed : -E2BIG;
        return false;
    }
    if (used + n <= *room)
        return true;
    memcpy(&p, array, sizeof(p));
    uint32_t more = MIN(limit, MAX(2 * *room, used + (uint32_t)n + 64));
    p = realloc(p, more * size);
    if (!p) {
        g->failed = -ENOMEM;
        return false;
    }
    memcpy(array, &p, sizeof(p));
    *room = more;
    return true;
}

uint32_t grammar_rule(struct grammar *g)
{
    if (!make_room(g, &g->rules, &g->rules_room, g->n_rules, 1, sizeof(*g->rules), GRAMMAR_MAX_RULES))
        return 0;
    g->rules[g->n_rules] = NONE;
    return g->n_rules++;
}

uint32_t grammar_byte(unsigned char b)
{
    return (uint32_t)KIND_BYTE << KIND_SHIFT | b;
}

uint32_t grammar_call(uint32_t rule)
{
    return (uint32_t)KIND_CALL << KIND_SHIFT | rule;
}

uint32_t grammar_set(struct grammar *g, const char *ranges)
{
    if (!make_room(g, &g->sets, &g->sets_room, g->n_sets, 1, sizeof(*g->sets), GRAMMAR_MAX_RULES))
        return 0;
    uint64_t *set = g->sets[g->n_sets];
    memset(set, 0, sizeof(*g->sets));
    for (const unsigned char *p = (const unsigned char *)ranges; p[0] && p[1]; p += 2) {
        for (unsigned b = p[0]; b <= p[1]; b++)
            set[b / 64] |= UINT64_C(1) << (b % 64);
    }
    return (uint32_t)KIND_SET << KIND_SHIFT | g->n_sets++;
}

void grammar_add(struct grammar *g, uint32_t rule, const uint32_t *symbols, size_t n)
{
    if (!make_room(g, &g->symbols, &g->symbols_room, g->n_symbols, n + 1, sizeof(*g->symbols), GRAMMAR_MAX_SYMBOLS) ||
        !make_room(g, &g->alternates, &g->alternates_room, g->n_alternates, 1, sizeof(*g->alternates), GRAMMAR_MAX_SYMBOLS))
        return;
    uint32_t *last = &g->rules[rule];
    while (*last != NONE)
        last = &g->alternates[*last].next;
    *last = g->n_alternates;
    g->alternates[g->n_alternates++] = (struct alternate){.start = g->n_symbols, .next = NONE};
    if (n)
        memcpy(g->symbols + g->n_symbols, symbols, n * sizeof(*symbols));
    g->n_symbols += (uint32_t)n;
    g->symbols[g->n_symbols++] = (uint32_t)KIND_END << KIND_SHIFT;
}

static enum kind kind_of(uint32_t symbol)
{
    return (enum kind)(symbol >> KIND_SHIFT);
}

static bool is_empty(const struct grammar *g, uint32_t rule, const bool *empty)
{
    for (uint32_t a = g->rules[rule]; a != NONE; a = g->alternates[a].next) {
        const uint32_t *s = g->symbols + g->alternates[a].start;
        while (kind_of(*s) == KIND_CALL && empty[*s & VALUE_MASK])
            s++;
        if (kind_of(*s) == KIND_END)
            return true;
    }
    return false;
}

/* Depth first over the rules that a rule may come to without reading. */
static bool loops(const struct grammar *g, uint32_t rule, const bool *empty, uint8_t *seen, uint32_t depth)
{
    if (seen[rule] || depth > MAX_CHAIN)
        return seen[rule] != 2;
    seen[rule] = 1;
    for (uint32_t a = g->rules[rule]; a != NONE; a = g->alternates[a].next) {
        for (const uint32_t *s = g->symbols + g->alternates[a].start; kind_of(*s) == KIND_CALL; s++) {
            if (loops(g, *s & VALUE_MASK, empty, seen, depth + 1))
                return true;
            if (!empty[*s & VALUE_MASK])
                break;
        }
    }
    seen[rule] = 2;
    return false;
}

int grammar_finish(struct grammar *g)
{
    if (g->failed)
        return g->failed;
    auto_free bool *empty = calloc(g->n_rules + 1, sizeof(*empty));
    auto_free uint8_t *seen = calloc(g->n_rules + 1, sizeof(*seen));
    if (!empty || !seen)
        return g->failed = -ENOMEM;
    for (bool again = true; again;) {
        again = false;
        for (uint32_t r = 0; r < g->n_rules; r++) {
            if (!empty[r] && is_empty(g, r, empty))
                again = empty[r] = true;
        }
    }
    for (uint32_t r = 0; r < g->n_rules; r++) {
        if (!seen[r] && loops(g, r, empty, seen, 0))
            return g->failed = -ELOOP;
    }
    return 0;
}

static void add_thread(struct threads *t, uint32_t pos, uint32_t parent)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->list[i].pos == pos && t->list[i].parent == parent)
            return;
    }
    if (t->n < MAX_THREADS)
        t->list[t->n++] = (struct thread){pos, parent};
}

/* The node with this content; NONE: no room. */
static uint32_t node_of(struct grammar_state *s, uint32_t pos, uint32_t parent)
{
    uint32_t h = (pos * 2654435761u ^ (parent + 1) * 40503u) % TABLE;
    for (; s->table[h]; h = (h + 1) % TABLE) {
        const struct node *n = &s->nodes[s->table[h] - 1];
        if (n->pos == pos && n->parent == parent)
            return s->table[h] - 1u;
    }
    uint32_t depth = parent == NONE ? 1 : s->nodes[parent].depth + 1;
    if (depth > MAX_NESTING || s->n_nodes == MAX_NODES)
        return NONE;
    s->nodes[s->n_nodes] = (struct node){pos, parent, depth};
    s->table[h] = (uint16_t)(s->n_nodes + 1);
    return s->n_nodes++;
}

/* Only the first n nodes are left; their order says that a parent comes before what points to it. */
static void keep_nodes(struct grammar_state *s, uint32_t n)
{
    memset(s->table, 0, TABLE * sizeof(*s->table));
    s->n_nodes = 0;
    for (uint32_t i = 0; i < n; i++)
        node_of(s, s->nodes[i].pos, s->nodes[i].parent);
}

/* All threads that come of going on at pos. Ends, because no rule comes to itself without reading. */
static void expand(struct grammar_state *s, struct threads *to, uint32_t pos, uint32_t parent)
{
    const struct grammar *g = s->g;
    while (kind_of(g->symbols[pos]) == KIND_END) {
        if (parent == NONE) {
            add_thread(to, NONE, NONE);
            return;
        }
        pos = s->nodes[parent].pos;
        parent = s->nodes[parent].parent;
    }
    if (kind_of(g->symbols[pos]) != KIND_CALL) {
        add_thread(to, pos, parent);
        return;
    }
    if (kind_of(g->symbols[pos + 1]) != KIND_END) {
        parent = node_of(s, pos + 1, parent);
        if (parent == NONE)
            return;
    }
    for (uint32_t a = g->rules[g->symbols[pos] & VALUE_MASK]; a != NONE; a = g->alternates[a].next)
        expand(s, to, g->alternates[a].start, parent);
}

static void step(struct grammar_state *s, const struct threads *from, struct threads *to, unsigned char b)
{
    const struct grammar *g = s->g;
    to->n = 0;
    for (uint32_t i = 0; i < from->n; i++) {
        const struct thread *t = &from->list[i];
        if (t->pos == NONE)
            continue;
        uint32_t symbol = g->symbols[t->pos], value = symbol & VALUE_MASK;
        if (kind_of(symbol) == KIND_BYTE ? value == b : (g->sets[value][b / 64] >> (b % 64) & 1) != 0)
            expand(s, to, t->pos + 1, t->parent);
    }
}

int grammar_state_open(const struct grammar *g, uint32_t rule, struct grammar_state **ret)
{
    struct grammar_state *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->g = g;
    s->nodes = calloc(MAX_NODES, sizeof(*s->nodes));
    s->moved = calloc(MAX_NODES, sizeof(*s->moved));
    s->table = calloc(TABLE, sizeof(*s->table));
    if (!s->nodes || !s->moved || !s->table) {
        grammar_state_close(s);
        return -ENOMEM;
    }
    for (uint32_t a = g->rules[rule]; a != NONE; a = g->alternates[a].next)
        expand(s, &s->now, g->alternates[a].start, NONE);
    *ret = s;
    return 0;
}

void grammar_state_close(struct grammar_state *s)
{
    if (!s)
        return;
    free(s->nodes);
    free(s->moved);
    free(s->table);
    free(s);
}

/* Copies a list and what it leads to; lists stay as they were, except that they share less. */
static uint32_t move(struct grammar_state *s, uint32_t node, uint32_t *n)
{
    if (node == NONE)
        return NONE;
    uint32_t parent = move(s, s->nodes[node].parent, n);
    for (uint32_t i = 0; i < *n; i++) {
        if (s->moved[i].pos == s->nodes[node].pos && s->moved[i].parent == parent)
            return i;
    }
    s->moved[*n] = (struct node){s->nodes[node].pos, parent, s->nodes[node].depth};
    return (*n)++;
}

static void compact(struct grammar_state *s)
{
    uint32_t n = 0;
    struct threads live = {0};
    for (uint32_t i = 0; i < s->now.n; i++)
        add_thread(&live, s->now.list[i].pos, move(s, s->now.list[i].parent, &n));
    struct node *swap = s->nodes;
    s->nodes = s->moved;
    s->moved = swap;
    s->now = live;
    keep_nodes(s, n);
}

bool grammar_state_feed(struct grammar_state *s, const char *text, size_t n)
{
    struct threads next;
    for (size_t i = 0; i < n; i++) {
        step(s, &s->now, &next, (unsigned char)text[i]);
        s->now = next;
        compact(s);
    }
    return s->now.n > 0;
}

bool grammar_state_complete(const struct grammar_state *s)
{
    for (uint32_t i = 0; i < s->now.n; i++) {
        if (s->now.list[i].pos == NONE)
            return true;
    }
    return false;
}

int grammar_matcher_open(struct grammar_matcher **ret)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret ? 0 : -ENOMEM;
}

void grammar_matcher_close(struct grammar_matcher *m)
{
    free(m);
}

/* The set after a byte, or DEAD. depth: of the set, which has a place of its own when none can be remembered. */
static uint32_t go(struct grammar_state *s, struct grammar_matcher *m, uint32_t from, unsigned char b, uint32_t depth)
{
    if (from < MAX_SETS && m->next[from][b])
        return m->next[from][b] == DEAD ? DEAD : m->next[from][b] - 1u;
    const struct threads *t = &m->next_set;
    uint32_t to = 0;
    step(s, &m->sets[from], &m->next_set, b);
    while (to < m->n && (m->sets[to].n != t->n || memcmp(m->sets[to].list, t->list, t->n * sizeof(*t->list)) != 0))
        to++;
    if (t->n == 0) {
        to = DEAD;
    } else if (to == m->n) {
        to = m->n < MAX_SETS ? m->n++ : MAX_SETS + depth;
        m->sets[to].n = t->n;
        memcpy(m->sets[to].list, t->list, t->n * sizeof(*t->list));
    }
    if (from < MAX_SETS && (to == DEAD || to < MAX_SETS))
        m->next[from][b] = (uint16_t)(to == DEAD ? DEAD : to + 1);
    return to;
}

void grammar_state_match(struct grammar_state *s, struct grammar_matcher *m, const struct grammar_words *w,
                         void (*refuse)(void *ctx, uint32_t i), void *ctx)
{
    uint32_t levels[MAX_WORD + 1] = {0}, n_nodes = s->n_nodes;
    uint32_t valid = 0; /* bytes of the last word that could be read */
    memset(m->next, 0, sizeof(m->next));
    m->sets[0] = s->now;
    m->n = 1;
    for (uint32_t i = 0; i < w->n; i++) {
        const char *word = w->bytes + w->offset[i];
        uint32_t n = w->offset[i + 1] - w->offset[i], at = MIN(valid, i ? w->same[i] : 0u);
        bool as_before = i && w->same[i] > valid && valid < w->offset[i] - w->offset[i - 1]; /* with the byte that failed */
        bool fits = !as_before && n && n <= MAX_WORD;
        while (fits && at < n) {
            uint32_t to = go(s, m, levels[at], (unsigned char)word[at], at);
            fits = to != DEAD;
            if (fits)
                levels[++at] = to;
        }
        valid = at;
        if (!fits)
            refuse(ctx, i);
    }
    keep_nodes(s, n_nodes);
}
