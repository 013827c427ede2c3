/* SPDX-License-Identifier: MIT
 * The configuration file: one table of keys, from which checks, error messages and the "did you mean" of unknown keys follow.
 * Called by main programs before any thread or socket exists; it never logs and never keeps a file open.
 *
 * Three steps. (1) walk() goes over libyaml's events, because only they carry a line for every key: it refuses what a
 * configuration has no use for (anchors, aliases, tags, lists, deep nesting, several documents), unknown keys and keys
 * given twice, and notes the line of each key. (2) libcyaml loads the text into struct raw by schema; all leaves are strings
 * there, since several keys take a word or a number. (3) apply() turns each string into its value with the key's bounds;
 * overrides of the command line take the same step. */
#include "proto/config.h"

#include <cyaml/cyaml.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <yaml.h>

#include "proto/err.h"
#include "proto/util.h"

#define FILE_MAX_BYTES (64u << 10)
#define VALUE_MAX_BYTES 4095u
#define POOL_MIN_BYTES (UINT64_C(1) << 20)
#define POOL_MAX_BYTES (UINT64_C(256) << 40) /* no process has more addresses */
#define FILE_NAME_BYTES sizeof(((struct config *)NULL)->xrt.manifest)
#define SIZE_MIN_BYTES (1u << 10)
#define SIZE_MAX_BYTES (64u << 20)

struct raw_memory {
    char *total, *coordinator, *loader, *npu_worker, *gpu_worker;
};
struct raw_loader {
    char *spawn;
};
struct raw_gpu {
    char *spawn, *backend, *memory, *threads, *streamed;
    char *device, *allow_cpu_device, *without, *max_buffer, *subgroup, *many, *validate, *profile;
};
struct raw_npu {
    char *spawn, *backend, *memory, *threads, *streamed, *manifest, *device, *many, *timeout_ms;
};
struct raw_http {
    char *listen, *api_key_file, *tls_cert, *tls_key, *cors, *model_name, *insecure, *max_body, *max_connections, *max_queue,
        *timeout, *request_timeout;
};
struct raw {
    char *model, *context, *sequences, *chunk_tokens, *kv_type, *pin_threads, *sandbox, *checksums, *stream_slots, *memory_word;
    char *restarts, *restarts_per_minute, *deadlines, *heartbeat_s, *journal, *history, *stage_socket;
    struct raw_memory memory;
    struct raw_loader loader;
    struct raw_npu npu;
    struct raw_gpu gpu;
    struct raw_http http;
};

enum kind {
    KIND_MODEL,
    KIND_U32,
    KIND_KV_TYPE,
    KIND_AUTO_OFF,
    KIND_ALL_CAPS,
    KIND_BYTES,
    KIND_BACKEND,
    KIND_GPU_BACKEND,
    KIND_TEXT,
    KIND_FILE,
    KIND_BOOL,
    KIND_SIZE,
    KIND_LAYERS
};

struct key {
    const char *name; /* "npu.memory" */
    enum kind kind;
    bool allow_auto; /* "auto" is stored as 0 */
    uint32_t min, max;
    size_t raw;    /* of the char * in struct raw */
    size_t offset; /* of the value in struct config */
    const char *expected;
};

#define KEY(name_, kind_, auto_, min_, max_, raw_, out_, expected_)                                                               \
    {                                                                                                                             \
        .name = (name_), .kind = (kind_), .allow_auto = (auto_), .min = (min_), .max = (max_), .raw = offsetof(struct raw, raw_), \
        .offset = offsetof(struct config, out_), .expected = (expected_)                                                          \
    }
#define EXPECT_SIZE "a size from 1MiB to 256TiB such as 512MiB or 2GiB, or auto"
#define EXPECT_LAYERS "auto or a number of layers from 0 to 512"
#define EXPECT_BOOL "true or false"
#define EXPECT_THREADS "auto or a whole number from 1 to 1024"

