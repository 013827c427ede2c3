/* SPDX-License-Identifier: MIT
 * Reads a manifest twice, as proto/config.c does a configuration: over libyaml's events, which alone carry lines and which bound
 * what is in the file (no anchors, aliases, tags, unknown or repeated keys, at most 256 operators), then through libcyaml by
 * schema. Every leaf is a string. Called by manifest_open; keeps no file open, never logs. */
#include "npu_worker/manifest_yaml.h"

#include <cyaml/cyaml.h>
#include <stdarg.h>
#include <string.h>
#include <yaml.h>

#include "npu_worker/manifest_file.h"
#include "proto/err.h"
#include "proto/util.h"

#define FILE_MAX_BYTES (256u << 10)
#define VALUE_MAX_BYTES 1023u

enum form { SCALAR, LIST, DIMS };

static const struct {
    const char *name;
    enum form form;
} keys[MANIFEST_YAML_KEYS] = {
    [MANIFEST_YAML_KIND] = {"kind", SCALAR},
    [MANIFEST_YAML_XCLBIN] = {"xclbin", SCALAR},
    [MANIFEST_YAML_INSTRUCTIONS] = {"instructions", SCALAR},
    [MANIFEST_YAML_FORMAT] = {"format", SCALAR},
    [MANIFEST_YAML_KERNEL] = {"kernel", SCALAR},
    [MANIFEST_YAML_ARGUMENTS] = {"arguments", LIST},
    [MANIFEST_YAML_DTYPES] = {"dtypes", LIST},
    [MANIFEST_YAML_SHAPE] = {"shape", DIMS},
    [MANIFEST_YAML_MULTIPLE_OF] = {"multiple_of", DIMS},
    [MANIFEST_YAML_B_LAYOUT] = {"b_layout", SCALAR},
    [MANIFEST_YAML_EPSILON] = {"epsilon", SCALAR},
    [MANIFEST_YAML_METHOD] = {"method", SCALAR},
    [MANIFEST_YAML_SCALE] = {"scale", SCALAR},
};
static const char *const forms[] = {
    [SCALAR] = "a single value", [LIST] = "a list such as [a, b, c]", [DIMS] = "a mapping such as {m: 64, k: 640}"};

const char *const manifest_yaml_dims[MANIFEST_DIMS] = {"m",    "k",     "n",        "rows",     "width", "tokens",
                                                       "keys", "heads", "kv_heads", "head_dim", "window"};

/* clang-format off */
#define OP struct manifest_yaml_operator
#define LEAF(name, member) CYAML_FIELD_STRING_PTR(name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, OP, member, 0, VALUE_MAX_BYTES)
#define DIM(i, name) CYAML_FIELD_STRING_PTR(name, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct manifest_yaml_dims, dim[i], 0, VALUE_MAX_BYTES)
static const cyaml_schema_field_t dim_fields[] = {
    DIM(MANIFEST_M, "m"), DIM(MANIFEST_K, "k"), DIM(MANIFEST_N, "n"), DIM(MANIFEST_ROWS, "rows"), DIM(MANIFEST_WIDTH, "width"),
    DIM(MANIFEST_TOKENS, "tokens"), DIM(MANIFEST_KEYS, "keys"), DIM(MANIFEST_HEADS, "heads"), DIM(MANIFEST_KV_HEADS, "kv_heads"),
    DIM(MANIFEST_HEAD_DIM, "head_dim"), DIM(MANIFEST_WINDOW, "window"), CYAML_FIELD_END,
};
static const cyaml_schema_value_t word = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, VALUE_MAX_BYTES)};
static const cyaml_schema_field_t operator_fields[] = {
    LEAF("kind", kind), LEAF("xclbin", xclbin), LEAF("instructions", instructions), LEAF("format", format), LEAF("kernel", kernel),
    LEAF("b_layout", b_layout), LEAF("epsilon", epsilon), LEAF("method", method), LEAF("scale", scale),
    CYAML_FIELD_SEQUENCE_COUNT("arguments", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, OP, arguments, n_arguments, &word, 0, MANIFEST_ARGUMENTS_MAX),
    CYAML_FIELD_SEQUENCE_COUNT("dtypes", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, OP, dtypes, n_dtypes, &word, 0, MANIFEST_ARGUMENTS_MAX),
    CYAML_FIELD_MAPPING("shape", CYAML_FLAG_OPTIONAL, OP, shape, dim_fields),
    CYAML_FIELD_MAPPING("multiple_of", CYAML_FLAG_OPTIONAL, OP, multiple_of, dim_fields), CYAML_FIELD_END,
};
static const cyaml_schema_value_t operator_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, OP, operator_fields)};
static const cyaml_schema_field_t top_fields[] = {
    CYAML_FIELD_STRING_PTR("version", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct manifest_yaml, version, 0, VALUE_MAX_BYTES),
    CYAML_FIELD_SEQUENCE_COUNT("operators", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, struct manifest_yaml, operators, n_operators, &operator_schema, 0, MANIFEST_OPERATORS_MAX),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t top_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct manifest_yaml, top_fields)};
