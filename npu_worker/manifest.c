/* SPDX-License-Identifier: MIT
 * What the strings of a manifest mean: one table of kinds (arguments, dimensions, how each dimension fits a wish), from which the
 * checks, the sizes of arguments, the choice of an operator and the printed table follow. Called when a backend opens and by
 * --list-operators, on the main thread. Opens the manifest and instruction files, never a device or an xclbin. */
#include "npu_worker/manifest.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "npu_worker/manifest_file.h"
#include "npu_worker/manifest_yaml.h"
#include "proto/err.h"
#include "proto/util.h"

#define INSTRUCTIONS_MAX_BYTES (16u << 20)
#define ARGUMENT_MAX_BYTES ((uint64_t)4 << 30)

/* How an operator's dimension serves a wish for another: cut into calls, filled up with zeroes, or not unless it is equal. */
enum fit { UNUSED, CUT, PAD, EQUAL };

static const struct {
    const char *name;
    enum fit dims[MANIFEST_DIMS];
    unsigned required, allowed; /* bits of roles */
} kinds[MANIFEST_KINDS] = {
#define BIT(role) (1u << MANIFEST_ARG_##role)
    [MANIFEST_GEMM] = {"gemm",
                       {[MANIFEST_M] = CUT, [MANIFEST_K] = PAD, [MANIFEST_N] = CUT},
                       BIT(A) | BIT(B) | BIT(C),
                       BIT(A) | BIT(B) | BIT(C)},
    [MANIFEST_GEMV] = {"gemv", {[MANIFEST_M] = CUT, [MANIFEST_K] = PAD}, BIT(A) | BIT(X) | BIT(Y), BIT(A) | BIT(X) | BIT(Y)},
    [MANIFEST_RMS_NORM] = {"rms_norm",
                           {[MANIFEST_ROWS] = CUT, [MANIFEST_WIDTH] = EQUAL},
                           BIT(X) | BIT(W) | BIT(Y),
                           BIT(X) | BIT(W) | BIT(Y)},
    [MANIFEST_ROPE] = {"rope",
                       {[MANIFEST_ROWS] = CUT, [MANIFEST_WIDTH] = EQUAL},
                       BIT(X) | BIT(ANGLES) | BIT(Y),
                       BIT(X) | BIT(ANGLES) | BIT(Y)},
    [MANIFEST_ATTENTION] = {"attention",
                            {[MANIFEST_TOKENS] = CUT,
                             [MANIFEST_KEYS] = PAD,
                             [MANIFEST_HEADS] = EQUAL,
                             [MANIFEST_KV_HEADS] = EQUAL,
                             [MANIFEST_HEAD_DIM] = EQUAL,
                             [MANIFEST_WINDOW] = EQUAL},
                            BIT(Q) | BIT(K) | BIT(V) | BIT(O),
                            BIT(Q) | BIT(K) | BIT(V) | BIT(O) | BIT(POSITIONS)},
#undef BIT
};
static const char *const roles[MANIFEST_ROLES] = {"a", "b", "c", "x", "w", "y", "angles", "q", "k", "v", "positions", "o"};
static const struct {
    const char *name;
    size_t bytes;
} dtypes[MANIFEST_DTYPES] = {{"bf16", 2}, {"f16", 2}, {"f32", 4}, {"i8", 1}, {"i32", 4}};

struct manifest {
    char *path;
    size_t n;
    struct manifest_operator operators[];
};

/* One operator while it is read. */
struct reading {
    const char *path;
    const struct manifest_yaml_operator *y;
    const struct manifest_yaml_lines *lines;
    struct manifest_operator *o;
};

