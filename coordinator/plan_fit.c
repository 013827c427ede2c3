/* SPDX-License-Identifier: MIT
 * Finds the plan that fits its limits: caps of processes, a total, the pools of the workers, the machine. Everything asked for here
 * is composed by plan.c in microseconds, so the search tries, and never estimates. Pure; allocates nothing.
 *
 * Weights stay in memory as long as any chunk size and KV cache lets them: chunks become smaller first, to 16 tokens; then the KV
 * cache, to what one sequence may hold; then chunks again, to one token of each sequence. Only then layers are streamed, with large
 * chunks and a KV cache of at most a quarter of the limit, and as few of them as possible. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/plan_impl.h"
#include "model/work_plan.h"
#include "proto/err.h"
#include "proto/memlock.h"
#include "proto/util.h"

#define DEFAULT_CHUNK 128
#define DEFAULT_RING_SLOTS 4
#define RING_SLOTS_MAX 16
#define GOOD_CHUNK 16 /* prefill is slow below it: rather fewer sequences at once */
#define MIB (UINT64_C(1) << 20)

static bool fits(const struct plan_inputs *in, const struct plan_choice *ch, struct plan *p)
{
    enum config_process unused;
    plan_compose(in, ch, p);
    return plan_passes(in, p, &unused) == PLAN_FITS;
}

static uint64_t pages_of_one(const struct plan_inputs *in, const struct plan_choice *ch)
{
    return work_plan_kv_pages(&in->hparams, in->config->context, ch->chunk, ch->ring_slots);
}

/* The largest value from lo, which fits, to hi. */
static void raise_pages(const struct plan_inputs *in, struct plan_choice *ch, uint64_t hi, struct plan *p)
{
    uint64_t lo = ch->pages;
    while (lo < hi) {
        ch->pages = lo + (hi - lo + 1) / 2;
        if (fits(in, ch, p))
            lo = ch->pages;
        else
            hi = ch->pages - 1;
    }
    ch->pages = lo;
}

/* Pages for all sequences; or, unless `all`, as many as fit, at least those of one. */
static bool fit_pages(const struct plan_inputs *in, struct plan_choice *ch, bool all, struct plan *p)
{
    uint64_t one = pages_of_one(in, ch), most = one * in->config->sequences;
    ch->pages = most;
    if (fits(in, ch, p))
        return true;
    ch->pages = one;
    if (all || !fits(in, ch, p))
        return false;
    raise_pages(in, ch, most, p);
    return true;
}

struct range { /* of chunk sizes, downwards */
    uint32_t first, least;
};

static struct range chunks_of(const struct config *c)
{
    struct range r = {.first = c->chunk_tokens ? c->chunk_tokens : MIN(DEFAULT_CHUNK, c->context)};
    r.first = MAX(r.first, c->sequences); /* a decode chunk holds one token of each */
    r.least = c->chunk_tokens ? r.first : c->sequences;
    return r;
}

static bool fit_chunk(const struct plan_inputs *in, struct plan_choice *ch, struct plan *p)
{
    const struct range r = chunks_of(in->config);
    for (ch->chunk = r.first; ch->chunk >= MAX(r.least, GOOD_CHUNK); ch->chunk /= 2) {
        if (fit_pages(in, ch, true, p))
            return true;
    }
    for (ch->chunk = MAX(MIN(r.first, GOOD_CHUNK), r.least);; ch->chunk = MAX(ch->chunk / 2, r.least)) {
        if (fit_pages(in, ch, false, p))
            return true;
        if (ch->chunk == r.least)
            return false;
    }
}

/* What is left holds weights as the NPU takes them, of as many layers as fit, unless they come and go. */
static void fit_npu_resident(const struct plan_inputs *in, struct plan_choice *ch, struct plan *p)
{
    if (!p->npu.xrt || !p->npu.kept || ch->streamed[0])
        return;
    for (uint32_t step = 512; step; step /= 2) {
        ch->npu_resident += step;
        if (ch->npu_resident > in->hparams.n_layers || !fits(in, ch, p))
            ch->npu_resident -= step;
    }
}

/* ---- streaming ---- */

static uint32_t forced(const struct plan_inputs *in, int worker)
{
    uint32_t n = worker ? in->config->gpu.streamed : in->config->npu.streamed;
    return n == CONFIG_AUTO ? n : residency_round(in->hparams.n_layers, n, plan_stream_slots(in->config, in->hparams.n_layers));
}

