/* SPDX-License-Identifier: MIT
 * Options of the conversion, the plan and the progress on standard output (a bar on a terminal, a line for every tenth otherwise),
 * errors on standard error. SIGINT, SIGTERM and SIGHUP end the conversion where a later run can continue. Called by main; one
 * thread. */
#include "quantizer/cmd_convert.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "model/gguf.h"
#include "proto/err.h"
#include "proto/utf8.h"
#include "proto/util.h"
#include "quantizer/convert.h"
#include "quantizer/memory.h"
#include "quantizer/pipeline.h"

#define BAR 30
#define MAX_OVERRIDES 64

static volatile sig_atomic_t stop;

struct command {
    struct convert_options o;
    struct recipe_override overrides[MAX_OVERRIDES];
    bool terminal;
    int shown; /* percent */
};

static void on_signal(int sig)
{
    stop = sig;
}

void cmd_convert_usage(FILE *f)
{
    fprintf(
        f,
        "Usage: quantizer --in FOLDER|FILE.gguf --out FILE.gguf [options]\n"
        "       quantizer verify FILE.gguf | info FILE.gguf | compare A B\n"
        "Converts a Hugging Face checkpoint of Gemma 3 (safetensors, config.json, tokenizer) or a GGUF of it to GGUF, in one pass\n"
        "and a fixed memory. FILE appears when it is complete; killed at any moment, the same command continues.\n"
        "\n"
        "Options:\n"
        "  --in FOLDER|FILE.gguf  what is converted\n"
        "  --out FILE.gguf        what is written\n"
        "  --type T               %s (default: q8_0);\n"
        "                         norms are always f32, and the q*_k_m are mixes as in llama.cpp\n"
        "  --tensor-type P=T      matrices whose name has the regular expression P get type T; may be repeated, the last that\n"
        "                         matches counts\n"
        "  --fit SIZE             the best mix of types whose file has at most SIZE (16GiB), instead of --type\n"
        "  --imatrix FILE         importance of columns for the search (GGUF of llama-imatrix)\n"
        "  --pure                 a mix without its exceptions\n"
        "  --allow-requantize     from a GGUF whose matrices are quantized already\n"
        "  --search, --no-search  look for better block scales where the type has a search (default), or round as the reference\n"
        "  --name NAME            stored as general.name\n"
        "  --split-max-size SIZE  parts of at most SIZE (4GiB, 500MiB), named FILE-00001-of-000NN.gguf\n"
        "  --split-per-layer      one part for each layer, and a first one for the rest\n"
        "  --alignment N          of tensor data: 32 (default) or 4096; llama.cpp opens both, but its llama-quantize (seen in\n"
        "                         v0.5.0) writes a broken file when its input has another one than 32\n"
        "  --memory SIZE          most that the process may use (default: 192MiB)\n"
        "  --threads N            threads that convert (default: one per processor, at most 16)\n"
        "  --journal SIZE         output between two points from which a killed run continues (default: one a second)\n"
        "  --restart              drop what an interrupted run with other arguments or another input left\n"
        "  --dry-run              only print the plan, tensor by tensor\n"
        "  --help                 this text\n"
        "  --version              the version\n",
        recipe_presets());
}

static int default_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return MIN(MAX(n, 1), 16);
}

static void show_progress(void *ctx, uint64_t done, uint64_t total, const char *tensor)
{
    struct command *s = ctx;
    int percent = total ? (int)(done * 100 / total) : 100;
    if (s->terminal && percent != s->shown) {
        char bar[BAR + 1];
        int full = percent * BAR / 100;
        memset(bar, '#', (size_t)full);
        memset(bar + full, '.', (size_t)(BAR - full));
        bar[BAR] = '\0';
        printf("\r[%s] %3d%%  %-44.44s", bar, percent, tensor);
        fflush(stdout);
        s->shown = percent;
    } else if (!s->terminal && percent / 10 != s->shown / 10) {
        printf("%3d%%  %s\n", percent / 10 * 10, tensor);
        fflush(stdout);
        s->shown = percent;
    }
}