static const struct key keys[] = {
    KEY("model", KIND_MODEL, false, 0, 0, model, model, "the path of a GGUF file"),
    KEY("context", KIND_U32, false, 1, 1048576, context, context, "a whole number from 1 to 1048576"),
    KEY("sequences", KIND_U32, false, 1, 64, sequences, sequences, "a whole number from 1 to 64"),
    KEY("chunk_tokens", KIND_U32, true, 1, 1024, chunk_tokens, chunk_tokens, "auto or a whole number from 1 to 1024"),
    KEY("kv_type", KIND_KV_TYPE, false, 0, 0, kv_type, kv_type, "f32, f16 or q8_0"),
    KEY("pin_threads", KIND_AUTO_OFF, false, 0, 0, pin_threads, pin_threads, "auto or off"),
    KEY("sandbox", KIND_AUTO_OFF, false, 0, 0, sandbox, sandbox, "auto or off"),
    KEY("checksums", KIND_BOOL, false, 0, 0, checksums, checksums, EXPECT_BOOL),
    KEY("stream_slots", KIND_U32, true, 2, 8, stream_slots, stream_slots, "auto or a whole number from 2 to 8"),
    KEY("memory", KIND_ALL_CAPS, false, 0, 0, memory_word, caps,
        "auto, or a mapping of total, coordinator, loader, npu_worker, gpu_worker to sizes"),
    KEY("memory.total", KIND_BYTES, true, 0, 0, memory.total, total, EXPECT_SIZE),
    KEY("memory.coordinator", KIND_BYTES, true, 0, 0, memory.coordinator, caps[CONFIG_COORDINATOR], EXPECT_SIZE),
    KEY("memory.loader", KIND_BYTES, true, 0, 0, memory.loader, caps[CONFIG_LOADER], EXPECT_SIZE),
    KEY("memory.npu_worker", KIND_BYTES, true, 0, 0, memory.npu_worker, caps[CONFIG_NPU], EXPECT_SIZE),
    KEY("memory.gpu_worker", KIND_BYTES, true, 0, 0, memory.gpu_worker, caps[CONFIG_GPU], EXPECT_SIZE),
    KEY("loader.spawn", KIND_BOOL, false, 0, 0, loader.spawn, spawn[CONFIG_LOADER], EXPECT_BOOL),
    KEY("npu.spawn", KIND_BOOL, false, 0, 0, npu.spawn, spawn[CONFIG_NPU], EXPECT_BOOL),
    KEY("npu.backend", KIND_BACKEND, false, 0, 0, npu.backend, npu.backend, "auto, xrt or cpu"),
    KEY("npu.memory", KIND_BYTES, true, 0, 0, npu.memory, npu.memory, EXPECT_SIZE),
    KEY("npu.threads", KIND_U32, true, 1, 1024, npu.threads, npu.threads, EXPECT_THREADS),
    KEY("npu.streamed", KIND_LAYERS, false, 0, 512, npu.streamed, npu.streamed, EXPECT_LAYERS),
    KEY("npu.manifest", KIND_FILE, false, 0, 0, npu.manifest, xrt.manifest, "the path of a manifest of NPU operators"),
    KEY("npu.device", KIND_U32, false, 0, 15, npu.device, xrt.index, "a number of npu_worker --list-devices"),
    KEY("npu.many", KIND_U32, true, 1, 4096, npu.many, xrt.many, "auto or a number of tokens from 1 to 4096"),
    KEY("npu.timeout_ms", KIND_U32, false, 1, 3600000, npu.timeout_ms, xrt.timeout_ms, "milliseconds from 1 to 3600000"),
    KEY("gpu.spawn", KIND_BOOL, false, 0, 0, gpu.spawn, spawn[CONFIG_GPU], EXPECT_BOOL),
    KEY("gpu.backend", KIND_GPU_BACKEND, false, 0, 0, gpu.backend, gpu.backend, "auto, vulkan or cpu"),
    KEY("gpu.memory", KIND_BYTES, true, 0, 0, gpu.memory, gpu.memory, EXPECT_SIZE),
    KEY("gpu.threads", KIND_U32, true, 1, 1024, gpu.threads, gpu.threads, EXPECT_THREADS),
    KEY("gpu.streamed", KIND_LAYERS, false, 0, 512, gpu.streamed, gpu.streamed, EXPECT_LAYERS),
    KEY("gpu.device", KIND_TEXT, false, 1, 127, gpu.device, device.name,
        "auto, a number of gpu_worker --list-devices, or part of a name"),
    KEY("gpu.allow_cpu_device", KIND_BOOL, false, 0, 0, gpu.allow_cpu_device, device.allow_cpu, EXPECT_BOOL),
    KEY("gpu.without", KIND_TEXT, false, 0, 127, gpu.without, device.without, "names of features, such as int_dot,coopmat"),
    KEY("gpu.max_buffer", KIND_BYTES, true, 0, 0, gpu.max_buffer, device.max_buffer, EXPECT_SIZE),
    KEY("gpu.subgroup", KIND_U32, true, 4, 128, gpu.subgroup, device.subgroup, "auto or a number of lanes from 4 to 128"),
    KEY("gpu.many", KIND_U32, true, 1, 4096, gpu.many, device.many, "auto or a number of tokens from 1 to 4096"),
    KEY("gpu.validate", KIND_BOOL, false, 0, 0, gpu.validate, device.validate, EXPECT_BOOL),
    KEY("gpu.profile", KIND_BOOL, false, 0, 0, gpu.profile, device.profile, EXPECT_BOOL),
    KEY("restarts", KIND_U32, false, 0, 1000000, restarts, restarts, "a whole number from 0 to 1000000"),
    KEY("restarts_per_minute", KIND_U32, false, 1, 1000000, restarts_per_minute, restarts_per_minute,
        "a whole number from 1 to 1000000"),
    KEY("deadlines", KIND_AUTO_OFF, false, 0, 0, deadlines, deadlines, "auto or off"),
    KEY("journal", KIND_AUTO_OFF, false, 0, 0, journal, journal, "auto or off"),
    KEY("history", KIND_AUTO_OFF, false, 0, 0, history, history, "auto or off"),
    KEY("stage_socket", KIND_FILE, false, 0, 0, stage_socket, stage_socket, "the path of a socket in a folder of mode 0700"),
    KEY("heartbeat_s", KIND_U32, false, 1, 3600, heartbeat_s, heartbeat_s, "seconds from 1 to 3600"),
    KEY("http.listen", KIND_TEXT, false, 1, 127, http.listen, http.listen, "none, or address and port such as 127.0.0.1:8080"),
    KEY("http.api_key_file", KIND_FILE, false, 0, 0, http.api_key_file, http.api_key_file,
        "the path of a file with a key per line"),
    KEY("http.tls_cert", KIND_FILE, false, 0, 0, http.tls_cert, http.tls_cert, "the path of a PEM file"),
    KEY("http.tls_key", KIND_FILE, false, 0, 0, http.tls_key, http.tls_key, "the path of a PEM file"),
    KEY("http.cors", KIND_TEXT, false, 1, 255, http.cors, http.cors, "none, * or one origin such as https://chat.example.org"),
    KEY("http.model_name", KIND_TEXT, false, 1, 127, http.model_name, http.model_name, "auto, or the name that clients ask for"),
    KEY("http.insecure", KIND_BOOL, false, 0, 0, http.insecure, http.insecure, EXPECT_BOOL),
    KEY("http.max_body", KIND_SIZE, false, 0, 0, http.max_body, http.max_body, "a size from 1KiB to 64MiB"),
    KEY("http.max_connections", KIND_U32, false, 1, 4096, http.max_connections, http.max_connections,
        "a whole number from 1 to 4096"),
    KEY("http.max_queue", KIND_U32, false, 1, 4096, http.max_queue, http.max_queue, "a whole number from 1 to 4096"),
    KEY("http.timeout", KIND_U32, false, 1, 86400, http.timeout, http.timeout, "seconds from 1 to 86400"),
    KEY("http.request_timeout", KIND_U32, false, 1, 86400, http.request_timeout, http.request_timeout, "seconds from 1 to 86400"),
};
#define N_KEYS ARRAY_LEN(keys)