static uint32_t most_streamed(const struct plan_inputs *in, int worker)
{
    uint32_t n = forced(in, worker);
    return n == CONFIG_AUTO
               ? residency_round(in->hparams.n_layers, in->hparams.n_layers, plan_stream_slots(in->config, in->hparams.n_layers))
               : n;
}

/* The limit that a KV cache shall leave room under. */
static uint64_t tightest(const struct plan_inputs *in, const struct plan *p)
{
    const struct config *c = in->config;
    const uint64_t all[] = {c->total, c->caps[CONFIG_NPU], p->npu_pool, p->machine.total};
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        least = all[i] ? MIN(least, all[i]) : least;
    return least;
}

/* With everything streamed that may be: large chunks, and pages of a quarter of the limit, or what there is room for. */
static bool fit_streamed_chunk(const struct plan_inputs *in, struct plan_choice *ch, struct plan *p)
{
    const struct range r = chunks_of(in->config);
    for (ch->chunk = r.first;; ch->chunk = MAX(ch->chunk / 2, r.least)) {
        uint64_t one = pages_of_one(in, ch);
        ch->pages = one;
        if (fits(in, ch, p)) {
            uint64_t quarter = tightest(in, p) / 4, page = p->process[CONFIG_NPU].bytes[BUDGET_KV] / one + 1;
            raise_pages(in, ch, MIN(one * in->config->sequences, MAX(one, quarter / page)), p);
            return true;
        }
        if (ch->chunk == r.least)
            return false;
    }
}

/* Larger passes read each layer less often for a long prompt, where they cost next to nothing. */
static void widen_passes(const struct plan_inputs *in, struct plan_choice *ch, struct plan *p)
{
    uint64_t before[CONFIG_PROCESSES], limit = tightest(in, p);
    plan_compose(in, ch, p);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        before[i] = p->process[i].total;
    for (uint32_t slots = RING_SLOTS_MAX; slots > DEFAULT_RING_SLOTS; slots /= 2) {
        struct plan_choice wide = *ch;
        uint64_t more = 0;
        wide.ring_slots = slots;
        wide.pages =
            (ch->pages * pages_of_one(in, &wide) + pages_of_one(in, ch) - 1) / pages_of_one(in, ch); /* for as many sequences */
        bool ok = fits(in, &wide, p);
        for (int i = 0; i < CONFIG_PROCESSES; i++)
            more += p->process[i].total - MIN(p->process[i].total, before[i]);
        if (ok && more <= limit / 50) {
            *ch = wide;
            return;
        }
    }
}

/* Of the layers that may be streamed or not, the fewest bytes: for each number of npu_worker's layers the least of gpu_worker's. */
static void pin_most(const struct plan_inputs *in, struct plan_choice *ch, struct plan *p)
{
    uint32_t slots = plan_stream_slots(in->config, in->hparams.n_layers), most[2] = {most_streamed(in, 0), most_streamed(in, 1)};
    bool free_choice[2] = {forced(in, 0) == CONFIG_AUTO, forced(in, 1) == CONFIG_AUTO};
    struct plan_choice best = *ch, try = *ch;
    uint64_t best_bytes = UINT64_MAX;
    for (uint32_t a = free_choice[0] ? 0 : most[0]; a <= most[0]; a += a ? slots : 2 * slots) {
        uint32_t lo = free_choice[1] ? 0 : most[1] / slots, hi = most[1] / slots; /* in steps of slots; one step is none at all */
        try.streamed[0] = a;
        try.streamed[1] = most[1];
        if (!fits(in, &try, p))
            continue;
        while (lo < hi) {
            uint32_t mid = lo + (hi - lo) / 2;
            try.streamed[1] = mid < 2 ? 0 : mid * slots;
            if (fits(in, &try, p))
                hi = mid;
            else
                lo = mid + 1;
        }
        try.streamed[1] = lo < 2 ? 0 : lo * slots;
        plan_compose(in, &try, p);
        if (p->streamed_bytes < best_bytes) {
            best = try;
            best_bytes = p->streamed_bytes;
        }
    }
    *ch = best;
}

