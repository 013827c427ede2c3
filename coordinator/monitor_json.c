/* SPDX-License-Identifier: MIT
 * One table for each object says which member of the snapshot is which key, for both directions. Owns nothing. What is read comes
 * from another process and is checked: types, lengths, no negative numbers. */
#include "coordinator/monitor_json.h"

#include <errno.h>
#include <jansson.h>
#include <stddef.h>
#include <string.h>

#include "coordinator/monitor.h"
#include "proto/err.h"
#include "proto/util.h"

enum kind { KIND_BOOL, KIND_INT, KIND_U32, KIND_U64, KIND_MS, KIND_DOUBLE }; /* KIND_MS: nanoseconds, shown as milliseconds */

struct field {
    const char *key;
    enum kind kind;
    size_t offset;
};

#define COUNT(key, kind, member)                             \
    {                                                        \
        key, kind, offsetof(struct monitor_snapshot, member) \
    }
static const struct field request_fields[] = {
    COUNT("queued", KIND_U32, counts.queued),       COUNT("running", KIND_U32, counts.running),
    COUNT("sequences", KIND_U32, counts.sequences), COUNT("finished", KIND_U64, counts.finished),
    COUNT("failed", KIND_U64, counts.failed),
};
static const struct field token_fields[] = {
    COUNT("prompt", KIND_U64, counts.prompt_tokens),
    COUNT("output", KIND_U64, counts.output_tokens),
    COUNT("cached", KIND_U64, counts.cached_tokens),
    COUNT("prompt_per_second", KIND_DOUBLE, counts.prompt_per_second),
    COUNT("output_per_second", KIND_DOUBLE, counts.output_per_second),
};
static const struct field chunk_fields[] = {
    COUNT("in_flight", KIND_U32, counts.in_flight),
    COUNT("in_flight_most", KIND_U32, counts.in_flight_most),
};
static const struct field kv_fields[] = {
    COUNT("pages", KIND_U64, kv_pages),
    COUNT("pages_used", KIND_U64, kv_pages_used),
};
static const struct field top_fields[] = {
    COUNT("uptime_ms", KIND_U64, uptime_ms),
    COUNT("context", KIND_U32, context),
};
#undef COUNT

#define PROCESS(key, kind, member)                               \
    {                                                            \
        key, kind, offsetof(struct engine_process_stats, member) \
    }
static const struct field process_fields[] = {
    PROCESS("pid", KIND_INT, pid),
    PROCESS("answered", KIND_BOOL, answered),
    PROCESS("working", KIND_BOOL, working),
    PROCESS("layer", KIND_U32, layer),
    PROCESS("cap_bytes", KIND_U64, cap),
    PROCESS("cap_enforced", KIND_BOOL, cap_enforced),
    PROCESS("spawned", KIND_BOOL, spawned),
    PROCESS("kills", KIND_U64, kills),
    PROCESS("restarts", KIND_U64, restarts),
    PROCESS("peak_bytes", KIND_U64, peak_bytes),
    PROCESS("usage_bytes", KIND_U64, usage),
    PROCESS("rss_bytes", KIND_U64, rss),
    PROCESS("private_bytes", KIND_U64, anon),
    PROCESS("pss_bytes", KIND_U64, pss),
    PROCESS("fixed_bytes", KIND_U64, fixed),
    PROCESS("busy_ms", KIND_MS, busy_ns),
    PROCESS("idle_ms", KIND_MS, idle_ns),
    PROCESS("blocked_ms", KIND_MS, blocked_ns),
    PROCESS("chunks", KIND_U64, chunks),
    PROCESS("bytes_read", KIND_U64, bytes_read),
    PROCESS("stream_visits", KIND_U64, stream_visits),
    PROCESS("stream_hits", KIND_U64, stream_hits),
    PROCESS("stream_wait_ms", KIND_MS, stream_wait_ns),
    PROCESS("stream_wait_max_ms", KIND_MS, stream_wait_max_ns),
    PROCESS("products", KIND_U64, products),
    PROCESS("offloaded", KIND_U64, offloaded),
};
#undef PROCESS