/* clang-format off */
#define LEAF(type, name, member) \
    CYAML_FIELD_STRING_PTR(name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct type, member, 0, VALUE_MAX_BYTES)
#define GROUP(name, member, fields) CYAML_FIELD_MAPPING(name, CYAML_FLAG_OPTIONAL, struct raw, member, fields)
static const cyaml_schema_field_t memory_fields[] = {
    LEAF(raw_memory, "total", total), LEAF(raw_memory, "coordinator", coordinator), LEAF(raw_memory, "loader", loader), LEAF(raw_memory, "npu_worker", npu_worker),
    LEAF(raw_memory, "gpu_worker", gpu_worker), CYAML_FIELD_END,
};
static const cyaml_schema_field_t loader_fields[] = {LEAF(raw_loader, "spawn", spawn), CYAML_FIELD_END};
static const cyaml_schema_field_t npu_fields[] = {
    LEAF(raw_npu, "spawn", spawn), LEAF(raw_npu, "backend", backend), LEAF(raw_npu, "memory", memory), LEAF(raw_npu, "threads", threads),
    LEAF(raw_npu, "streamed", streamed),
    LEAF(raw_npu, "manifest", manifest), LEAF(raw_npu, "device", device), LEAF(raw_npu, "many", many),
    LEAF(raw_npu, "timeout_ms", timeout_ms), CYAML_FIELD_END,
};
static const cyaml_schema_field_t gpu_fields[] = {
    LEAF(raw_gpu, "spawn", spawn), LEAF(raw_gpu, "backend", backend), LEAF(raw_gpu, "memory", memory), LEAF(raw_gpu, "threads", threads),
    LEAF(raw_gpu, "streamed", streamed),
    LEAF(raw_gpu, "device", device), LEAF(raw_gpu, "allow_cpu_device", allow_cpu_device), LEAF(raw_gpu, "without", without),
    LEAF(raw_gpu, "max_buffer", max_buffer), LEAF(raw_gpu, "subgroup", subgroup), LEAF(raw_gpu, "many", many),
    LEAF(raw_gpu, "validate", validate), LEAF(raw_gpu, "profile", profile), CYAML_FIELD_END,
};
static const cyaml_schema_field_t http_fields[] = {
    LEAF(raw_http, "listen", listen), LEAF(raw_http, "api_key_file", api_key_file), LEAF(raw_http, "tls_cert", tls_cert),
    LEAF(raw_http, "tls_key", tls_key), LEAF(raw_http, "cors", cors), LEAF(raw_http, "model_name", model_name),
    LEAF(raw_http, "insecure", insecure), LEAF(raw_http, "max_body", max_body),
    LEAF(raw_http, "max_connections", max_connections), LEAF(raw_http, "max_queue", max_queue),
    LEAF(raw_http, "timeout", timeout), LEAF(raw_http, "request_timeout", request_timeout), CYAML_FIELD_END,
};
/* `memory` is a word or a mapping, which a schema cannot say: one schema for each. */
#define TOP_FIELDS(memory_field) {                                                                                            \
    LEAF(raw, "model", model), LEAF(raw, "context", context), LEAF(raw, "sequences", sequences),                              \
    LEAF(raw, "chunk_tokens", chunk_tokens), LEAF(raw, "kv_type", kv_type), LEAF(raw, "pin_threads", pin_threads),            \
    LEAF(raw, "sandbox", sandbox), LEAF(raw, "checksums", checksums),                                                         \
    LEAF(raw, "stream_slots", stream_slots), memory_field,                                                                    \
    LEAF(raw, "restarts", restarts), LEAF(raw, "restarts_per_minute", restarts_per_minute),                                   \
    LEAF(raw, "deadlines", deadlines), LEAF(raw, "heartbeat_s", heartbeat_s), LEAF(raw, "journal", journal), LEAF(raw, "history", history), \
    LEAF(raw, "stage_socket", stage_socket), GROUP("loader", loader, loader_fields),                                          \
    GROUP("npu", npu, npu_fields), GROUP("gpu", gpu, gpu_fields), GROUP("http", http, http_fields), CYAML_FIELD_END           \
}
static const cyaml_schema_field_t fields_memory_word[] = TOP_FIELDS(LEAF(raw, "memory", memory_word));
static const cyaml_schema_field_t fields_memory_mapping[] = TOP_FIELDS(GROUP("memory", memory, memory_fields));
static const cyaml_schema_value_t schema_memory_word = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct raw, fields_memory_word)};
static const cyaml_schema_value_t schema_memory_mapping = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct raw, fields_memory_mapping)};
/* clang-format on */