int plan_choose(const struct plan_inputs *in, struct plan *ret)
{
    struct plan_choice ch = {.ring_slots = DEFAULT_RING_SLOTS};
    bool any = false;
    for (int i = 0; i < 2; i++) {
        uint32_t n = forced(in, i);
        ch.streamed[i] = n == CONFIG_AUTO ? 0 : n;
        any = any || (n == CONFIG_AUTO && most_streamed(in, i));
    }
    if (fit_chunk(in, &ch, ret)) {
        if (ch.streamed[0] || ch.streamed[1])
            widen_passes(in, &ch, ret);
        fit_npu_resident(in, &ch, ret);
        plan_compose(in, &ch, ret);
        return 0;
    }
    if (!in->may_stream || !any) {
        ch.pages = pages_of_one(in, &ch);
        plan_compose(in, &ch, ret);
        return -ENOMEM;
    }
    for (int i = 0; i < 2; i++)
        ch.streamed[i] = most_streamed(in, i);
    bool ok = fit_streamed_chunk(in, &ch, ret);
    if (ok) {
        widen_passes(in, &ch, ret);
        pin_most(in, &ch, ret);
        fit_npu_resident(in, &ch, ret);
    }
    plan_compose(in, &ch, ret);
    return ok ? 0 : -ENOMEM;
}

/* ---- refusal ---- */

/* Limits that somebody has set and may change. */
struct knob {
    const char *key;
    uint64_t *value;
};
#define KNOBS (CONFIG_PROCESSES + 3)

/* The total comes last: it must hold what the others have become. */
static void knobs_of(struct config *c, struct knob *k)
{
    static const char *const caps[] = {"memory.coordinator", "memory.loader", "memory.npu_worker", "memory.gpu_worker"};
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        k[i] = (struct knob){caps[i], &c->caps[i]};
    k[CONFIG_PROCESSES] = (struct knob){"npu.memory", &c->npu.memory};
    k[CONFIG_PROCESSES + 1] = (struct knob){"gpu.memory", &c->gpu.memory};
    k[CONFIG_PROCESSES + 2] = (struct knob){"memory.total", &c->total};
}

static bool chooses(const struct plan_inputs *in, const struct config *c)
{
    static struct plan p;
    struct plan_inputs other = *in;
    other.config = c;
    return plan_choose(&other, &p) == 0;
}

/* The least value of a knob in whole MiB with which a plan fits; 0: none does. */
static uint64_t least_value(const struct plan_inputs *in, const struct config *c, uint64_t *value)
{
    uint64_t old = *value, lo = old / MIB, hi = MAX(2 * lo, UINT64_C(1));
    for (;; hi *= 2) {
        *value = hi * MIB;
        if (chooses(in, c))
            break;
        if (hi > (UINT64_C(1) << 24)) {
            *value = old;
            return 0;
        }
        lo = hi;
    }
    while (hi - lo > 1) {
        uint64_t mid = lo + (hi - lo) / 2;
        *value = mid * MIB;
        if (chooses(in, c))
            hi = mid;
        else
            lo = mid;
    }
    *value = old;
    return hi;
}

static void change(struct plan_change *list, int *n, const char *key, const char *also, const char *value)
{
    struct plan_change *c = &list[(*n)++];
    *c = (struct plan_change){.key = key, .also = also};
    snprintf(c->value, sizeof(c->value), "%s", value);
}

/* Limits that have to be raised, each as far as it must when the others are, in words. None: no raising helps. */
static void find_limits(const struct plan_inputs *in, struct plan_refusal *ret, char *text, size_t size)
{
    struct config c = *in->config;
    struct knob k[KNOBS];
    uint64_t value[KNOBS];
    size_t used = 0;
    knobs_of(&c, k);
    for (int i = 0; i < KNOBS; i++) {
        bool pool = k[i].value == &c.npu.memory;
        value[i] = pool ? plan_npu_memory(&c, in->machine->npu) : *k[i].value;
        *k[i].value = pool && value[i] ? UINT64_C(1) << 50 : 0; /* without a value an NPU's pool has its default */
    }
    if (!chooses(in, &c))
        return;
    for (int i = 0; i < KNOBS; i++) {
        char now[32], then[32];
        *k[i].value = value[i];
        if (!value[i] || chooses(in, &c))
            continue;
        uint64_t least = least_value(in, &c, k[i].value);
        *k[i].value = least * MIB;
        int w = snprintf(text + used, size - used, "%s'%s' is %s; raise it to at least %" PRIu64 " MiB",
                         ret->n_raise ? ", and " : "", k[i].key, util_format_bytes(now, sizeof(now), value[i]), least);
        used = MIN(used + (size_t)MAX(w, 0), size - 1);
        snprintf(then, sizeof(then), "%" PRIu64 "MiB", least);
        change(ret->raise, &ret->n_raise, k[i].key, NULL, then);
    }
}