/* clang-format on */

struct walk {
    const char *path;
    yaml_parser_t parser;
    struct manifest_yaml_lines *lines; /* MANIFEST_OPERATORS_MAX */
    unsigned n_operators, version_line, operators_line;
};

const char *manifest_yaml_key(enum manifest_yaml_key k)
{
    return keys[k].name;
}

char *manifest_yaml_place(char buf[160], const char *path, unsigned line)
{
    size_t n = strlen(path);
    snprintf(buf, 160, "manifest '%s%s', line %u", n > 110 ? "..." : "", n > 110 ? path + n - 110 : path, line);
    return buf;
}

static int syntax_error(const struct walk *w, struct err *err)
{
    const yaml_parser_t *p = &w->parser;
    char place[160];
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(err, -ENOMEM, "manifest '%s': out of memory", w->path);
    if (p->error == YAML_READER_ERROR)
        return err_set(err, -EINVAL, "manifest '%s', byte %zu: %s; expected YAML in UTF-8", w->path, p->problem_offset, p->problem);
    return err_set(err, -EINVAL, "%s: not valid YAML: %s", manifest_yaml_place(place, w->path, (unsigned)p->problem_mark.line + 1),
                   p->problem ? p->problem : "unknown problem");
}

static const char *forbidden(const yaml_event_t *e)
{
    if (e->type == YAML_ALIAS_EVENT)
        return "an alias (*name)";
    if (e->type == YAML_SCALAR_EVENT && memchr(e->data.scalar.value, 0, e->data.scalar.length))
        return "a NUL byte";
    if (e->type == YAML_SCALAR_EVENT && e->data.scalar.length > VALUE_MAX_BYTES)
        return "a text of more than 1023 bytes";
    if ((e->type == YAML_SCALAR_EVENT && (e->data.scalar.anchor || e->data.scalar.tag)) ||
        (e->type == YAML_MAPPING_START_EVENT && (e->data.mapping_start.anchor || e->data.mapping_start.tag)) ||
        (e->type == YAML_SEQUENCE_START_EVENT && (e->data.sequence_start.anchor || e->data.sequence_start.tag)))
        return "an anchor (&name) or a tag (!name)";
    return NULL;
}

/* The next event; a scalar's text goes to buf. */
static int next(struct walk *w, yaml_event_type_t *ret_type, char *buf, size_t bytes, unsigned *ret_line, struct err *err)
{
    yaml_event_t e;
    char place[160];
    if (!yaml_parser_parse(&w->parser, &e))
        return syntax_error(w, err);
    const char *what = forbidden(&e);
    *ret_type = e.type;
    *ret_line = (unsigned)e.start_mark.line + 1;
    if (e.type == YAML_SCALAR_EVENT && !what)
        snprintf(buf, bytes, "%s", (const char *)e.data.scalar.value);
    yaml_event_delete(&e);
    if (what)
        return err_set(err, -EINVAL, "%s: found %s; expected plain values", manifest_yaml_place(place, w->path, *ret_line), what);
    return 0;
}