static int key_find(const char *name)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        if (strcmp(keys[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

/* "npu", "gpu", "memory", "http", "loader": keys that have keys below them. */
static bool is_group(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < N_KEYS; i++) {
        if (strncmp(keys[i].name, name, n) == 0 && keys[i].name[n] == '.')
            return true;
    }
    return false;
}

/* Names that stand where `prefix` ("" or "npu.") stands, for messages. */
static void list_names(const char *prefix, char *buf, size_t buf_size)
{
    size_t n = strlen(prefix), used = 0;
    char last[32] = "";
    buf[0] = '\0';
    for (size_t i = 0; i < N_KEYS; i++) {
        if (strncmp(keys[i].name, prefix, n) != 0)
            continue;
        char name[32];
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(keys[i].name + n, "."), keys[i].name + n);
        if (strcmp(name, last) == 0)
            continue;
        snprintf(last, sizeof(last), "%s", name);
        int w = snprintf(buf + used, buf_size - used, "%s%s", used ? ", " : "", name);
        used = MIN(used + (size_t)MAX(w, 0), buf_size - 1);
    }
}

/* The known key nearest to `name`, or NULL when nothing is near. A right last part under a wrong parent is near. */
static const char *nearest(const char *name)
{
    const char *best = NULL, *part = strrchr(name, '.');
    unsigned best_distance = (unsigned)MAX(strlen(name) / 3, 2u) + 1;
    part = part ? part + 1 : name;
    for (size_t i = 0; i < N_KEYS; i++) {
        const char *known_part = strrchr(keys[i].name, '.');
        unsigned d = util_distance(name, keys[i].name);
        if (known_part && strcmp(known_part + 1, part) == 0)
            d = MIN(d, 2u);
        if (d < best_distance) {
            best_distance = d;
            best = keys[i].name;
        }
    }
    static const char *const groups[] = {"npu", "gpu", "memory", "http", "loader"};
    for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
        unsigned d = util_distance(name, groups[i]);
        if (d < best_distance && d < strlen(name)) {
            best_distance = d;
            best = groups[i];
        }
    }
    return best;
}

static int unknown_key(const char *name, const char *place, struct err *err)
{
    char prefix[16] = "", list[256];
    const char *dot = strchr(name, '.');
    if (dot && (size_t)(dot - name) + 2 <= sizeof(prefix)) {
        char group[16];
        snprintf(group, sizeof(group), "%.*s", (int)(dot - name), name);
        if (is_group(group))
            snprintf(prefix, sizeof(prefix), "%.14s.", group);
    }
    list_names(prefix, list, sizeof(list));
    const char *near = nearest(name);
    if (near)
        return err_set(err, -EINVAL, "%s: unknown key '%.80s'; did you mean '%s'? (known: %s)", place, name, near, list);
    return err_set(err, -EINVAL, "%s: unknown key '%.80s'; expected one of %s", place, name, list);
}

struct walk {
    const char *path;
    yaml_parser_t parser;
    unsigned lines[N_KEYS]; /* 0 = not in the file */
    unsigned group_lines[5];
    bool memory_is_mapping;
};

static void place_of(char buf[160], const char *path, size_t line)
{
    size_t n = strlen(path);
    snprintf(buf, 160, "config '%s%s', line %zu", n > 110 ? "..." : "", n > 110 ? path + n - 110 : path, line);
}

static int walk_next(struct walk *w, yaml_event_t *ev, struct err *err)
{
    char place[160];
    if (!yaml_parser_parse(&w->parser, ev)) {
        const yaml_parser_t *p = &w->parser;
        if (p->error == YAML_MEMORY_ERROR)
            return err_set(err, -ENOMEM, "config '%s': out of memory", w->path);
        if (p->error == YAML_READER_ERROR)
            return err_set(err, -EINVAL, "config '%s', byte %zu: %s; expected YAML in UTF-8", w->path, p->problem_offset,
                           p->problem);
        place_of(place, w->path, p->problem_mark.line + 1);
        return err_set(err, -EINVAL, "%s, column %zu: not valid YAML: %s%s%s", place, p->problem_mark.column + 1,
                       p->problem ? p->problem : "unknown problem", p->context ? " " : "", p->context ? p->context : "");
    }
    place_of(place, w->path, ev->start_mark.line + 1);
    const char *what = NULL;
    if (ev->type == YAML_ALIAS_EVENT)
        what = "an alias (*name)";
    else if ((ev->type == YAML_SCALAR_EVENT && ev->data.scalar.anchor) ||
             (ev->type == YAML_MAPPING_START_EVENT && ev->data.mapping_start.anchor))
        what = "an anchor (&name)";
    else if ((ev->type == YAML_SCALAR_EVENT && ev->data.scalar.tag) ||
             (ev->type == YAML_MAPPING_START_EVENT && ev->data.mapping_start.tag))
        what = "a tag (!name)";
    else if (ev->type == YAML_SCALAR_EVENT && memchr(ev->data.scalar.value, 0, ev->data.scalar.length))
        what = "a NUL byte";
    else if (ev->type == YAML_SCALAR_EVENT && ev->data.scalar.length > VALUE_MAX_BYTES)
        what = "a text of more than 4095 bytes";
    if (!what)
        return 0;
    yaml_event_delete(ev);
    return err_set(err, -EINVAL, "%s: found %s; expected plain 'key: value' lines", place, what);
}