static void show_line(void *ctx, const char *line)
{
    (void)ctx;
    printf("%s\n", line);
    fflush(stdout);
}

static void clear_bar(const struct command *s)
{
    if (s->terminal && s->shown)
        printf("\r%*s\r", BAR + 54, "");
}

static int wrong(const char *option, const char *value, const char *expected)
{
    fprintf(stderr, "quantizer: --%s '%s'; expected %s\n", option, value, expected);
    return 2;
}

static int parse_override(struct command *c, char *value)
{
    char *equals = strrchr(value, '=');
    if (!equals || equals == value || !equals[1])
        return wrong("tensor-type", value, "PATTERN=TYPE");
    if (c->o.recipe.n_overrides == MAX_OVERRIDES)
        return wrong("tensor-type", value, "at most 64 of them");
    if (quant_from_name(equals + 1) < 0)
        return wrong("tensor-type", equals + 1, recipe_types());
    *equals = '\0';
    c->overrides[c->o.recipe.n_overrides++] = (struct recipe_override){value, equals + 1};
    return 0;
}

static int parse_size(const char *option, const char *value, uint64_t *ret)
{
    if (util_parse_bytes(value, ret) == 0 && *ret > 0)
        return 0;
    return wrong(option, value, "a size such as 192MiB or 4GiB");
}

static int parse_threads(const char *value, int *ret)
{
    char *end;
    long n = strtol(value, &end, 10);
    if (*end || end == value || n < 1 || n > PIPELINE_MAX_THREADS)
        return wrong("threads", value, "1 to 64");
    *ret = (int)n;
    return 0;
}

enum choice {
    IN = 1,
    OUT,
    TYPE,
    TENSOR_TYPE,
    PURE,
    FIT,
    IMATRIX,
    REQUANTIZE,
    NO_SEARCH,
    SEARCH,
    NAME,
    SPLIT_SIZE,
    SPLIT_LAYERS,
    ALIGNMENT,
    MEMORY,
    THREADS,
    JOURNAL,
    RESTART,
    DRY_RUN,
};

static int set_option(struct command *c, enum choice option, char *value)
{
    struct convert_options *o = &c->o;
    switch (option) {
    case IN:
        o->in = value;
        return 0;
    case OUT:
        o->out = value;
        return 0;
    case NAME:
        o->name = value;
        return utf8_valid(value, strlen(value)) ? 0 : wrong("name", value, "UTF-8");
    case TYPE:
        o->recipe.type = value;
        return recipe_is_preset(value) ? 0 : wrong("type", value, recipe_presets());
    case TENSOR_TYPE:
        return parse_override(c, value);
    case PURE:
        o->recipe.pure = true;
        return 0;
    case FIT:
        return parse_size("fit", value, &o->fit);
    case IMATRIX:
        o->imatrix = value;
        return 0;
    case REQUANTIZE:
        o->allow_requantize = true;
        return 0;
    case NO_SEARCH:
    case SEARCH:
        o->no_search = option == NO_SEARCH;
        return 0;
    case SPLIT_SIZE:
        return parse_size("split-max-size", value, &o->split_bytes);
    case SPLIT_LAYERS:
        o->split_layers = true;
        return 0;
    case ALIGNMENT:
        o->alignment = strcmp(value, "4096") == 0 ? 4096 : 32;
        return o->alignment == 4096 || strcmp(value, "32") == 0 ? 0 : wrong("alignment", value, "32 or 4096");
    case MEMORY:
        return parse_size("memory", value, &o->memory);
    case THREADS:
        return parse_threads(value, &o->n_threads);
    case JOURNAL:
        return parse_size("journal", value, &o->group_bytes);
    case RESTART:
        o->restart = true;
        return 0;
    case DRY_RUN:
        o->dry_run = true;
        o->table = stdout;
        return 0;
    }
    return 2;
}