static int refuse(const struct reading *r, unsigned line, struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static int refuse(const struct reading *r, unsigned line, struct err *err, const char *fmt, ...)
{
    char place[160], text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(err, -EINVAL, "%s: %s", manifest_yaml_place(place, r->path, line), text);
}

static unsigned line_of(const struct reading *r, enum manifest_yaml_key k)
{
    return r->lines->keys[k] ? r->lines->keys[k] : r->lines->at;
}

static int missing(const struct reading *r, enum manifest_yaml_key k, const char *expected, struct err *err)
{
    return refuse(r, r->lines->at, err, "operator of kind '%.20s': key '%s' is missing; expected %s", r->y->kind ? r->y->kind : "?",
                  manifest_yaml_key(k), expected);
}

static int read_kind(struct reading *r, struct err *err)
{
    const char *text = r->y->kind;
    if (!text)
        return missing(r, MANIFEST_YAML_KIND, "gemm, gemv, rms_norm, rope or attention", err);
    for (unsigned k = 0; k < MANIFEST_KINDS; k++) {
        if (strcmp(kinds[k].name, text) == 0) {
            r->o->kind = (enum manifest_kind)k;
            return 0;
        }
    }
    return refuse(r, line_of(r, MANIFEST_YAML_KIND), err,
                  "key 'kind': found '%.40s'; expected gemm, gemv, rms_norm, rope or attention", text);
}

static int read_path(const struct reading *r, enum manifest_yaml_key key, const char *text, char **ret, struct err *err)
{
    const char *slash = strrchr(r->path, '/');
    int folder = slash && text && *text != '/' ? (int)(slash - r->path) + 1 : 0;
    if (!text || !*text)
        return missing(r, key, "the path of a file, relative to the manifest", err);
    if (asprintf(ret, "%.*s%s", folder, r->path, text) < 0) {
        *ret = NULL;
        return err_set(err, -ENOMEM, "manifest '%s': out of memory", r->path);
    }
    return 0;
}

/* One of two words. */
static int read_choice(const struct reading *r, enum manifest_yaml_key key, const char *text, const char *no, const char *yes,
                       bool *ret, struct err *err)
{
    if (!text)
        return 0;
    if (strcmp(text, no) != 0 && strcmp(text, yes) != 0)
        return refuse(r, line_of(r, key), err, "key '%s': found '%.40s'; expected %s or %s", manifest_yaml_key(key), text, no, yes);
    *ret = strcmp(text, yes) == 0;
    return 0;
}

static int read_number(const struct reading *r, enum manifest_yaml_key key, const char *text, float *ret, struct err *err)
{
    char *end;
    if (!text)
        return missing(r, key, "a number above 0", err);
    errno = 0;
    float v = strtof(text, &end);
    if (end == text || *end || !isfinite(v) || v <= 0)
        return refuse(r, line_of(r, key), err, "key '%s': found '%.40s'; expected a number above 0", manifest_yaml_key(key), text);
    *ret = v;
    return 0;
}

static int read_files(struct reading *r, struct err *err)
{
    const char *kernel = r->y->kernel ? r->y->kernel : "MLIR_AIE", *dot;
    int e = read_path(r, MANIFEST_YAML_XCLBIN, r->y->xclbin, &r->o->xclbin, err);
    if (e == 0)
        e = read_path(r, MANIFEST_YAML_INSTRUCTIONS, r->y->instructions, &r->o->instructions, err);
    if (e < 0)
        return e;
    dot = strrchr(r->o->instructions, '.');
    r->o->hex = dot && strcmp(dot, ".txt") == 0;
    e = read_choice(r, MANIFEST_YAML_FORMAT, r->y->format, "binary", "hex", &r->o->hex, err);
    if (e == 0 && (!*kernel || strlen(kernel) >= sizeof(r->o->kernel)))
        e = refuse(r, line_of(r, MANIFEST_YAML_KERNEL), err, "key 'kernel': expected 1 to %zu bytes", sizeof(r->o->kernel) - 1);
    if (e == 0)
        strcpy(r->o->kernel, kernel);
    return e;
}

static int read_dim(const char *text, uint32_t min, uint32_t *ret)
{
    char *end;
    errno = 0;
    unsigned long v = *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;
    if (*text < '0' || *text > '9' || errno || *end || v < min || v > MANIFEST_DIM_MAX)
        return -EINVAL;
    *ret = (uint32_t)v;
    return 0;
}

static int read_shape(struct reading *r, struct err *err)
{
    for (unsigned d = 0; d < MANIFEST_DIMS; d++) {
        const char *text = r->y->shape.dim[d], *multiple = r->y->multiple_of.dim[d];
        const char *kind = kinds[r->o->kind].name, *name = manifest_yaml_dims[d];
        bool used = kinds[r->o->kind].dims[d] != UNUSED;
        uint32_t m = 1;
        if ((text || multiple) && !used)
            return refuse(r, text ? r->lines->shape[d] : r->lines->multiple_of[d], err, "'%s' is no dimension of kind '%s'", name,
                          kind);
        if (!used)
            continue;
        if (!text)
            return refuse(r, line_of(r, MANIFEST_YAML_SHAPE), err, "key 'shape': '%s' is missing, which kind '%s' has", name, kind);
        if (read_dim(text, d == MANIFEST_WINDOW ? 0 : 1, &r->o->dims[d]) < 0)
            return refuse(r, r->lines->shape[d], err, "'%s' of key 'shape': found '%.40s'; expected a whole number from %d to %u",
                          name, text, d != MANIFEST_WINDOW, MANIFEST_DIM_MAX);
        if (multiple && read_dim(multiple, 1, &m) < 0)
            return refuse(r, r->lines->multiple_of[d], err,
                          "'%s' of key 'multiple_of': found '%.40s'; expected a whole number from 1 to %u", name, multiple,
                          MANIFEST_DIM_MAX);
        if (r->o->dims[d] % m)
            return refuse(r, r->lines->shape[d], err, "'%s' of key 'shape' is %u; expected a multiple of %u, as 'multiple_of' says",
                          name, r->o->dims[d], m);
    }
    if (r->o->kind == MANIFEST_ATTENTION && r->o->dims[MANIFEST_HEADS] % r->o->dims[MANIFEST_KV_HEADS])
        return refuse(r, r->lines->shape[MANIFEST_HEADS], err, "'heads' is %u; expected a multiple of 'kv_heads', %u",
                      r->o->dims[MANIFEST_HEADS], r->o->dims[MANIFEST_KV_HEADS]);
    return 0;
}

static int read_arguments(struct reading *r, struct err *err)
{
    unsigned line = line_of(r, MANIFEST_YAML_ARGUMENTS), seen = 0;
    const char *kind = kinds[r->o->kind].name;
    if (r->y->n_arguments == 0)
        return missing(r, MANIFEST_YAML_ARGUMENTS, "the order of the kernel's buffers, such as [a, b, c]", err);
    for (unsigned i = 0; i < r->y->n_arguments; i++) {
        unsigned role = 0;
        while (role < MANIFEST_ROLES && strcmp(roles[role], r->y->arguments[i]) != 0)
            role++;
        if (role == MANIFEST_ROLES || !(kinds[r->o->kind].allowed & 1u << role))
            return refuse(r, line, err, "key 'arguments': '%.40s' is no argument of kind '%s'", r->y->arguments[i], kind);
        if (seen & 1u << role)
            return refuse(r, line, err, "key 'arguments': '%s' is given twice", roles[role]);
        seen |= 1u << role;
        r->o->arguments[i] = (enum manifest_role)role;
        r->o->dtypes[i] = role == MANIFEST_ARG_POSITIONS ? MANIFEST_I32 : MANIFEST_BF16;
    }
    r->o->n_arguments = r->y->n_arguments;
    for (unsigned role = 0; role < MANIFEST_ROLES; role++) {
        if (kinds[r->o->kind].required & ~seen & 1u << role)
            return refuse(r, line, err, "key 'arguments': '%s' is missing, which kind '%s' has", roles[role], kind);
    }
    return 0;
}

static int read_dtypes(struct reading *r, struct err *err)
{
    unsigned line = line_of(r, MANIFEST_YAML_DTYPES);
    if (!r->lines->keys[MANIFEST_YAML_DTYPES])
        return 0;
    if (r->y->n_dtypes != r->o->n_arguments)
        return refuse(r, line, err, "key 'dtypes': %u types for %u arguments; expected one for each", r->y->n_dtypes,
                      r->o->n_arguments);
    for (unsigned i = 0; i < r->y->n_dtypes; i++) {
        unsigned t = 0;
        while (t < MANIFEST_DTYPES && strcmp(dtypes[t].name, r->y->dtypes[i]) != 0)
            t++;
        if (t == MANIFEST_DTYPES)
            return refuse(r, line, err, "key 'dtypes': found '%.40s'; expected bf16, f16, f32, i8 or i32", r->y->dtypes[i]);
        r->o->dtypes[i] = (enum manifest_dtype)t;
    }
    return 0;
}

/* Keys that mean something to one kind only are errors elsewhere. */
static int read_constants(struct reading *r, struct err *err)
{
    static const struct {
        enum manifest_yaml_key key;
        enum manifest_kind kind;
    } of_one[] = {{MANIFEST_YAML_B_LAYOUT, MANIFEST_GEMM},
                  {MANIFEST_YAML_EPSILON, MANIFEST_RMS_NORM},
                  {MANIFEST_YAML_METHOD, MANIFEST_ROPE},
                  {MANIFEST_YAML_SCALE, MANIFEST_ATTENTION}};
    for (size_t i = 0; i < ARRAY_LEN(of_one); i++) {
        if (r->lines->keys[of_one[i].key] && r->o->kind != of_one[i].kind)
            return refuse(r, r->lines->keys[of_one[i].key], err, "key '%s' belongs to kind '%s', not to '%s'",
                          manifest_yaml_key(of_one[i].key), kinds[of_one[i].kind].name, kinds[r->o->kind].name);
    }
    if (r->o->kind == MANIFEST_RMS_NORM)
        return read_number(r, MANIFEST_YAML_EPSILON, r->y->epsilon, &r->o->epsilon, err);
    if (r->o->kind == MANIFEST_ATTENTION)
        return read_number(r, MANIFEST_YAML_SCALE, r->y->scale, &r->o->scale, err);
    int e = read_choice(r, MANIFEST_YAML_B_LAYOUT, r->y->b_layout, "kn", "nk", &r->o->b_nk, err);
    return e < 0 ? e : read_choice(r, MANIFEST_YAML_METHOD, r->y->method, "halves", "interleaved", &r->o->interleaved, err);
}

static uint64_t values(const struct manifest_operator *o, enum manifest_role role)
{
    const uint32_t *d = o->dims;
    uint64_t heads = (uint64_t)d[MANIFEST_HEADS] * d[MANIFEST_HEAD_DIM], kv = (uint64_t)d[MANIFEST_KV_HEADS] * d[MANIFEST_HEAD_DIM];
    switch (role) {
    case MANIFEST_ARG_A:
        return (uint64_t)d[MANIFEST_M] * d[MANIFEST_K];
    case MANIFEST_ARG_B:
        return (uint64_t)d[MANIFEST_K] * d[MANIFEST_N];
    case MANIFEST_ARG_C:
        return (uint64_t)d[MANIFEST_M] * d[MANIFEST_N];
    case MANIFEST_ARG_X:
        return o->kind == MANIFEST_GEMV ? d[MANIFEST_K] : (uint64_t)d[MANIFEST_ROWS] * d[MANIFEST_WIDTH];
    case MANIFEST_ARG_W:
        return d[MANIFEST_WIDTH];
    case MANIFEST_ARG_Y:
        return o->kind == MANIFEST_GEMV ? d[MANIFEST_M] : (uint64_t)d[MANIFEST_ROWS] * d[MANIFEST_WIDTH];
    case MANIFEST_ARG_ANGLES:
        return (uint64_t)d[MANIFEST_ROWS] * d[MANIFEST_WIDTH];
    case MANIFEST_ARG_Q:
    case MANIFEST_ARG_O:
        return heads * d[MANIFEST_TOKENS]; /* 2^60 at most: dimensions are bounded */
    case MANIFEST_ARG_K:
    case MANIFEST_ARG_V:
        return kv * d[MANIFEST_KEYS];
    case MANIFEST_ARG_POSITIONS:
        return 4;
    case MANIFEST_ROLES:
    default:
        return 0;
    }
}

static int check_sizes(const struct reading *r, struct err *err)
{
    for (unsigned i = 0; i < r->o->n_arguments; i++) {
        if (values(r->o, r->o->arguments[i]) > ARGUMENT_MAX_BYTES / dtypes[r->o->dtypes[i]].bytes)
            return refuse(r, line_of(r, MANIFEST_YAML_SHAPE), err,
                          "argument '%s' would be larger than 4 GiB; expected a smaller shape", roles[r->o->arguments[i]]);
    }
    return 0;
}

static int read_operator(struct reading *r, struct err *err)
{
    r->o->line = r->lines->at;
    int e = read_kind(r, err);
    if (e == 0)
        e = read_files(r, err);
    if (e == 0)
        e = read_shape(r, err);
    if (e == 0)
        e = read_arguments(r, err);
    if (e == 0)
        e = read_dtypes(r, err);
    if (e == 0)
        e = read_constants(r, err);
    return e < 0 ? e : check_sizes(r, err);
}

static int read_all(const struct manifest_yaml *y, const char *path, struct manifest *m, struct err *err)
{
    char place[160];
    if (!y->version || strcmp(y->version, "1") != 0)
        return err_set(err, -EINVAL, "%s: key 'version': found '%.20s'; expected 1",
                       manifest_yaml_place(place, path, y->version_line ? y->version_line : 1),
                       y->version ? y->version : "nothing");
    if (y->n_operators == 0)
        return err_set(err, -EINVAL, "manifest '%s': key 'operators': expected at least one operator", path);
    for (m->n = 0; m->n < y->n_operators;) {
        struct reading r = {.path = path, .y = &y->operators[m->n], .lines = &y->lines[m->n], .o = &m->operators[m->n]};
        r.o->manifest = m->path;
        m->n++; /* close frees what a failing one has */
        int e = read_operator(&r, err);
        if (e < 0)
            return e;
    }
    return 0;
}

int manifest_open(const char *path, struct manifest **ret, struct err *err)
{
    struct manifest_yaml *y = NULL;
    struct manifest *m = NULL;
    int r = manifest_yaml_open(path, &y, err);
    if (r < 0)
        return r;
    m = calloc(1, sizeof(*m) + y->n_operators * sizeof(*m->operators));
    if (!m || !(m->path = strdup(path)))
        r = err_set(err, -ENOMEM, "manifest '%s': out of memory", path);
    else
        r = read_all(y, path, m, err);
    manifest_yaml_close(y);
    if (r < 0)
        manifest_close(m);
    else
        *ret = m;
    return r;
}

void manifest_close(struct manifest *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        free(m->operators[i].xclbin);
        free(m->operators[i].instructions);
    }
    free(m->path);
    free(m);
}