static int walk_scalar(struct walk *w, const char *name, size_t line, struct err *err)
{
    char place[160];
    place_of(place, w->path, line);
    int k = key_find(name);
    if (k < 0 && is_group(name)) {
        char prefix[40], list[192];
        snprintf(prefix, sizeof(prefix), "%.32s.", name);
        list_names(prefix, list, sizeof(list));
        return err_set(err, -EINVAL, "%s: key '%s' has a single value; expected a mapping with any of %s", place, name, list);
    }
    if (k < 0)
        return unknown_key(name, place, err);
    unsigned first = strcmp(name, "memory") == 0 && w->group_lines[0] ? w->group_lines[0] : w->lines[k];
    if (first)
        return err_set(err, -EINVAL, "%s: key '%s' is given twice, first in line %u; remove one", place, name, first);
    w->lines[k] = (unsigned)line;
    return 0;
}

static int walk_group_start(struct walk *w, const char *name, size_t line, struct err *err)
{
    static const char *const groups[] = {"memory", "npu", "gpu", "http", "loader"};
    char place[160];
    place_of(place, w->path, line);
    for (size_t i = 0; i < ARRAY_LEN(groups); i++) {
        if (strcmp(groups[i], name) != 0)
            continue;
        unsigned first = w->group_lines[i] ? w->group_lines[i] : i == 0 ? w->lines[key_find("memory")] : 0;
        if (first)
            return err_set(err, -EINVAL, "%s: key '%s' is given twice, first in line %u; remove one", place, name, first);
        w->group_lines[i] = (unsigned)line;
        if (i == 0)
            w->memory_is_mapping = true;
        return 0;
    }
    int k = key_find(name);
    if (k >= 0)
        return err_set(err, -EINVAL, "%s: key '%s' has a mapping; expected %s", place, name, keys[k].expected);
    return unknown_key(name, place, err);
}

/* The keys of one mapping up to its end; `group` is "" at the top. Nesting is at most two by construction. */
static int walk_mapping(struct walk *w, const char *group, struct err *err);

static int walk_value(struct walk *w, const char *group, const char *name, size_t line, struct err *err)
{
    char place[160];
    yaml_event_t ev;
    int r = walk_next(w, &ev, err);
    if (r < 0)
        return r;
    yaml_event_type_t type = ev.type;
    yaml_event_delete(&ev);
    place_of(place, w->path, line);
    if (type == YAML_SCALAR_EVENT)
        return walk_scalar(w, name, line, err);
    int k = key_find(name);
    if (k < 0 && !is_group(name))
        return unknown_key(name, place, err);
    if (type != YAML_MAPPING_START_EVENT)
        return err_set(err, -EINVAL, "%s: key '%s' has a list; expected %s", place, name, k < 0 ? "a mapping" : keys[k].expected);
    if (*group)
        return err_set(err, -EINVAL, "%s: key '%s' has a mapping; expected %s", place, name, k < 0 ? "a value" : keys[k].expected);
    r = walk_group_start(w, name, line, err);
    return r < 0 ? r : walk_mapping(w, name, err);
}

static int walk_mapping(struct walk *w, const char *group, struct err *err)
{
    for (;;) {
        yaml_event_t ev;
        int r = walk_next(w, &ev, err);
        if (r < 0)
            return r;
        if (ev.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&ev);
            return 0;
        }
        char name[128], place[160];
        size_t line = ev.start_mark.line + 1;
        bool scalar = ev.type == YAML_SCALAR_EVENT;
        snprintf(name, sizeof(name), "%.16s%s%.100s", group, *group ? "." : "", scalar ? (const char *)ev.data.scalar.value : "");
        yaml_event_delete(&ev);
        place_of(place, w->path, line);
        if (!scalar)
            return err_set(err, -EINVAL, "%s: found a list or mapping as key; expected the name of a key", place);
        r = walk_value(w, group, name, line, err);
        if (r < 0)
            return r;
    }
}

static int walk_expect(struct walk *w, yaml_event_type_t type, const char *what, struct err *err)
{
    yaml_event_t ev;
    int r = walk_next(w, &ev, err);
    if (r < 0)
        return r;
    char place[160];
    place_of(place, w->path, ev.start_mark.line + 1);
    bool ok = ev.type == type;
    yaml_event_delete(&ev);
    return ok ? 0 : err_set(err, -EINVAL, "%s: expected %s", place, what);
}

static int walk(struct walk *w, const char *text, size_t n, struct err *err)
{
    static const char *const one = "one mapping of keys to values, at least 'model: FILE.gguf'";
    if (!yaml_parser_initialize(&w->parser))
        return err_set(err, -ENOMEM, "config '%s': out of memory", w->path);
    yaml_parser_set_input_string(&w->parser, (const unsigned char *)text, n);
    int r = walk_expect(w, YAML_STREAM_START_EVENT, "YAML", err);
    if (r == 0)
        r = walk_expect(w, YAML_DOCUMENT_START_EVENT, one, err);
    if (r == 0)
        r = walk_expect(w, YAML_MAPPING_START_EVENT, one, err);
    if (r == 0)
        r = walk_mapping(w, "", err);
    if (r == 0)
        r = walk_expect(w, YAML_DOCUMENT_END_EVENT, "the end of the file after the mapping", err);
    if (r == 0)
        r = walk_expect(w, YAML_STREAM_END_EVENT, "the end of the file; a second document is not read", err);
    yaml_parser_delete(&w->parser);
    return r;
}

struct capture {
    char text[512];
    size_t used;
};

