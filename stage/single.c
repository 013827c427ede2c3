/* SPDX-License-Identifier: MIT
 * The command line of the stage programs and the frame of single-stage mode: config, model file, weights of one segment, rows from
 * and to .npy files. Owns what it opens for the time of one run. Called by main only; a failure is one line on standard error and
 * status 1, a wrong command line status 2. */
#include "stage/single.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "model/gguf.h"
#include "model/npy.h"
#include "model/work_plan.h"
#include "proto/err.h"
#include "proto/process.h"
#include "proto/stage.h"
#include "proto/stage_connect.h"
#include "proto/util.h"

#define CHOOSE_SECONDS 60 /* longer than who asks waits (coordinator/device_ask.c) */

#define OVERRIDES_MAX 64
#define USAGE_STATUS 2
#define CONNECT_MS 5000

enum {
    OPT_CONFIG = 1,
    OPT_SET,
    OPT_OUT,
    OPT_STAGE_FD,
    OPT_STAGE_SOCKET,
    OPT_HELP,
    OPT_VERSION,
    OPT_LAYER,
    OPT_IN,
    OPT_DUMP,
    OPT_POSITIONS,
    OPT_HEAD,
    OPT_IDS,
    OPT_BACKEND,
    OPT_COMPARE,
    OPT_PROFILE,
    OPT_LIST,
    OPT_CHOOSE,
    OPT_OPERATORS
};

struct parsed {
    struct single s;
    const char *overrides[OVERRIDES_MAX];
    int n_overrides;
    int64_t stage_fd;
    const char *stage_socket;
    bool help, version;
    enum single_list list;
};

static const struct {
    struct option o;
    unsigned needs; /* SINGLE_* that the program must have */
    const char *argument, *help;
} options[] = {
    {{"config", required_argument, NULL, OPT_CONFIG}, 0, "FILE", "configuration; names the model"},
    {{"set", required_argument, NULL, OPT_SET}, 0, "KEY=VALUE", "override one key of the configuration (may be repeated)"},
    {{"layer", required_argument, NULL, OPT_LAYER}, SINGLE_LAYER, "N", "layer to compute, from 0"},
    {{"head", no_argument, NULL, OPT_HEAD}, SINGLE_HEAD, NULL, "compute final norm and logits instead of a layer"},
    {{"ids", required_argument, NULL, OPT_IDS}, SINGLE_IDS, "LIST", "token ids such as 2,17,5"},
    {{"in", required_argument, NULL, OPT_IN}, SINGLE_IN, "FILE.npy", "input rows, f32 [tokens][hidden]"},
    {{"positions", required_argument, NULL, OPT_POSITIONS},
     SINGLE_POSITIONS,
     "LIST",
     "position of each row such as 0,1,2 or 0..15 (both included); default 0, 1, 2, ..."},
    {{"out", required_argument, NULL, OPT_OUT}, 0, "FILE.npy", "where the result goes, f32"},
    {{"dump", required_argument, NULL, OPT_DUMP}, SINGLE_DUMP, "FOLDER", "write every intermediate there as NAME.npy"},
    {{"backend", required_argument, NULL, OPT_BACKEND}, SINGLE_BACKEND, "NAME", "a backend instead of what the configuration says"},
    {{"compare", required_argument, NULL, OPT_COMPARE},
     SINGLE_DEVICE,
     "NAME",
     "compute with that backend as well and print how far both differ"},
    {{"profile", no_argument, NULL, OPT_PROFILE},
     SINGLE_DEVICE,
     NULL,
     "compute ten times and print where the device's time goes, kernel by kernel (vulkan)"},
    {{"list-devices", no_argument, NULL, OPT_LIST},
     SINGLE_LIST,
     NULL,
     "what devices there are, their limits, and which one is chosen and why"},
    {{"list-operators", no_argument, NULL, OPT_OPERATORS},
     SINGLE_OPERATORS,
     NULL,
     "the operators of npu.manifest, and where each operation of the model's layers runs"},
    {{"choose-device", no_argument, NULL, OPT_CHOOSE},
     SINGLE_LIST,
     NULL,
     "only the one chosen, its facts by tabs (used by the coordinator)"},
    {{"stage-fd", required_argument, NULL, OPT_STAGE_FD},
     0,
     "N",
     "run as a stage on this control socket (used by the coordinator)"},
    {{"stage-socket", required_argument, NULL, OPT_STAGE_SOCKET},
     0,
     "PATH",
     "run as a stage of the coordinator that listens there (for service managers and debuggers)"},
    {{"help", no_argument, NULL, OPT_HELP}, 0, NULL, "this text"},
    {{"version", no_argument, NULL, OPT_VERSION}, 0, NULL, "name and version"},
};