size_t manifest_count(const struct manifest *m)
{
    return m->n;
}

const struct manifest_operator *manifest_get(const struct manifest *m, size_t i)
{
    return &m->operators[i];
}

/* Calls and their work for `want`; false where the operator cannot serve it. */
static bool cost(const struct manifest_operator *o, const uint32_t want[MANIFEST_DIMS], uint64_t *ret_calls, double *ret_work)
{
    uint64_t calls = 1;
    double work = 1;
    for (unsigned d = 0; d < MANIFEST_DIMS; d++) {
        enum fit fit = kinds[o->kind].dims[d];
        if (fit == UNUSED)
            continue;
        if (fit == CUT)
            calls *= want[d] ? (want[d] + o->dims[d] - 1) / o->dims[d] : 1;
        else if ((fit == PAD && want[d] > o->dims[d]) ||
                 (fit == EQUAL && want[d] != o->dims[d] && (want[d] || d == MANIFEST_WINDOW)))
            return false;
        if (d != MANIFEST_WINDOW)
            work *= o->dims[d];
    }
    *ret_calls = calls;
    *ret_work = work * (double)calls;
    return true;
}

static void describe_dims(enum manifest_kind kind, const uint32_t dims[MANIFEST_DIMS], char *buf, size_t bytes)
{
    size_t used = 0;
    buf[0] = '\0';
    for (unsigned d = 0; d < MANIFEST_DIMS; d++) {
        if (kinds[kind].dims[d] == UNUSED)
            continue;
        int n = snprintf(buf + used, bytes - used, "%s%s %u", used ? " " : "", manifest_yaml_dims[d], dims[d]);
        used = MIN(used + (size_t)MAX(n, 0), bytes - 1);
    }
}