__attribute__((format(printf, 3, 0))) static void capture_log(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    struct capture *c = ctx;
    if (level < CYAML_LOG_ERROR || c->used + 1 >= sizeof(c->text))
        return;
    int n = vsnprintf(c->text + c->used, sizeof(c->text) - c->used, fmt, args);
    c->used = MIN(c->used + (size_t)MAX(n, 0), sizeof(c->text) - 1);
    for (char *p = c->text; *p; p++) {
        if (*p == '\n')
            *p = ' ';
    }
}

static cyaml_config_t loader_config(struct capture *c)
{
    return (cyaml_config_t){
        .log_fn = capture_log, .log_ctx = c, .mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR, .flags = CYAML_CFG_NO_ALIAS};
}

static int load(const struct walk *w, const char *text, size_t n, struct raw **ret, struct err *err)
{
    struct capture c = {0};
    cyaml_config_t config = loader_config(&c);
    const cyaml_schema_value_t *schema = w->memory_is_mapping ? &schema_memory_mapping : &schema_memory_word;
    cyaml_err_t r = cyaml_load_data((const uint8_t *)text, n, &config, schema, (cyaml_data_t **)ret, NULL);
    if (r == CYAML_OK && *ret)
        return 0;
    return err_set(err, r == CYAML_ERR_OOM ? -ENOMEM : -EINVAL, "config '%s': %s (%s)", w->path, cyaml_strerror(r), c.text);
}

static int parse_u32(const struct key *k, const char *value, uint32_t *ret)
{
    char *end;
    errno = 0;
    if (*value < '0' || *value > '9')
        return -EINVAL;
    unsigned long long v = strtoull(value, &end, 10);
    if (errno || *end || v < k->min || v > k->max)
        return -EINVAL;
    *ret = (uint32_t)v;
    return 0;
}

/* A path as the file means it: relative to its own folder. */
static int resolve(const struct config *c, const char *value, char **ret)
{
    char *slash = strrchr(c->path, '/'), *cwd = NULL;
    int dir = slash ? (int)(slash - c->path) + 1 : 0, r;
    if (*value == '\0')
        return -EINVAL;
    if (*value != '/' && *c->path != '/' && !(cwd = getcwd(NULL, 0)))
        return -errno;
    if (*value == '/')
        r = asprintf(ret, "%s", value);
    else
        r = asprintf(ret, "%s%s%.*s%s", cwd ? cwd : "", cwd ? "/" : "", dir, c->path, value);
    free(cwd);
    return r < 0 ? -ENOMEM : 0;
}

static int set_model(struct config *c, const char *value)
{
    char *model = NULL;
    int r = resolve(c, value, &model);
    if (r < 0)
        return r;
    free(c->model);
    c->model = model;
    return 0;
}

/* Every KIND_FILE is a char[FILE_NAME_BYTES]. */
static int set_file(const struct config *c, const char *value, char *ret)
{
    auto_free char *path = NULL;
    int r = *value ? resolve(c, value, &path) : 0;
    if (r == 0 && path && strlen(path) >= FILE_NAME_BYTES)
        r = -ENAMETOOLONG;
    if (r == 0)
        snprintf(ret, FILE_NAME_BYTES, "%s", path ? path : "");
    return r;
}

static int apply(struct config *c, const struct key *k, const char *value, const char *place, struct err *err)
{
    void *out = (char *)c + k->offset;
    int r = -EINVAL;
    uint64_t bytes;
    if (k->allow_auto && strcmp(value, "auto") == 0) {
        memset(out, 0, k->kind == KIND_BYTES ? sizeof(uint64_t) : sizeof(uint32_t));
        return 0;
    }
    switch (k->kind) {
    case KIND_MODEL:
        r = set_model(c, value);
        break;
    case KIND_U32:
        r = parse_u32(k, value, out);
        break;
    case KIND_KV_TYPE: /* ggml type ids, as CONFIGURE carries them */
        if (strcmp(value, "f32") == 0 || strcmp(value, "f16") == 0 || strcmp(value, "q8_0") == 0) {
            c->kv_type = value[0] == 'q' ? 8 : strcmp(value, "f16") == 0;
            return 0;
        }
        break;
    case KIND_AUTO_OFF:
        if (strcmp(value, "auto") == 0 || strcmp(value, "off") == 0) {
            *(bool *)out = strcmp(value, "auto") == 0;
            return 0;
        }
        break;
    case KIND_ALL_CAPS:
        if (strcmp(value, "auto") == 0) {
            memset(c->caps, 0, sizeof(c->caps));
            c->total = 0;
            return 0;
        }
        break;
    case KIND_BYTES:
        if (util_parse_bytes(value, &bytes) == 0 && bytes >= POOL_MIN_BYTES && bytes <= POOL_MAX_BYTES) {
            memcpy(out, &bytes, sizeof(bytes));
            return 0;
        }
        break;
    case KIND_SIZE:
        if (util_parse_bytes(value, &bytes) == 0 && bytes >= SIZE_MIN_BYTES && bytes <= SIZE_MAX_BYTES) {
            memcpy(out, &bytes, sizeof(bytes));
            return 0;
        }
        break;
    case KIND_BACKEND:
        if (strcmp(value, "auto") == 0 || strcmp(value, "xrt") == 0 || strcmp(value, "cpu") == 0) {
            snprintf(out, sizeof(c->npu.backend), "%s", value);
            return 0;
        }
        break;
    case KIND_GPU_BACKEND:
        if (strcmp(value, "auto") == 0 || strcmp(value, "vulkan") == 0 || strcmp(value, "cpu") == 0) {
            snprintf(out, sizeof(c->gpu.backend), "%s", value);
            return 0;
        }
        break;
    case KIND_TEXT:
        if (strlen(value) >= k->min && strlen(value) <= k->max) {
            memcpy(out, value, strlen(value) + 1);
            return 0;
        }
        break;
    case KIND_FILE:
        r = set_file(c, value, out);
        break;
    case KIND_BOOL:
        if (strcmp(value, "true") == 0 || strcmp(value, "false") == 0) {
            *(bool *)out = strcmp(value, "true") == 0;
            return 0;
        }
        break;
    case KIND_LAYERS:
        if (strcmp(value, "auto") == 0) {
            *(uint32_t *)out = CONFIG_AUTO;
            return 0;
        }
        r = parse_u32(k, value, out);
        break;
    default:
        break;
    }
    if (r == 0)
        return 0;
    if (r != -EINVAL)
        return err_set_errno(err, r, "%s: key '%s'", place, k->name);
    return err_set(err, -EINVAL, "%s: key '%s': found '%.80s'; expected %s", place, k->name, value, k->expected);
}