static unsigned accepted(const struct single_program *p)
{
    return p->options | (p->list ? SINGLE_LIST : 0u);
}

static void print_help(const struct single_program *p)
{
    printf("Usage: %s --config FILE %s --out FILE.npy\n", p->name,
           p->options & SINGLE_IDS    ? "--ids LIST"
           : p->options & SINGLE_HEAD ? "(--layer N | --head) --in FILE.npy"
                                      : "--layer N --in FILE.npy [--positions LIST]");
    printf("       %s --stage-fd N | --stage-socket PATH\n", p->name);
    printf("%c%s.\n\nUsually the coordinator starts it, as a stage. Alone it computes one step in process.\n\nOptions:\n",
           toupper((unsigned char)*p->summary), p->summary + 1);
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        char left[48];
        if (options[i].needs & ~accepted(p))
            continue;
        snprintf(left, sizeof(left), "--%s %s", options[i].o.name, options[i].argument ? options[i].argument : "");
        printf("  %-22s %s\n", left, options[i].help);
    }
    printf("\nEnvironment:\n");
    util_env_help(stdout);
}

static int parse_number(const char *option, const char *text, int64_t *ret, struct err *err)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || v < 0 || v > INT32_MAX)
        return err_set(err, -EINVAL, "%s '%s': expected a whole number from 0", option, text);
    *ret = v;
    return 0;
}

static int apply(struct parsed *a, int opt, const char *value, struct err *err)
{
    switch (opt) {
    case OPT_CONFIG:
        a->s.config_path = value;
        return 0;
    case OPT_SET:
        if (a->n_overrides == OVERRIDES_MAX)
            return err_set(err, -E2BIG, "--set: more than %d times", OVERRIDES_MAX);
        a->overrides[a->n_overrides++] = value;
        return 0;
    case OPT_OUT:
        a->s.out = value;
        return 0;
    case OPT_STAGE_FD:
        return parse_number("--stage-fd", value, &a->stage_fd, err);
    case OPT_STAGE_SOCKET:
        a->stage_socket = value;
        return 0;
    case OPT_LAYER:
        return parse_number("--layer", value, &a->s.layer, err);
    case OPT_IN:
        a->s.in = value;
        return 0;
    case OPT_DUMP:
        a->s.dump = value;
        return 0;
    case OPT_POSITIONS:
        a->s.positions = value;
        return 0;
    case OPT_IDS:
        a->s.ids = value;
        return 0;
    case OPT_HEAD:
        a->s.head = true;
        return 0;
    case OPT_BACKEND:
        a->s.backend = value;
        return 0;
    case OPT_COMPARE:
        a->s.compare = value;
        return 0;
    case OPT_PROFILE:
        a->s.profile = true;
        return 0;
    case OPT_LIST:
        a->list = SINGLE_LIST_DEVICES;
        return 0;
    case OPT_CHOOSE:
        a->list = SINGLE_LIST_CHOOSE;
        return 0;
    case OPT_OPERATORS:
        a->list = SINGLE_LIST_OPERATORS;
        return 0;
    case OPT_HELP:
        a->help = true;
        return 0;
    default:
        a->version = true;
        return 0;
    }
}

static int check_complete(const struct parsed *a, struct err *err)
{
    const struct single *s = &a->s;
    unsigned can = s->program->options;
    const char *missing = NULL;
    if (a->stage_socket && a->stage_fd >= 0)
        return err_set(err, -EINVAL, "--stage-fd and --stage-socket cannot be given together");
    if (a->help || a->version || a->list || a->stage_fd >= 0 || a->stage_socket)
        return 0;
    if (!s->config_path)
        missing = "--config";
    else if (can & SINGLE_IDS && !s->ids)
        missing = "--ids";
    else if (can & SINGLE_HEAD && !s->head && s->layer < 0)
        missing = "--layer or --head";
    else if (can & SINGLE_LAYER && !s->head && s->layer < 0)
        missing = "--layer";
    else if (can & SINGLE_IN && !s->in)
        missing = "--in";
    else if (!s->out)
        missing = "--out";
    if (missing)
        return err_set(err, -EINVAL, "option %s is missing; see '%s --help'", missing, s->program->name);
    if (s->head && s->layer >= 0)
        return err_set(err, -EINVAL, "--head and --layer cannot be given together");
    if (s->profile && s->dump)
        return err_set(err, -EINVAL, "--profile and --dump cannot be given together: what is dumped is computed step by step");
    return 0;
}