static int not_there(const struct manifest *m, enum manifest_kind kind, const uint32_t want[MANIFEST_DIMS], struct err *err)
{
    char wish[128], there[320] = "", dims[128];
    size_t used = 0;
    describe_dims(kind, want, wish, sizeof(wish));
    for (size_t i = 0; i < m->n; i++) {
        if (m->operators[i].kind != kind)
            continue;
        describe_dims(kind, m->operators[i].dims, dims, sizeof(dims));
        int n = snprintf(there + used, sizeof(there) - used, "%s%s", used ? "; " : "", dims);
        used = MIN(used + (size_t)MAX(n, 0), sizeof(there) - 1);
    }
    return err_set(err, -ENOTSUP, "manifest '%s' has no operator of kind '%s' for %s%s%s", m->path, kinds[kind].name, wish,
                   there[0] ? "; it has: " : ", and none of that kind at all", there);
}

int manifest_find(const struct manifest *m, enum manifest_kind kind, const uint32_t want[MANIFEST_DIMS], manifest_usable_fn usable,
                  const struct manifest_operator **ret, uint64_t *ret_calls, struct err *err)
{
    const struct manifest_operator *best = NULL;
    struct err passed_over = {0};
    uint64_t best_calls = 0;
    double best_work = 0;
    for (size_t i = 0; i < m->n; i++) {
        struct err why = {0};
        uint64_t calls;
        double work;
        if (m->operators[i].kind != kind || !cost(&m->operators[i], want, &calls, &work))
            continue;
        if (usable && usable(&m->operators[i], &why) < 0) {
            if (!passed_over.code)
                passed_over = why;
            continue;
        }
        if (!best || work < best_work || (work <= best_work && calls < best_calls)) {
            best = &m->operators[i];
            best_calls = calls;
            best_work = work;
        }
    }
    if (!best && passed_over.code)
        return err_set(err, -ENOTSUP, "%s", passed_over.text);
    if (!best)
        return not_there(m, kind, want, err);
    *ret = best;
    if (ret_calls)
        *ret_calls = best_calls;
    return 0;
}