static int apply_raw(struct config *c, const struct walk *w, const struct raw *raw, struct err *err)
{
    char place[160];
    for (size_t i = 0; i < N_KEYS; i++) {
        const char *value;
        memcpy(&value, (const char *)raw + keys[i].raw, sizeof(value));
        if (!value)
            continue;
        place_of(place, w->path, w->lines[i]);
        int r = apply(c, &keys[i], value, place, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int apply_override(struct config *c, const char *text, struct err *err)
{
    char name[64], place[96];
    size_t n = strcspn(text, "=");
    snprintf(place, sizeof(place), "--set '%.80s'", text);
    if (text[n] != '=' || n == 0 || n >= sizeof(name))
        return err_set(err, -EINVAL, "%s: expected key=value, such as --set gpu.threads=2", place);
    snprintf(name, sizeof(name), "%.*s", (int)n, text);
    int k = key_find(name);
    if (is_group(name) && (k < 0 || text[n + 1] == '{')) {
        char prefix[sizeof(name) + 1], list[256];
        snprintf(prefix, sizeof(prefix), "%s.", name);
        list_names(prefix, list, sizeof(list));
        return err_set(err, -EINVAL, "%s: key '%s' has keys below it; expected one of them at a time, as %sKEY=VALUE (known: %s)",
                       place, name, prefix, list);
    }
    return k < 0 ? unknown_key(name, place, err) : apply(c, &keys[k], text + n + 1, place, err);
}

static int read_text(const char *path, char *buf, size_t *ret_n, struct err *err)
{
    size_t n = 0;
    auto_fd fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, -errno, "config '%s': cannot be opened", path);
    for (;;) {
        ssize_t got = read(fd, buf + n, FILE_MAX_BYTES + 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, -errno, "config '%s': cannot be read", path);
        n += (size_t)got;
        if (got == 0)
            break;
        if (n > FILE_MAX_BYTES)
            return err_set(err, -EFBIG, "config '%s': more than %u bytes; expected a YAML file of a few lines", path,
                           FILE_MAX_BYTES);
    }
    *ret_n = n;
    return 0;
}

static int load_file(struct config *c, struct err *err)
{
    struct walk w = {.path = c->path};
    struct raw *raw = NULL;
    size_t n = 0;
    auto_free char *text = malloc(FILE_MAX_BYTES + 1);
    if (!text)
        return err_set(err, -ENOMEM, "config '%s': out of memory", c->path);
    int r = read_text(c->path, text, &n, err);
    if (r == 0)
        r = walk(&w, text, n, err);
    if (r == 0)
        r = load(&w, text, n, &raw, err);
    if (r < 0)
        return r;
    r = apply_raw(c, &w, raw, err);
    struct capture unused = {0};
    cyaml_config_t config = loader_config(&unused);
    cyaml_free(&config, w.memory_is_mapping ? &schema_memory_mapping : &schema_memory_word, raw, 0);
    return r;
}

int config_load(const char *path, const char *const *overrides, int n_overrides, struct config **ret, struct err *err)
{
    struct config *c = calloc(1, sizeof(*c));
    if (!c || !(c->path = strdup(path ? path : ""))) {
        free(c);
        return err_set(err, -ENOMEM, "config '%s': out of memory", path ? path : "");
    }
    c->context = 2048;
    c->sequences = 4;
    c->kv_type = 1;
    c->pin_threads = true;
    c->sandbox = true;
    c->checksums = true;
    for (int i = 0; i < CONFIG_PROCESSES; i++)
        c->spawn[i] = true;
    c->npu = (struct config_worker){.backend = "auto", .streamed = CONFIG_AUTO};
    c->gpu = (struct config_worker){.backend = "auto", .streamed = CONFIG_AUTO};
    c->xrt = (struct config_npu){.timeout_ms = 10000};
    c->device = (struct config_device){.name = "auto"};
    c->restarts = 5;
    c->restarts_per_minute = 20;
    c->deadlines = true;
    c->heartbeat_s = 5;
    c->journal = true;
    c->history = true;
    c->http = (struct config_http){.listen = "none",
                                   .cors = "none",
                                   .model_name = "auto",
                                   .max_body = 1u << 20,
                                   .max_connections = 256,
                                   .max_queue = 128,
                                   .timeout = 30,
                                   .request_timeout = 600};
    int r = path ? load_file(c, err) : 0;
    for (int i = 0; r == 0 && i < n_overrides; i++)
        r = apply_override(c, overrides[i], err);
    if (r == 0 && path && !c->model)
        r = err_set(err, -EINVAL,
                    "config '%s': key 'model' is missing; expected 'model: FILE.gguf' (a path relative to this file, or absolute)",
                    path);
    if (r < 0) {
        config_free(c);
        return r;
    }
    *ret = c;
    return 0;
}

void config_model_name(const struct config *c, char *buf, unsigned long buf_size)
{
    const char *slash = c->model ? strrchr(c->model, '/') : NULL, *file = slash ? slash + 1 : c->model;
    bool automatic = strcmp(c->http.model_name, "auto") == 0;
    snprintf(buf, buf_size, "%s", !automatic ? c->http.model_name : file ? file : "");
    size_t n = strlen(buf);
    if (automatic && n > 5 && strcmp(buf + n - 5, ".gguf") == 0)
        buf[n - 5] = '\0';
}

void config_free(struct config *c)
{
    if (!c)
        return;
    free(c->path);
    free(c->model);
    free(c);
}

void config_sample(const char *model, char *buf, unsigned long buf_size)
{
    char quoted[2 * VALUE_MAX_BYTES];
    size_t n = 0;
    for (const char *p = model; *p && n + 3 < sizeof(quoted); p++) { /* a single quote is doubled in YAML */
        if (*p == '\'')
            quoted[n++] = '\'';
        quoted[n++] = *p;
    }
    quoted[n] = '\0';
    snprintf(
        buf, buf_size,
        "# Tandem. Every key but `model` may be left out; what stands here are the defaults.\n"
        "# Sizes take KiB, MiB, GiB. A relative path is relative to this file.\n"
        "model: '%s'\n"
        "context: 2048        # tokens per sequence, 1 to 1048576\n"
        "sequences: 4         # at once, 1 to 64\n"
        "chunk_tokens: auto   # tokens that travel together: auto, or 1 to 1024\n"
        "kv_type: f16         # entries of the KV cache: f32, f16 or q8_0\n"
        "pin_threads: auto    # workers that share processors keep their threads in place, or off\n"
        "sandbox: auto        # stages give up files, programs and the network once they run, or off\n"
        "checksums: true      # tensors are compared with the checksums in the file, if it has some, when they are first read\n"
        "stream_slots: auto   # slots through which the layers of a worker pass that are not kept in memory: auto, or 2 to 8\n"
        "# A hard cap per process: auto (what the plan needs and a tenth more), or a total that the plan divides, or one each:\n"
        "# memory: {total: 4GiB}\n"
        "# memory: {coordinator: 256MiB, loader: 512MiB, npu_worker: 2560MiB, gpu_worker: 1GiB}\n"
        "# Weights that do not fit are streamed from the file.\n"
        "memory: auto\n"
        "# backend: auto, xrt or cpu; memory: the device pool, a size or auto; threads: auto, or 1 to 1024\n"
        "# streamed: layers whose weights are read for every pass instead of being kept: auto (as memory requires), or a number\n"
        "# manifest: of NPU operators (docs/NPU.md), without which there is no NPU; device: its number; many: tokens from which on "
        "it is\n"
        "# used, auto (measured) or 1 to 4096; timeout_ms: of one run\n"
        "npu: {spawn: true, backend: auto, memory: auto, threads: auto, streamed: auto, manifest: '', device: 0, many: auto, "
        "timeout_ms: "
        "10000}\n"
        "# backend: auto, vulkan or cpu; device: auto, a number of `gpu_worker --list-devices`, or part of a name\n"
        "# memory: a size or auto. For tests and around faults of drivers (docs/OPERATIONS.md): allow_cpu_device, validate and\n"
        "# profile: true or false; without: features, separated by commas; max_buffer: a size or auto; subgroup: auto, or 4 to "
        "128;\n"
        "# many: auto, or 1 to 4096\n"
        "gpu: {spawn: true, backend: auto, device: auto, memory: auto, threads: auto, streamed: auto, allow_cpu_device: false, "
        "without: '',\n"
        "      max_buffer: auto, subgroup: auto, many: auto, validate: false, profile: false}\n"
        "# When a stage dies or hangs (docs/OPERATIONS.md): how often it is started again without progress in between, 0: never\n"
        "restarts: 5\n"
        "restarts_per_minute: 20 # with or without progress\n"
        "deadlines: auto         # off: a stage that hangs, or stands in a debugger, is waited for\n"
        "heartbeat_s: 5          # a stage that does not answer for so many seconds hangs\n"
        "journal: auto           # requests in progress are noted in the runtime folder, for --resume; or off\n"
        "history: auto           # prompts typed on a terminal are kept in ~/.local/state/tandem/history; or off\n"
        "# A stage with spawn: false (in the groups npu and gpu likewise) is started by others, with --stage-socket and this "
        "path;\n"
        "# '': a socket in the runtime folder\n"
        "loader: {spawn: true}\n"
        "stage_socket: ''\n"
        "# `coordinator serve` (docs/HTTP.md). listen: none, or address and port such as 127.0.0.1:8080; api_key_file: one key per "
        "line, needed\n"
        "# beyond loopback unless insecure is true; tls_cert, tls_key: PEM files; cors: none, * or one origin; times in seconds\n"
        "http: {listen: none, api_key_file: '', insecure: false, tls_cert: '', tls_key: '', cors: none, model_name: auto, "
        "max_body: "
        "1MiB,\n"
        "       max_connections: 256, max_queue: 128, timeout: 30, request_timeout: 600}\n",
        quoted);
}