/* What all caps come to: those of the config, and of the others what they need with the margin. *ret_need: what the config's caps
 * would be if they were as small. */
static uint64_t caps_of(const struct plan_inputs *in, const struct plan *p, uint64_t *ret_need)
{
    uint64_t caps = 0;
    *ret_need = 0;
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t cap = in->config->caps[i];
        caps += cap ? cap : p->process[i].total + PLAN_MARGIN;
        *ret_need += p->process[i].total + (cap ? 0 : PLAN_MARGIN);
    }
    return caps;
}

/* The total would hold what is needed, and does not hold the caps that the config gives single processes. */
static bool caps_exceed_total(const struct plan_inputs *in, const struct plan *p)
{
    uint64_t need, caps = caps_of(in, p, &need);
    return in->config->total && caps > in->config->total && need <= in->config->total;
}

/* Then each of them that may be so much lower. */
static void find_lower_caps(const struct plan_inputs *in, const struct plan *p, struct plan_refusal *ret)
{
    struct config c = *in->config;
    struct knob k[KNOBS];
    uint64_t need, over = caps_of(in, p, &need) - c.total;
    knobs_of(&c, k);
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        uint64_t cap = c.caps[i], lower = cap > over ? (cap - over) / MIB : 0;
        char text[24];
        if (!lower)
            continue;
        c.caps[i] = lower * MIB;
        snprintf(text, sizeof(text), "%" PRIu64 "MiB", lower);
        if (chooses(in, &c))
            change(ret->other, &ret->n_other, k[i].key, NULL, text);
        c.caps[i] = cap;
    }
}

static void describe_caps(const struct plan_inputs *in, const struct plan *p, char *text, size_t size)
{
    struct config c = *in->config;
    struct knob k[KNOBS];
    char bytes[32], list[256] = "";
    size_t used = 0;
    uint64_t need, caps = caps_of(in, p, &need);
    bool others = false;
    knobs_of(&c, k);
    for (int i = 0; i < CONFIG_PROCESSES; i++) {
        others |= !c.caps[i];
        if (!c.caps[i])
            continue;
        int w = snprintf(list + used, sizeof(list) - used, "%s'%s' %s", used ? ", " : "", k[i].key,
                         util_format_bytes(bytes, sizeof(bytes), c.caps[i]));
        used = MIN(used + (size_t)MAX(w, 0), sizeof(list) - 1);
    }
    snprintf(text, size, "the caps add up to %s (%s%s)", util_format_bytes(bytes, sizeof(bytes), caps), list,
             others ? ", and of each other process what it needs and 8 MiB of margin" : "");
}

/* Other ways, each of which is enough: a shorter context, a smaller KV type, what the config insists on. */
static void find_others(const struct plan_inputs *in, struct plan_refusal *ret)
{
    struct config c = *in->config;
    uint32_t lo = 0, hi = c.context;
    while (hi - lo > 1) {
        c.context = lo + (hi - lo) / 2;
        if (chooses(in, &c))
            lo = c.context;
        else
            hi = c.context;
    }
    if (lo) {
        char text[24];
        snprintf(text, sizeof(text), "%u", lo);
        change(ret->other, &ret->n_other, "context", NULL, text);
    }
    c = *in->config;
    c.kv_type = 8; /* q8_0 */
    if (in->config->kv_type != 8 && in->hparams.head_dim % 32 == 0 && chooses(in, &c))
        change(ret->other, &ret->n_other, "kv_type", NULL, "q8_0");
    c = *in->config;
    c.chunk_tokens = 0;
    if (in->config->chunk_tokens && chooses(in, &c))
        change(ret->other, &ret->n_other, "chunk_tokens", NULL, "auto");
    c = *in->config;
    c.sequences = 1;
    if (in->config->sequences > 1 && chooses(in, &c))
        change(ret->other, &ret->n_other, "sequences", NULL, "1");
    c = *in->config;
    c.stream_slots = 0;
    if (in->config->stream_slots && chooses(in, &c))
        change(ret->other, &ret->n_other, "stream_slots", NULL, "auto");
    c = *in->config;
    c.npu.streamed = c.gpu.streamed = CONFIG_AUTO;
    if ((in->config->npu.streamed != CONFIG_AUTO || in->config->gpu.streamed != CONFIG_AUTO) && chooses(in, &c))
        change(ret->other, &ret->n_other, "npu.streamed", "gpu.streamed", "auto");
}