int manifest_argument(const struct manifest_operator *o, enum manifest_role role)
{
    for (unsigned i = 0; i < o->n_arguments; i++) {
        if (o->arguments[i] == role)
            return (int)i;
    }
    return -1;
}

size_t manifest_dtype_bytes(enum manifest_dtype t)
{
    return dtypes[t].bytes;
}

size_t manifest_bytes(const struct manifest_operator *o, unsigned argument)
{
    return (size_t)values(o, o->arguments[argument]) * dtypes[o->dtypes[argument]].bytes;
}

static int read_whole(const char *path, const char *manifest, char **ret, size_t *ret_n, struct err *err)
{
    auto_fd fd = manifest_file_open("instructions", path, manifest, err);
    auto_free char *data = NULL;
    size_t n = 0, room = 0;
    if (fd < 0)
        return fd;
    for (;;) {
        if (n == room) {
            room = room ? 2 * room : 4096;
            char *more = realloc(data, room);
            if (!more)
                return err_set(err, -ENOMEM, "instructions '%s': out of memory", path);
            data = more;
        }
        ssize_t got = read(fd, data + n, room - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, -errno, "instructions '%s': cannot be read", path);
        n += (size_t)got;
        if (got == 0)
            break;
        if (n > INSTRUCTIONS_MAX_BYTES)
            return err_set(err, -EFBIG, "instructions '%s': more than 16 MiB", path);
    }
    *ret = take_ptr(&data);
    *ret_n = n;
    return 0;
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int parse_hex(const char *path, const char *text, size_t n, uint32_t *words, size_t *ret_n, struct err *err)
{
    size_t at = 0, count = 0, line = 1;
    while (at < n) {
        uint32_t word = 0;
        size_t digits = 0;
        if (text[at] == '\n' || text[at] == '\r' || text[at] == ' ' || text[at] == '\t') {
            line += text[at++] == '\n';
            continue;
        }
        for (; at < n && digits < 9 && hex_digit(text[at]) >= 0; at++, digits++)
            word = word << 4 | (uint32_t)hex_digit(text[at]);
        if (digits != 8 || (at < n && !strchr("\n\r \t", text[at])))
            return err_set(err, -EINVAL, "instructions '%s', line %zu: expected words of eight hexadecimal digits, one a line",
                           path, line);
        words[count++] = word;
    }
    *ret_n = count;
    return 0;
}

int manifest_instructions(const struct manifest_operator *o, uint32_t **ret, size_t *ret_n, struct err *err)
{
    auto_free char *data = NULL;
    size_t n = 0, words = 0;
    int r = read_whole(o->instructions, o->manifest, &data, &n, err);
    if (r < 0)
        return r;
    if (!o->hex && n % 4)
        return err_set(err, -EINVAL, "instructions '%s': %zu bytes; expected whole words of 4 bytes (or 'format: hex')",
                       o->instructions, n);
    auto_free uint32_t *out = malloc(n + 4);
    if (!out)
        return err_set(err, -ENOMEM, "instructions '%s': out of memory", o->instructions);
    if (o->hex) {
        r = parse_hex(o->instructions, data, n, out, &words, err);
    } else {
        const unsigned char *p = (const unsigned char *)data;
        for (; words < n / 4; words++, p += 4)
            out[words] = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }
    if (r == 0 && words == 0)
        r = err_set(err, -EINVAL, "instructions '%s': it is empty", o->instructions);
    if (r < 0)
        return r;
    *ret = take_ptr(&out);
    *ret_n = words;
    return 0;
}

const char *manifest_kind_name(enum manifest_kind kind)
{
    return kinds[kind].name;
}

int manifest_check_files(const struct manifest_operator *o, struct err *err)
{
    const char *const names[] = {"xclbin", "instructions"}, *const paths[] = {o->xclbin, o->instructions};
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        auto_fd fd = manifest_file_open(names[i], paths[i], o->manifest, err);
        if (fd < 0)
            return err_wrap(err, fd, "operator of line %u of the manifest", o->line);
    }
    return 0;
}