static int parse(int argc, char **argv, struct command *c)
{
    static const struct option options[] = {
        {"in", required_argument, NULL, IN},
        {"out", required_argument, NULL, OUT},
        {"type", required_argument, NULL, TYPE},
        {"tensor-type", required_argument, NULL, TENSOR_TYPE},
        {"fit", required_argument, NULL, FIT},
        {"imatrix", required_argument, NULL, IMATRIX},
        {"pure", no_argument, NULL, PURE},
        {"allow-requantize", no_argument, NULL, REQUANTIZE},
        {"no-search", no_argument, NULL, NO_SEARCH},
        {"search", no_argument, NULL, SEARCH},
        {"name", required_argument, NULL, NAME},
        {"split-max-size", required_argument, NULL, SPLIT_SIZE},
        {"split-per-layer", no_argument, NULL, SPLIT_LAYERS},
        {"alignment", required_argument, NULL, ALIGNMENT},
        {"memory", required_argument, NULL, MEMORY},
        {"threads", required_argument, NULL, THREADS},
        {"journal", required_argument, NULL, JOURNAL},
        {"restart", no_argument, NULL, RESTART},
        {"dry-run", no_argument, NULL, DRY_RUN},
        {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        int r = option == '?' ? 2 : set_option(c, (enum choice)option, optarg);
        if (option == '?')
            cmd_convert_usage(stderr);
        if (r)
            return r;
    }
    if (optind < argc)
        fprintf(stderr, "quantizer: unexpected argument '%s'\n", argv[optind]);
    else if (!c->o.in || !c->o.out)
        fprintf(stderr, "quantizer: --%s is missing\n", c->o.in ? "out" : "in");
    else if (c->o.split_bytes && c->o.split_layers)
        fprintf(stderr, "quantizer: --split-max-size and --split-per-layer; expected one of them\n");
    else if (c->o.fit && c->o.recipe.type)
        fprintf(stderr, "quantizer: --fit and --type; expected one of them\n");
    else if (c->o.fit && c->o.recipe.pure)
        fprintf(stderr, "quantizer: --fit and --pure; expected one of them: a size is met by different types\n");
    else if (c->o.imatrix && c->o.no_search)
        fprintf(stderr, "quantizer: --imatrix and --no-search; expected one of them: only the search uses an importance matrix\n");
    else
        return 0;
    cmd_convert_usage(stderr);
    return 2;
}

static void report(const struct command *c, const struct convert_result *res, uint64_t begin_ns)
{
    char in[16], out[16], peak[16];
    double seconds = (double)(util_now_ns() - begin_ns) / 1e9;
    auto_free char *first = res->n_files > 1 ? gguf_part_name(c->o.out, 0, res->n_files) : NULL;
    char parts[48] = "";
    if (res->n_files > 1)
        snprintf(parts, sizeof(parts), " and %u more part%s", res->n_files - 1, res->n_files > 2 ? "s" : "");
    printf("'%s'%s: %u tensors of %u layers, %u vision tensors skipped, %s read, %s written in %.2f s (%.2f GB/s of input), peak "
           "memory "
           "%s\n",
           first ? first : c->o.out, parts, res->n_tensors, res->h.n_layers, res->n_vision_skipped,
           util_format_bytes(in, sizeof(in), res->bytes_in), util_format_bytes(out, sizeof(out), res->bytes_out), seconds,
           (double)res->bytes_in / 1e9 / seconds, util_format_bytes(peak, sizeof(peak), memory_peak()));
}

int cmd_convert_main(int argc, char **argv)
{
    struct command c = {.terminal = isatty(STDOUT_FILENO)};
    struct convert_result res;
    struct err err = {0};
    c.o = (struct convert_options){
        .n_threads = default_threads(), .alignment = 32, .stop = &stop, .say = show_line, .progress = show_progress, .ctx = &c};
    c.o.recipe.overrides = c.overrides;
    int r = parse(argc, argv, &c);
    if (r)
        return r;
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
    uint64_t begin = util_now_ns();
    r = convert_run(&c.o, &res, &err);
    clear_bar(&c);
    if (r < 0) {
        fflush(stdout);
        fprintf(stderr, "quantizer: %s\n", err.text);
        return r == -ECANCELED ? 128 + (int)stop : 1;
    }
    if (!c.o.dry_run)
        report(&c, &res, begin);
    if (fflush(stdout) != 0) {
        fprintf(stderr, "quantizer: cannot write to standard output: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}