static void describe_others(const struct plan_refusal *r, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < r->n_other; i++) {
        const struct plan_change *c = &r->other[i];
        bool lower = strncmp(c->key, "memory.", 7) == 0 || strcmp(c->key, "context") == 0 || strcmp(c->key, "sequences") == 0;
        int w = snprintf(text + used, size - used, "%s%s '%s'%s%s%s to %s%s", used ? ", or " : "", lower ? "lower" : "set", c->key,
                         c->also ? " and '" : "", c->also ? c->also : "", c->also ? "'" : "", lower ? "at most " : "", c->value);
        used = MIN(used + (size_t)MAX(w, 0), size - 1);
    }
}

/* What the smallest plan needs and does not get. */
static void describe_need(const struct plan_inputs *in, const struct plan *p, char *text, size_t size)
{
    char need[32], have[32];
    enum config_process process;
    uint64_t sum = 0;
    enum plan_limit limit = plan_passes(in, p, &process);
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        sum += p->process[i].total;
    switch (limit) {
    case PLAN_CAP:
        snprintf(text, size, "%s needs %s", plan_process_name(process),
                 util_format_bytes(need, sizeof(need), p->process[process].total));
        break;
    case PLAN_NPU_POOL:
        snprintf(text, size,
                 "npu_worker's weights, one sequence's KV cache and scratch for chunks of %u tokens need %s, which may be "
                 "80%% of 'npu.memory'",
                 p->chunk_tokens,
                 util_format_bytes(need, sizeof(need), p->process[CONFIG_NPU].total - p->process[CONFIG_NPU].fixed));
        break;
    case PLAN_GPU_POOL:
        snprintf(text, size, "gpu_worker's weights and scratch need %s",
                 util_format_bytes(need, sizeof(need), p->process[CONFIG_GPU].total - p->process[CONFIG_GPU].fixed));
        break;
    case PLAN_DEVICE:
        snprintf(text, size,
                 "weights and scratch need %s on device '%s', where %s are free; close what uses it, or set "
                 "'gpu.backend' to cpu",
                 util_format_bytes(need, sizeof(need), p->device_bytes), p->gpu.name,
                 util_format_bytes(have, sizeof(have), p->gpu.room));
        break;
    case PLAN_MACHINE:
        snprintf(text, size, "all processes together need %s, with 8 MiB of margin each, and this machine has %s of memory",
                 util_format_bytes(need, sizeof(need), sum), util_format_bytes(have, sizeof(have), p->machine.total));
        break;
    case PLAN_TOTAL:
    case PLAN_LOCKED: /* has its own sentence */
    case PLAN_FITS:
    default:
        snprintf(text, size, "all processes together need %s, and 8 MiB of margin each",
                 util_format_bytes(need, sizeof(need), sum));
        break;
    }
}

void plan_refuse(const struct plan_inputs *in, struct plan *p)
{
    struct plan_refusal *r = &p->refusal;
    char need[384], limits[640] = "", others[512], cap[96] = "", text[32];
    enum config_process process;
    memset(r, 0, sizeof(*r));
    enum plan_limit limit = plan_passes(in, p, &process);
    if (limit == PLAN_LOCKED) { /* no key of the configuration raises it */
        struct err said;
        memlock_check(p->npu.lockable, plan_locked(p), "the NPU's buffers and its driver's heap", &said);
        snprintf(r->text, sizeof(r->text), "%s", said.text);
        return;
    }
    bool caps = limit == PLAN_TOTAL && caps_exceed_total(in, p);
    if (caps)
        describe_caps(in, p, need, sizeof(need));
    else
        describe_need(in, p, need, sizeof(need));
    if (limit == PLAN_DEVICE) {
        snprintf(r->text, sizeof(r->text), "%s", need);
        return;
    }
    if (limit == PLAN_CAP) /* which is not among those that can be raised: another limit is in the way */
        snprintf(cap, sizeof(cap), ", and 'memory.%s' is %s", plan_process_name(process),
                 util_format_bytes(text, sizeof(text), in->config->caps[process]));
    find_limits(in, r, limits, sizeof(limits));
    if (caps)
        find_lower_caps(in, p, r);
    find_others(in, r);
    describe_others(r, others, sizeof(others));
    if (r->n_raise == 0)
        snprintf(r->text, sizeof(r->text), "%s%s; %s", need, cap, others[0] ? others : "take a model of a smaller type");
    else
        snprintf(r->text, sizeof(r->text), "%s, but %s%s%s", need, limits, others[0] ? "; or " : "", others);
}