void manifest_print(const struct manifest *m, FILE *out)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct manifest_operator *o = &m->operators[i];
        struct err why = {0};
        char dims[160];
        describe_dims(o->kind, o->dims, dims, sizeof(dims));
        fprintf(out, "line %-4u  %-9s  %s (", o->line, kinds[o->kind].name, dims);
        for (unsigned a = 0; a < o->n_arguments; a++)
            fprintf(out, "%s%s %s", a ? ", " : "", roles[o->arguments[a]], dtypes[o->dtypes[a]].name);
        fprintf(out, ")");
        if (o->kind == MANIFEST_GEMM)
            fprintf(out, "  b %s", o->b_nk ? "nk" : "kn");
        else if (o->kind == MANIFEST_RMS_NORM)
            fprintf(out, "  epsilon %g", (double)o->epsilon);
        else if (o->kind == MANIFEST_ROPE)
            fprintf(out, "  %s", o->interleaved ? "interleaved" : "halves");
        else if (o->kind == MANIFEST_ATTENTION)
            fprintf(out, "  scale %g", (double)o->scale);
        fprintf(out, "  %s  %s\n", o->xclbin, o->instructions);
        if (manifest_check_files(o, &why) < 0)
            fprintf(out, "           cannot be used: %s\n", why.text);
    }
}