static int parse(struct parsed *a, const struct single_program *p, int argc, char **argv, struct err *err)
{
    struct option table[ARRAY_LEN(options) + 1] = {0};
    size_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        if (!(options[i].needs & ~accepted(p)))
            table[n++] = options[i].o;
    }
    *a = (struct parsed){.s = {.program = p, .layer = -1}, .stage_fd = -1};
    opterr = 0;
    for (;;) {
        int opt = getopt_long(argc, argv, ":", table, NULL);
        if (opt == -1)
            break;
        if (opt == ':')
            return err_set(err, -EINVAL, "option '%s' needs a value; see '%s --help'", argv[optind - 1], p->name);
        if (opt == '?')
            return err_set(err, -EINVAL, "option '%s' is unknown or does not take a value; see '%s --help'", argv[optind - 1],
                           p->name);
        int r = apply(a, opt, optarg, err);
        if (r < 0)
            return r;
    }
    if (optind < argc)
        return err_set(err, -EINVAL, "unexpected argument '%s'; see '%s --help'", argv[optind], p->name);
    return check_complete(a, err);
}

static int collect_types(struct single *s, struct err *err)
{
    size_t n = (size_t)s->hparams.n_layers * GEMMA3_LAYER_TENSORS + segment_n_tensors(SEGMENT_HEAD);
    s->types = calloc(n, 1);
    if (!s->types)
        return err_set(err, -ENOMEM, "out of memory");
    for (uint32_t layer = 0; layer < s->hparams.n_layers; layer++) {
        uint8_t *t = s->types + (size_t)layer * GEMMA3_LAYER_TENSORS;
        int r = segment_types(s->gguf, SEGMENT_ATTN, layer, t, err);
        if (r == 0)
            r = segment_types(s->gguf, SEGMENT_FFN, layer, t + segment_n_tensors(SEGMENT_ATTN), err);
        if (r < 0)
            return r;
    }
    return segment_types(s->gguf, SEGMENT_HEAD, 0, s->types + n - segment_n_tensors(SEGMENT_HEAD), err);
}

static int run_single(struct parsed *a, struct err *err)
{
    struct single *s = &a->s;
    struct err dump_err = {0};
    s->dump_err = &dump_err;
    s->variant = util_env(UTIL_ENV_CPU) ? util_env(UTIL_ENV_CPU) : "auto";
    budget_init(&s->budget, s->program->name, 0);
    int r = config_load(s->config_path, a->overrides, a->n_overrides, &s->config, err);
    if (r == 0)
        r = gguf_open(s->config->model, false, &s->gguf, err);
    if (r == 0)
        r = gemma3_hparams(s->gguf, &s->hparams, err);
    if (r == 0)
        r = collect_types(s, err);
    if (r == 0)
        r = s->program->run(s, err);
    if (r == 0 && dump_err.code) {
        *err = dump_err;
        r = dump_err.code;
    }
    free(s->types);
    gguf_close(s->gguf);
    config_free(s->config);
    return r;
}

static int run_list(struct parsed *a, struct err *err)
{
    struct single *s = &a->s;
    if (a->list == SINGLE_LIST_CHOOSE)
        process_is_asked(CHOOSE_SECONDS);
    int r = config_load(s->config_path, a->overrides, a->n_overrides, &s->config, err);
    if (r == 0)
        r = s->program->list(s, a->list, err);
    config_free(s->config);
    return r;
}

static int run_stage(const struct single_program *p, int64_t fd)
{
    int flags = fcntl((int)fd, F_GETFD);
    if (flags < 0 || fcntl((int)fd, F_SETFD, flags | FD_CLOEXEC) < 0) {
        fprintf(stderr, "%s: error: --stage-fd %" PRId64 ": %s; expected an open socket\n", p->name, fd, strerror(errno));
        return 1;
    }
    return stage_run(p->ops, (int)fd, NULL);
}