static int expect(struct walk *w, yaml_event_type_t type, const char *what, struct err *err)
{
    char text[8], place[160];
    unsigned line = 0;
    yaml_event_type_t got = YAML_NO_EVENT;
    int r = next(w, &got, text, sizeof(text), &line, err);
    if (r == 0 && got != type)
        r = err_set(err, -EINVAL, "%s: expected %s", manifest_yaml_place(place, w->path, line), what);
    return r;
}

static int unknown(const struct walk *w, unsigned line, const char *what, const char *name, const char *const *known, size_t n,
                   struct err *err)
{
    char place[160], list[320] = "";
    size_t used = 0;
    const char *near = NULL;
    unsigned best = 3;
    for (size_t i = 0; i < n; i++) {
        int m = snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", known[i]);
        used = MIN(used + (size_t)MAX(m, 0), sizeof(list) - 1);
        unsigned d = util_distance(name, known[i]);
        if (d < best && d < strlen(known[i])) {
            best = d;
            near = known[i];
        }
    }
    return err_set(err, -EINVAL, "%s: unknown %s '%.60s'%s%s%s; expected one of %s", manifest_yaml_place(place, w->path, line),
                   what, name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "", list);
}

static int twice(const struct walk *w, unsigned line, const char *name, unsigned first, struct err *err)
{
    char place[160];
    return err_set(err, -EINVAL, "%s: '%s' is given twice, first in line %u; remove one", manifest_yaml_place(place, w->path, line),
                   name, first);
}

static int wrong_form(const struct walk *w, unsigned line, const char *name, const char *expected, struct err *err)
{
    char place[160];
    return err_set(err, -EINVAL, "%s: key '%s': expected %s", manifest_yaml_place(place, w->path, line), name, expected);
}

static int walk_list(struct walk *w, const char *name, struct err *err)
{
    char text[64], place[160];
    unsigned line, n = 0;
    yaml_event_type_t type;
    for (;; n++) {
        int r = next(w, &type, text, sizeof(text), &line, err);
        if (r < 0 || type == YAML_SEQUENCE_END_EVENT)
            return r;
        if (type != YAML_SCALAR_EVENT)
            return wrong_form(w, line, name, forms[LIST], err);
        if (n == MANIFEST_ARGUMENTS_MAX)
            return err_set(err, -E2BIG, "%s: key '%s' lists more than %u; a kernel takes bo0 to bo4",
                           manifest_yaml_place(place, w->path, line), name, MANIFEST_ARGUMENTS_MAX);
    }
}

static int walk_dims(struct walk *w, const char *name, unsigned lines[MANIFEST_DIMS], struct err *err)
{
    char dim[64], value[64];
    unsigned line, value_line;
    yaml_event_type_t type;
    for (;;) {
        int r = next(w, &type, dim, sizeof(dim), &line, err);
        if (r < 0 || type == YAML_MAPPING_END_EVENT)
            return r;
        size_t i = 0;
        while (type == YAML_SCALAR_EVENT && i < MANIFEST_DIMS && strcmp(manifest_yaml_dims[i], dim) != 0)
            i++;
        if (type != YAML_SCALAR_EVENT)
            return wrong_form(w, line, name, forms[DIMS], err);
        if (i == MANIFEST_DIMS)
            return unknown(w, line, "dimension", dim, manifest_yaml_dims, MANIFEST_DIMS, err);
        if (lines[i])
            return twice(w, line, dim, lines[i], err);
        lines[i] = line;
        r = next(w, &type, value, sizeof(value), &value_line, err);
        if (r < 0)
            return r;
        if (type != YAML_SCALAR_EVENT)
            return wrong_form(w, value_line, name, forms[DIMS], err);
    }
}

