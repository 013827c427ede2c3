/* SPDX-License-Identifier: MIT
 * The command line of the quantizer: options, progress on standard output (a bar on a terminal, a line for every tenth
 * otherwise), errors on standard error. An interrupt ends the conversion at the next block, and no file is left. */
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kernels/quant.h"
#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/convert.h"

#define BAR 30

static volatile sig_atomic_t stop;

struct screen {
    bool terminal;
    int shown; /* percent */
};

static void on_signal(int sig)
{
    stop = sig;
}

static void usage(FILE *f)
{
    fprintf(
        f, "usage: quantizer --in FOLDER --out FILE.gguf [--type T] [--name NAME] [--threads N] [--alignment N]\n"
           "\n"
           "Converts a Hugging Face checkpoint of Gemma 3 (safetensors, config.json, tokenizer.model) to GGUF.\n"
           "\n"
           "  --in FOLDER     the checkpoint\n"
           "  --out FILE      the GGUF file; it appears when it is complete\n"
           "  --type T        f32, f16, bf16, q8_0 or q4_0 (default: q8_0); norms are always f32\n"
           "  --name NAME     stored as general.name (default: none)\n"
           "  --threads N     threads that convert (default: one per processor, at most 16)\n"
           "  --alignment N   of tensor data: 4096, so that direct I/O reads it in place, or 32 (default: 4096); llama.cpp opens "
           "both,\n"
           "                  but its llama-quantize (seen in v0.5.0) writes a broken file when its input has another one than 32\n"
           "  --help, --version\n"
           "\n"
           "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}

static int default_threads(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    return MIN(MAX(n, 1), 16);
}

static void show_progress(void *ctx, uint64_t done, uint64_t total, const char *tensor)
{
    struct screen *s = ctx;
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

static void clear_bar(const struct screen *s)
{
    if (s->terminal && s->shown)
        printf("\r%*s\r", BAR + 54, "");
}

static int parse(int argc, char **argv, struct convert_options *o)
{
    enum { IN = 1, OUT, TYPE, NAME, THREADS, ALIGNMENT, HELP, VERSION };
    static const struct option options[] = {
        {"in", required_argument, NULL, IN},
        {"out", required_argument, NULL, OUT},
        {"type", required_argument, NULL, TYPE},
        {"name", required_argument, NULL, NAME},
        {"threads", required_argument, NULL, THREADS},
        {"help", no_argument, NULL, HELP},
        {"version", no_argument, NULL, VERSION},
        {"alignment", required_argument, NULL, ALIGNMENT},
        {NULL, 0, NULL, 0},
    };
    int opt;
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        char *end;
        switch (opt) {
        case IN:
            o->in = optarg;
            break;
        case OUT:
            o->out = optarg;
            break;
        case NAME:
            o->name = optarg;
            break;
        case TYPE:
            o->type = quant_from_name(optarg);
            if (o->type < 0) {
                fprintf(stderr, "quantizer: --type '%s'; expected f32, f16, bf16, q8_0 or q4_0\n", optarg);
                return 2;
            }
            break;
        case THREADS:
            o->n_threads = (int)strtol(optarg, &end, 10);
            if (*end || end == optarg || o->n_threads < 1 || o->n_threads > 64) {
                fprintf(stderr, "quantizer: --threads '%s'; expected 1 to 64\n", optarg);
                return 2;
            }
            break;
        case ALIGNMENT:
            o->alignment = strcmp(optarg, "4096") == 0 ? 4096 : strcmp(optarg, "32") == 0 ? 32 : 0;
            if (o->alignment == 0) {
                fprintf(stderr, "quantizer: --alignment '%s'; expected 32 or 4096\n", optarg);
                return 2;
            }
            break;
        case HELP:
            usage(stdout);
            exit(0);
        case VERSION:
            printf("quantizer %s\n", TANDEM_VERSION);
            exit(0);
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc || !o->in || !o->out) {
        if (optind < argc)
            fprintf(stderr, "quantizer: unexpected argument '%s'\n", argv[optind]);
        else
            fprintf(stderr, "quantizer: --%s is missing\n", o->in ? "out" : "in");
        usage(stderr);
        return 2;
    }
    return 0;
}

static void report(const struct convert_options *o, const struct convert_result *res, uint64_t begin_ns)
{
    char in[16], out[16], peak[16];
    double seconds = (double)(util_now_ns() - begin_ns) / 1e9;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("'%s': %u tensors of %u layers, %u vision tensors skipped, %s read, %s of %s written in %.2f s, peak memory %s\n",
           o->out, res->n_tensors, res->h.n_layers, res->n_vision_skipped, util_format_bytes(in, sizeof(in), res->bytes_in),
           util_format_bytes(out, sizeof(out), res->bytes_out), quant_name(o->type), seconds,
           util_format_bytes(peak, sizeof(peak), (uint64_t)use.ru_maxrss * 1024));
}

int main(int argc, char **argv)
{
    struct screen screen = {.terminal = isatty(STDOUT_FILENO)};
    struct convert_options o = {.type = QUANT_Q8_0,
                                .n_threads = default_threads(),
                                .alignment = 4096,
                                .stop = &stop,
                                .progress = show_progress,
                                .progress_ctx = &screen};
    struct convert_result res;
    struct err err = {0};
    int r = parse(argc, argv, &o);
    if (r)
        return r;
    struct sigaction sa = {.sa_handler = on_signal};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    uint64_t begin = util_now_ns();
    r = convert_run(&o, &res, &err);
    clear_bar(&screen);
    if (r < 0) {
        fflush(stdout);
        fprintf(stderr, "quantizer: %s\n", err.text);
        return r == -ECANCELED ? 128 + (int)stop : 1;
    }
    report(&o, &res, begin);
    if (fflush(stdout) != 0) {
        fprintf(stderr, "quantizer: cannot write to standard output: %s\n", strerror(errno));
        return 1;
    }
    return 0;
}