static int run_connected(const struct single_program *p, const char *path, struct err *err)
{
    char token[STAGE_TOKEN_CHARS + 1];
    int fd = stage_connect(path, CONNECT_MS, token, err);
    if (fd >= 0)
        return stage_run(p->ops, fd, token);
    fprintf(stderr, "%s: error: %s\n", p->name, err->text);
    return 1;
}

int single_main(const struct single_program *p, int argc, char **argv)
{
    struct parsed a;
    struct err err = {0};
    int r = process_begin(p->name, &err);
    if (r < 0) {
        fprintf(stderr, "%s: error: %s\n", p->name, err.text);
        return 1;
    }
    r = parse(&a, p, argc, argv, &err);
    if (r < 0) {
        fprintf(stderr, "%s: error: %s\n", p->name, err.text);
        return USAGE_STATUS;
    }
    if (a.help)
        print_help(p);
    else if (a.version)
        printf("%s (Tandem) %s\n", p->name, TANDEM_VERSION);
    else if (a.stage_fd >= 0)
        return run_stage(p, a.stage_fd);
    else if (a.stage_socket)
        return run_connected(p, a.stage_socket, &err);
    else
        r = a.list ? run_list(&a, &err) : run_single(&a, &err);
    if (r < 0)
        fprintf(stderr, "%s: error: %s\n", p->name, err.text);
    return r < 0 || fflush(stdout) == EOF ? 1 : 0;
}

int single_layer(const struct single *s, uint32_t *ret, struct err *err)
{
    if (s->layer >= (int64_t)s->hparams.n_layers)
        return err_set(err, -ERANGE, "--layer %" PRId64 ": model '%s' has %u layers; expected 0 to %u", s->layer,
                       gguf_path(s->gguf), s->hparams.n_layers, s->hparams.n_layers - 1);
    *ret = (uint32_t)s->layer;
    return 0;
}

int single_rows(const struct single *s, float **ret, size_t *ret_n, struct err *err)
{
    size_t rows, cols;
    float *data;
    int r = npy_read(s->in, &data, &rows, &cols, err);
    if (r < 0)
        return r;
    if (cols != s->hparams.hidden || rows == 0) {
        free(data);
        return err_set(err, -EINVAL, "'%s' holds %zu x %zu values; expected tokens x %u for model '%s'", s->in, rows, cols,
                       s->hparams.hidden, gguf_path(s->gguf));
    }
    *ret = data;
    *ret_n = rows;
    return 0;
}

int single_segment(struct single *s, enum segment_kind kind, uint32_t layer, struct segment_layout *ret_layout, void **ret_data,
                   struct err *err)
{
    uint8_t types[SEGMENT_MAX_TENSORS];
    void *data = NULL, *bounce = NULL;
    int r = segment_types(s->gguf, kind, layer, types, err);
    if (r == 0)
        r = segment_layout_init(ret_layout, &s->hparams, kind, types, err);
    if (r < 0)
        return r;
    size_t bounce_bytes = work_plan_bounce_bytes(segment_bounce_min(ret_layout));
    r = budget_alloc(&s->budget, BUDGET_WEIGHTS, ret_layout->bytes, &data, err);
    if (r == 0)
        r = budget_alloc(&s->budget, BUDGET_SCRATCH, bounce_bytes, &bounce, err);
    if (r == 0)
        r = segment_fill(s->gguf, layer, ret_layout, data, bounce, bounce_bytes, err);
    budget_free(&s->budget, BUDGET_SCRATCH, bounce, bounce_bytes);
    if (r < 0)
        budget_free(&s->budget, BUDGET_WEIGHTS, data, ret_layout->bytes);
    else
        *ret_data = data;
    return r;
}

void single_free_segment(struct single *s, const struct segment_layout *l, void *data)
{
    budget_free(&s->budget, BUDGET_WEIGHTS, data, l->bytes);
}

void single_dump(void *ctx, const char *name, const float *rows, uint32_t n_rows, uint32_t width)
{
    struct single *s = ctx;
    char path[4096];
    if (s->dump_err->code)
        return;
    if (snprintf(path, sizeof(path), "%s/%s.npy", s->dump, name) >= (int)sizeof(path))
        err_set(s->dump_err, -ENAMETOOLONG, "--dump '%s': path is too long", s->dump);
    else
        npy_write(path, rows, n_rows, width, s->dump_err);
}