static int walk_key(struct walk *w, struct manifest_yaml_lines *l, const char *name, unsigned line, struct err *err)
{
    static const yaml_event_type_t starts[] = {
        [SCALAR] = YAML_SCALAR_EVENT, [LIST] = YAML_SEQUENCE_START_EVENT, [DIMS] = YAML_MAPPING_START_EVENT};
    const char *names[MANIFEST_YAML_KEYS];
    char text[64];
    unsigned value_line;
    yaml_event_type_t type;
    size_t k = 0;
    while (k < MANIFEST_YAML_KEYS && strcmp(keys[k].name, name) != 0)
        k++;
    if (k == MANIFEST_YAML_KEYS) {
        for (size_t i = 0; i < MANIFEST_YAML_KEYS; i++)
            names[i] = keys[i].name;
        return unknown(w, line, "key", name, names, MANIFEST_YAML_KEYS, err);
    }
    if (l->keys[k])
        return twice(w, line, name, l->keys[k], err);
    l->keys[k] = line;
    int r = next(w, &type, text, sizeof(text), &value_line, err);
    if (r < 0)
        return r;
    if (type != starts[keys[k].form])
        return wrong_form(w, line, name, forms[keys[k].form], err);
    if (keys[k].form == LIST)
        return walk_list(w, name, err);
    if (keys[k].form == DIMS)
        return walk_dims(w, name, k == MANIFEST_YAML_SHAPE ? l->shape : l->multiple_of, err);
    return 0;
}

static int walk_operator(struct walk *w, unsigned line, struct err *err)
{
    char name[64], place[160];
    yaml_event_type_t type;
    if (w->n_operators == MANIFEST_OPERATORS_MAX)
        return err_set(err, -E2BIG, "%s: more than %u operators", manifest_yaml_place(place, w->path, line),
                       MANIFEST_OPERATORS_MAX);
    struct manifest_yaml_lines *l = &w->lines[w->n_operators++];
    l->at = line;
    for (;;) {
        int r = next(w, &type, name, sizeof(name), &line, err);
        if (r < 0 || type == YAML_MAPPING_END_EVENT)
            return r;
        if (type != YAML_SCALAR_EVENT)
            return err_set(err, -EINVAL, "%s: found a list or mapping as key; expected the name of a key",
                           manifest_yaml_place(place, w->path, line));
        r = walk_key(w, l, name, line, err);
        if (r < 0)
            return r;
    }
}

static int walk_operators(struct walk *w, struct err *err)
{
    char text[8];
    unsigned line;
    yaml_event_type_t type;
    int r = next(w, &type, text, sizeof(text), &line, err);
    if (r == 0 && type != YAML_SEQUENCE_START_EVENT)
        r = wrong_form(w, line, "operators", "a list of operators, each beginning with '- kind: ...'", err);
    while (r == 0) {
        r = next(w, &type, text, sizeof(text), &line, err);
        if (r == 0 && type == YAML_SEQUENCE_END_EVENT)
            break;
        if (r == 0 && type != YAML_MAPPING_START_EVENT)
            r = wrong_form(w, line, "operators", "a list of operators, each beginning with '- kind: ...'", err);
        if (r == 0)
            r = walk_operator(w, line, err);
    }
    return r;
}

static int walk_top(struct walk *w, struct err *err)
{
    static const char *const names[] = {"version", "operators"};
    char name[64], place[160];
    unsigned line;
    yaml_event_type_t type;
    for (;;) {
        int r = next(w, &type, name, sizeof(name), &line, err);
        if (r < 0 || type == YAML_MAPPING_END_EVENT)
            return r;
        if (type != YAML_SCALAR_EVENT)
            return err_set(err, -EINVAL, "%s: found a list or mapping as key; expected version or operators",
                           manifest_yaml_place(place, w->path, line));
        unsigned *seen = strcmp(name, "version") == 0     ? &w->version_line
                         : strcmp(name, "operators") == 0 ? &w->operators_line
                                                          : NULL;
        if (!seen)
            return unknown(w, line, "key", name, names, ARRAY_LEN(names), err);
        if (*seen)
            return twice(w, line, name, *seen, err);
        *seen = line;
        r = seen == &w->operators_line ? walk_operators(w, err) : expect(w, YAML_SCALAR_EVENT, "'version: 1'", err);
        if (r < 0)
            return r;
    }
}