#define POOL(key, kind, member)                         \
    {                                                   \
        key, kind, offsetof(struct engine_pool, member) \
    }
static const struct field pool_fields[] = {
    POOL("bytes", KIND_U64, bytes),          POOL("limited", KIND_BOOL, limited), POOL("peak", KIND_U64, peak),
    POOL("largest_free", KIND_U64, largest), POOL("weights", KIND_U64, weights),  POOL("kv", KIND_U64, kv),
    POOL("scratch", KIND_U64, scratch),      POOL("tiles", KIND_U64, tiles),      POOL("instructions", KIND_U64, instructions),
};
#undef POOL

static const struct {
    const char *key;
    const struct field *fields;
    size_t n;
} groups[] = {
    {"requests", request_fields, ARRAY_LEN(request_fields)},
    {"tokens", token_fields, ARRAY_LEN(token_fields)},
    {"chunks", chunk_fields, ARRAY_LEN(chunk_fields)},
    {"kv", kv_fields, ARRAY_LEN(kv_fields)},
};

static json_t *value(const struct field *f, const void *from)
{
    const void *p = (const char *)from + f->offset;
    switch (f->kind) {
    case KIND_BOOL:
        return json_boolean(*(const bool *)p);
    case KIND_INT:
        return json_integer(*(const int *)p);
    case KIND_U32:
        return json_integer(*(const uint32_t *)p);
    case KIND_MS:
        return json_real((double)*(const uint64_t *)p / 1e6);
    case KIND_DOUBLE:
        return json_real(*(const double *)p);
    case KIND_U64:
    default:
        return json_integer((json_int_t) * (const uint64_t *)p);
    }
}

/* Members of `from` into j; with `json_object_set_new`, what could not be made is missing in the end, and seen there. */
static int put(json_t *j, const struct field *fields, size_t n, const void *from)
{
    int r = 0;
    for (size_t i = 0; i < n; i++)
        r |= json_object_set_new(j, fields[i].key, value(&fields[i], from));
    return r;
}

static json_t *bytes_json(const uint64_t bytes[BUDGET_CATEGORIES])
{
    json_t *j = json_object();
    uint64_t sum = 0;
    int r = 0;
    for (int k = 0; k < BUDGET_CATEGORIES; k++) {
        sum += bytes[k];
        r |= json_object_set_new(j, budget_category_name((enum budget_category)k), json_integer((json_int_t)bytes[k]));
    }
    r |= json_object_set_new(j, "total", json_integer((json_int_t)sum));
    if (r == 0)
        return j;
    json_decref(j);
    return NULL;
}

/* With two sums that a reader would make itself. */
static json_t *pool_json(const struct engine_pool *p)
{
    json_t *j = json_object();
    int r = put(j, pool_fields, ARRAY_LEN(pool_fields), p);
    r |= json_object_set_new(j, "used", json_integer((json_int_t)monitor_pool_used(p)));
    r |= json_object_set_new(j, "fragmentation", json_real(monitor_pool_fragmentation(p)));
    if (r == 0)
        return j;
    json_decref(j);
    return NULL;
}

/* By the layer's number. */
static json_t *waits_json(const struct engine_process_stats *s)
{
    json_t *j = json_array();
    for (uint32_t i = 0; j && i < s->n_stream_layers; i++) {
        if (json_array_append_new(j, json_real(s->stream_layer_us[i] / 1e3)) < 0) {
            json_decref(j);
            return NULL;
        }
    }
    return j;
}