static int walk(struct walk *w, const char *text, size_t n, struct err *err)
{
    static const char *const one = "one mapping with the keys version and operators";
    if (!yaml_parser_initialize(&w->parser))
        return err_set(err, -ENOMEM, "manifest '%s': out of memory", w->path);
    yaml_parser_set_input_string(&w->parser, (const unsigned char *)text, n);
    int r = expect(w, YAML_STREAM_START_EVENT, "YAML", err);
    if (r == 0)
        r = expect(w, YAML_DOCUMENT_START_EVENT, one, err);
    if (r == 0)
        r = expect(w, YAML_MAPPING_START_EVENT, one, err);
    if (r == 0)
        r = walk_top(w, err);
    if (r == 0)
        r = expect(w, YAML_DOCUMENT_END_EVENT, "the end of the file after the mapping", err);
    if (r == 0)
        r = expect(w, YAML_STREAM_END_EVENT, "the end of the file; a second document is not read", err);
    yaml_parser_delete(&w->parser);
    return r;
}

struct capture {
    char text[384];
    size_t used;
};

__attribute__((format(printf, 3, 0))) static void capture_log(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    struct capture *c = ctx;
    if (level < CYAML_LOG_ERROR || c->used + 1 >= sizeof(c->text))
        return;
    int n = vsnprintf(c->text + c->used, sizeof(c->text) - c->used, fmt, args);
    c->used = MIN(c->used + (size_t)MAX(n, 0), sizeof(c->text) - 1);
}

static cyaml_config_t loader_config(struct capture *c)
{
    return (cyaml_config_t){
        .log_fn = capture_log, .log_ctx = c, .mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR, .flags = CYAML_CFG_NO_ALIAS};
}

static int read_text(const char *path, char *buf, size_t *ret_n, struct err *err)
{
    size_t n = 0;
    auto_fd fd = manifest_file_open("manifest", path, path, err);
    if (fd < 0)
        return fd;
    for (;;) {
        ssize_t got = read(fd, buf + n, FILE_MAX_BYTES + 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, -errno, "manifest '%s': cannot be read", path);
        n += (size_t)got;
        if (got == 0)
            break;
        if (n > FILE_MAX_BYTES)
            return err_set(err, -EFBIG, "manifest '%s': more than %u bytes", path, FILE_MAX_BYTES);
    }
    *ret_n = n;
    return 0;
}

static int load(struct walk *w, const char *text, size_t n, struct manifest_yaml **ret, struct err *err)
{
    struct capture c = {0};
    cyaml_config_t config = loader_config(&c);
    struct manifest_yaml *y = NULL;
    cyaml_err_t r = cyaml_load_data((const uint8_t *)text, n, &config, &top_schema, (cyaml_data_t **)&y, NULL);
    if (r != CYAML_OK || !y)
        return err_set(err, r == CYAML_ERR_OOM ? -ENOMEM : -EINVAL, "manifest '%s': %s (%s)", w->path, cyaml_strerror(r), c.text);
    y->version_line = w->version_line;
    y->lines = take_ptr(&w->lines);
    if (y->n_operators == w->n_operators) {
        *ret = y;
        return 0;
    }
    int found = (int)y->n_operators;
    manifest_yaml_close(y);
    return err_set(err, -EINVAL, "manifest '%s': %u operators were counted but %d read", w->path, w->n_operators, found);
}

int manifest_yaml_open(const char *path, struct manifest_yaml **ret, struct err *err)
{
    struct walk w = {.path = path};
    size_t n = 0;
    auto_free char *text = malloc(FILE_MAX_BYTES + 1);
    w.lines = calloc(MANIFEST_OPERATORS_MAX, sizeof(*w.lines));
    int r = text && w.lines ? 0 : err_set(err, -ENOMEM, "manifest '%s': out of memory", path);
    if (r == 0)
        r = read_text(path, text, &n, err);
    if (r == 0)
        r = walk(&w, text, n, err);
    if (r == 0)
        r = load(&w, text, n, ret, err);
    free(w.lines);
    return r;
}

void manifest_yaml_close(struct manifest_yaml *y)
{
    if (!y)
        return;
    struct capture unused = {0};
    cyaml_config_t config = loader_config(&unused);
    free(y->lines);
    y->lines = NULL;
    cyaml_free(&config, &top_schema, y, 0);
}