static json_t *process_json(const struct engine_process_stats *s)
{
    json_t *budget = bytes_json(s->budget);
    int r = json_object_set_new(budget, "total_peak", json_integer((json_int_t)s->total_peak));
    r |= json_object_set_new(budget, "limit", json_integer((json_int_t)s->limit));
    json_t *j = json_pack("{s:s, s:s, s:o, s:o, s:o, s:s}", "name", s->name, "backend", s->backend, "budget", budget, "peak",
                          bytes_json(s->peak), "planned", bytes_json(s->planned), "last_reason", s->last_reason);
    r |= put(j, process_fields, ARRAY_LEN(process_fields), s);
    if (s->n_stream_layers)
        r |= json_object_set_new(j, "stream_layer_wait_ms", waits_json(s));
    if (s->pool.bytes)
        r |= json_object_set_new(j, "pool", pool_json(&s->pool));
    if (r == 0)
        return j;
    json_decref(j);
    return NULL;
}

json_t *monitor_json_processes(const struct monitor_snapshot *s)
{
    json_t *list = json_array();
    for (int i = 0; list && i < CONFIG_PROCESSES; i++) {
        if (json_array_append_new(list, process_json(&s->process[i])) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

json_t *monitor_json_make(const struct monitor_snapshot *s)
{
    json_t *j = json_pack("{s:s}", "state", monitor_state_name(s->state)), *rings = json_array();
    int r = put(j, top_fields, ARRAY_LEN(top_fields), s);
    for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
        json_t *g = json_object();
        r |= put(g, groups[i].fields, groups[i].n, s);
        r |= json_object_set_new(j, groups[i].key, g);
    }
    for (int i = 0; i < SUPERVISE_RINGS; i++)
        r |= json_array_append_new(rings, json_pack("{s:s, s:i, s:i}", "name", s->rings[i].name, "fill", (int)s->rings[i].fill,
                                                    "slots", (int)s->rings[i].slots));
    r |= json_object_set_new(j, "rings", rings);
    r |= json_object_set_new(j, "processes", monitor_json_processes(s));
    if (r == 0)
        return j;
    json_decref(j);
    return NULL;
}

static int wrong(const char *key, struct err *err)
{
    return err_set(err, -EPROTO,
                   "statistics: key '%s' is missing or holds something else; is it another version of the coordinator?", key);
}

static int get(const json_t *j, const struct field *f, void *to, struct err *err)
{
    const json_t *v = json_object_get(j, f->key);
    void *p = (char *)to + f->offset;
    if (f->kind == KIND_BOOL && json_is_boolean(v)) {
        *(bool *)p = json_is_true(v);
        return 0;
    }
    if (f->kind == KIND_BOOL || !json_is_number(v) || !(json_number_value(v) >= 0) || !(json_number_value(v) < 0x1p63))
        return wrong(f->key, err);
    bool real = f->kind == KIND_MS || f->kind == KIND_DOUBLE;
    json_int_t n = json_integer_value(v);
    if ((!real && !json_is_integer(v)) || (f->kind == KIND_U32 && n > UINT32_MAX) || (f->kind == KIND_INT && n > INT32_MAX))
        return wrong(f->key, err);
    if (f->kind == KIND_MS && !(json_number_value(v) < 0x1p43))
        return wrong(f->key, err);
    if (f->kind == KIND_INT)
        *(int *)p = (int)n;
    else if (f->kind == KIND_U32)
        *(uint32_t *)p = (uint32_t)n;
    else if (f->kind == KIND_U64)
        *(uint64_t *)p = (uint64_t)n;
    else if (f->kind == KIND_MS)
        *(uint64_t *)p = (uint64_t)(json_number_value(v) * 1e6);
    else
        *(double *)p = json_number_value(v);
    return 0;
}

static int get_all(const json_t *j, const struct field *fields, size_t n, void *to, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int r = get(j, &fields[i], to, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int get_text(const json_t *j, const char *key, char *to, size_t size, struct err *err)
{
    const char *s = json_string_value(json_object_get(j, key));
    if (!s || strlen(s) >= size)
        return wrong(key, err);
    memcpy(to, s, strlen(s) + 1);
    return 0;
}

static int get_bytes(const json_t *j, const char *key, uint64_t to[BUDGET_CATEGORIES], struct err *err)
{
    const json_t *group = json_object_get(j, key);
    for (size_t k = 0; k < BUDGET_CATEGORIES; k++) {
        struct field f = {budget_category_name((enum budget_category)k), KIND_U64, k * sizeof(*to)};
        int r = get(group, &f, to, err);
        if (r < 0)
            return err_wrap(err, r, "%s", key);
    }
    return 0;
}

static int get_process(const json_t *j, int i, struct engine_process_stats *s, struct err *err)
{
    static const struct field more[] = {{"total_peak", KIND_U64, offsetof(struct engine_process_stats, total_peak)},
                                        {"limit", KIND_U64, offsetof(struct engine_process_stats, limit)}};
    char name[32];
    s->name = plan_process_name((enum config_process)i);
    int r = get_text(j, "name", name, sizeof(name), err);
    if (r == 0 && strcmp(name, s->name) != 0)
        r = wrong("name", err);
    if (r == 0)
        r = get_text(j, "backend", s->backend, sizeof(s->backend), err);
    if (r == 0)
        r = get_text(j, "last_reason", s->last_reason, sizeof(s->last_reason), err);
    if (r == 0)
        r = get_bytes(j, "budget", s->budget, err);
    if (r == 0)
        r = get_bytes(j, "peak", s->peak, err);
    if (r == 0)
        r = get_bytes(j, "planned", s->planned, err);
    if (r == 0)
        r = get_all(json_object_get(j, "budget"), more, ARRAY_LEN(more), s, err);
    const json_t *pool = json_object_get(j, "pool");
    if (r == 0 && pool)
        r = get_all(pool, pool_fields, ARRAY_LEN(pool_fields), &s->pool, err);
    return r < 0 ? r : get_all(j, process_fields, ARRAY_LEN(process_fields), s, err);
}

static int get_state(const json_t *j, enum monitor_state *ret, struct err *err)
{
    char text[32];
    int r = get_text(j, "state", text, sizeof(text), err);
    for (int i = 0; r == 0 && i < MONITOR_STATES; i++) {
        *ret = (enum monitor_state)i;
        if (strcmp(text, monitor_state_name(*ret)) == 0)
            return 0;
    }
    return r < 0 ? r : wrong("state", err);
}

static int get_ring(const json_t *j, struct monitor_ring *ret, struct err *err)
{
    static const struct field fields[] = {{"fill", KIND_U32, offsetof(struct monitor_ring, fill)},
                                          {"slots", KIND_U32, offsetof(struct monitor_ring, slots)}};
    int r = get_text(j, "name", ret->name, sizeof(ret->name), err);
    return r < 0 ? r : get_all(j, fields, ARRAY_LEN(fields), ret, err);
}

int monitor_json_read(const json_t *j, struct monitor_snapshot *ret, struct err *err)
{
    struct monitor_snapshot s = {.state = MONITOR_STARTING};
    const json_t *rings = json_object_get(j, "rings"), *processes = json_object_get(j, "processes");
    int r = get_state(j, &s.state, err);
    if (r == 0)
        r = get_all(j, top_fields, ARRAY_LEN(top_fields), &s, err);
    for (size_t i = 0; r == 0 && i < ARRAY_LEN(groups); i++)
        r = get_all(json_object_get(j, groups[i].key), groups[i].fields, groups[i].n, &s, err);
    for (size_t i = 0; r == 0 && i < SUPERVISE_RINGS; i++)
        r = get_ring(json_array_get(rings, i), &s.rings[i], err);
    for (int i = 0; r == 0 && i < CONFIG_PROCESSES; i++)
        r = get_process(json_array_get(processes, (size_t)i), i, &s.process[i], err);
    if (r == 0)
        *ret = s;
    return r;
}
