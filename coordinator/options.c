/* SPDX-License-Identifier: MIT
 * The command line: one table of options says for each its argument, the commands that take it, its bounds, its help line and
 * where the value goes. Called once by main.c before anything else runs; it opens nothing and prints only when asked for help.
 *
 * getopt_long works through argv twice: first, up to the first word that is no option, with the options of the chat (the
 * command of a bare call); then, behind that word, with the options of the command it names. An option that stands before a
 * command which does not take it is an error, too. */
#include "coordinator/options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "proto/err.h"
#include "proto/fault.h"
#include "proto/util.h"

#define BIT(c) (1u << (c))
#define ALL (BIT(OPTIONS_COMMANDS) - 1)
#define CONFIGURED (ALL & ~BIT(OPTIONS_SAMPLE_CONFIG)) /* all that read a configuration */
#define RUNS (BIT(OPTIONS_CHAT) | BIT(OPTIONS_GENERATE))
#define PIPELINE                                                                                      \
    (RUNS | BIT(OPTIONS_EVAL) | BIT(OPTIONS_PERPLEXITY) | BIT(OPTIONS_IMATRIX) | BIT(OPTIONS_BENCH) | \
     BIT(OPTIONS_SERVE))                     /* have stages                                           \
                                              */
#define ANSWERS (RUNS | BIT(OPTIONS_CLIENT)) /* those that say what to answer, and how */
#define MAX_IDS 1048576u

enum kind {
    KIND_FLAG,
    KIND_STRING,
    KIND_U32,
    KIND_U64,
    KIND_F32,
    KIND_IDS,
    KIND_SET,
    KIND_FAULT,
    KIND_METHOD,
    KIND_HELP,
    KIND_VERSION
};

struct option_def {
    const char *name, *argument;
    enum kind kind;
    uint32_t commands;
    size_t offset;
    double min, max;
    const char *help;
};

static const struct option_def defs[] = {
/* clang-format off */
#define OPTION(name, argument, kind, commands, member, min, max, help) \
    {name, argument, kind, commands, offsetof(struct options, member), min, max, help}
    OPTION("config", "FILE", KIND_STRING, CONFIGURED, config, 0, 0, "the YAML configuration; needed by every command but sample-config and client"),
    OPTION("set", "KEY=VALUE", KIND_SET, CONFIGURED, sets, 0, 0, "override a key of the configuration, such as gpu.threads=2; may be repeated"),
    OPTION("fault", "FAULT", KIND_FAULT, PIPELINE, faults, 0, 0, "make something fail, such as npu_worker:abort@100 (see below, and docs/OPERATIONS.md); may be repeated"),
    OPTION("trace", "FILE.json", KIND_STRING, PIPELINE, trace, 0, 0, "record what every process does, and when, for ui.perfetto.dev or chrome://tracing; a new file"),
    OPTION("help", NULL, KIND_HELP, ALL, action, 0, 0, "this text; after a command, that command's options"),
    OPTION("version", NULL, KIND_VERSION, ALL, action, 0, 0, "the version"),
    OPTION("prompt", "TEXT", KIND_STRING, BIT(OPTIONS_GENERATE) | BIT(OPTIONS_CLIENT), prompt, 0, 0, "the prompt; generate: <bos> is put before it, markers such as <start_of_turn> count; client: one message, instead of a chat"),
    OPTION("ids", "2,17,5", KIND_IDS, BIT(OPTIONS_GENERATE) | BIT(OPTIONS_EVAL) | BIT(OPTIONS_DETOKENIZE), has_ids, 0, 0, "token ids, used as they are: no <bos> is added"),
    OPTION("chat", NULL, KIND_FLAG, BIT(OPTIONS_GENERATE), chat, 0, 0, "--prompt is a user's message: put it into the chat template"),
    OPTION("system", "TEXT", KIND_STRING, ANSWERS, system, 0, 0, "a system message before the first message of a chat"),
    OPTION("resume", NULL, KIND_FLAG, BIT(OPTIONS_CHAT), resume, 0, 0, "instead: finish the answers that a killed coordinator left, with this model; print them whole"),
    OPTION("max-tokens", "N", KIND_U32, ANSWERS, max_tokens, 1, 1048576, "tokens to generate at most (default 256)"),
    OPTION("temperature", "T", KIND_F32, ANSWERS, sample.temperature, 0, 100, "0 is greedy (default 1)"),
    OPTION("top-k", "K", KIND_U32, ANSWERS, sample.top_k, 0, 4194304, "sample among the K most probable; 0 is all (default 64)"),
    OPTION("top-p", "P", KIND_F32, ANSWERS, sample.top_p, 0, 1, "the most probable ones that reach this sum; 1 is all (default 0.95)"),
    OPTION("min-p", "P", KIND_F32, ANSWERS, sample.min_p, 0, 1, "those at least P times as probable as the best; 0 is all (default 0)"),
    OPTION("repeat-penalty", "X", KIND_F32, ANSWERS, sample.repeat_penalty, 0.01, 100, "for tokens among the last 64 of prompt and output; 1 is none (default 1)"),
    OPTION("seed", "S", KIND_U64, ANSWERS, sample.seed, 0, 0, "of the random numbers (default 0): the same seed gives the same text"),
    OPTION("parallel", "K", KIND_U32, BIT(OPTIONS_GENERATE), parallel, 1, 64, "K answers to the same prompt at once (default 1)"),
    OPTION("report", NULL, KIND_FLAG, BIT(OPTIONS_GENERATE), report, 0, 0, "after the text, print tokens/s and the memory of each process against its cap"),
    OPTION("logits", "OUT.npy", KIND_STRING, BIT(OPTIONS_EVAL), logits, 0, 0, "file to write: f32, tokens x vocabulary"),
    OPTION("file", "FILE", KIND_STRING, BIT(OPTIONS_PERPLEXITY) | BIT(OPTIONS_IMATRIX) | BIT(OPTIONS_TOKENIZE), file, 0, 0, "a text file"),
    OPTION("method", "M", KIND_METHOD, BIT(OPTIONS_PERPLEXITY), method, 0, 0, "window: <bos> and W-1 tokens, all scored; llama.cpp: chunks of W, second half scored (default window)"),
    OPTION("out", "FILE.gguf", KIND_STRING, BIT(OPTIONS_IMATRIX), out, 0, 0, "the importance matrix to write, for quantizer --imatrix"),
    OPTION("window", "W", KIND_U32, BIT(OPTIONS_PERPLEXITY) | BIT(OPTIONS_IMATRIX), window, 8, 1048576, "tokens per window or chunk, at most 'context' (default 512)"),
    OPTION("prompt-tokens", "N", KIND_U32, BIT(OPTIONS_BENCH), prompt_tokens, 0, 1048576, "prompt to process; 0 leaves the test out (default 512)"),
    OPTION("gen-tokens", "M", KIND_U32, BIT(OPTIONS_BENCH), gen_tokens, 0, 1048576, "tokens to generate; 0 leaves the test out (default 128)"),
    OPTION("repetitions", "R", KIND_U32, BIT(OPTIONS_BENCH), repetitions, 1, 1000, "of each test, after one warm-up (default 5)"),
    OPTION("text", "TEXT", KIND_STRING, BIT(OPTIONS_TOKENIZE), text, 0, 0, "the text"),
    OPTION("no-markers", NULL, KIND_FLAG, BIT(OPTIONS_TOKENIZE), no_markers, 0, 0, "markers such as <start_of_turn> stay text, as in a user's message"),
    OPTION("model", "FILE", KIND_STRING, BIT(OPTIONS_SAMPLE_CONFIG), model, 0, 0, "the GGUF file to name in it (default model.gguf)"),
    OPTION("pid", "N", KIND_U32, BIT(OPTIONS_STATS) | BIT(OPTIONS_TOP), pid, 1, 2147483647, "which coordinator, where several run with this configuration"),
    OPTION("count", "N", KIND_U32, BIT(OPTIONS_TOP), count, 1, 4294967295.0, "end after N refreshes (default: go on)"),
    OPTION("url", "URL", KIND_STRING, BIT(OPTIONS_CLIENT), url, 0, 0, "the server (default: http.listen of the configuration, or http://127.0.0.1:8080)"),
    OPTION("api-key-file", "FILE", KIND_STRING, BIT(OPTIONS_CLIENT), api_key_file, 0, 0, "whose first key the server is told (default: http.api_key_file of the configuration)"),
    OPTION("ca-file", "FILE.pem", KIND_STRING, BIT(OPTIONS_CLIENT), ca_file, 0, 0, "certificates to trust instead of the system's (default: http.tls_cert of the configuration)"),
    OPTION("json", NULL, KIND_FLAG, ALL & ~BIT(OPTIONS_CHAT) & ~BIT(OPTIONS_CLIENT) & ~BIT(OPTIONS_EVAL) & ~BIT(OPTIONS_SERVE) & ~BIT(OPTIONS_SAMPLE_CONFIG), json, 0, 0, "print one JSON object instead of text"),
#undef OPTION
};
#define N_DEFS ARRAY_LEN(defs)

static const struct {
    const char *name, *synopsis, *help;
} commands[OPTIONS_COMMANDS] = {
    [OPTIONS_CHAT] = {"chat", "[options]",
                      "chat on a terminal (/help lists what one can say; Ctrl-C ends an answer); otherwise one prompt per line of standard input"},
    [OPTIONS_GENERATE] = {"generate", "(--prompt TEXT | --ids LIST) [options]", "continue a prompt"},
    [OPTIONS_EVAL] = {"eval", "--ids LIST --logits OUT.npy", "write the logits of every position"},
    [OPTIONS_PERPLEXITY] = {"perplexity", "--file TEXT [options]", "how well the model predicts a text"},
    [OPTIONS_IMATRIX] = {"imatrix", "--file TEXT --out FILE.gguf [options]",
                         "what enters each matrix while the model reads a text, for quantizer --imatrix"},
    [OPTIONS_BENCH] = {"bench", "[options]", "tokens/s of prompt and generation, time per stage, ring waits, memory"},
    [OPTIONS_SERVE] = {"serve", "[--set http.KEY=VALUE]...", "an OpenAI-compatible HTTP server on 'http.listen', until a signal ends it"},
    [OPTIONS_CLIENT] = {"client", "[--url URL] [--prompt TEXT] [options]", "the same chat with a coordinator that serves, here or elsewhere"},
    [OPTIONS_PLAN] = {"plan", "[--json]", "the memory of each process against its cap, before anything is loaded"},
    [OPTIONS_TOKENIZE] = {"tokenize", "(--text TEXT | --file FILE) [options]", "token ids of a text, without <bos>"},
    [OPTIONS_DETOKENIZE] = {"detokenize", "--ids LIST [--json]", "the text of token ids"},
    [OPTIONS_STATS] = {"stats", "[options]", "what the coordinator that runs with this configuration is doing, and its memory"},
    [OPTIONS_TOP] = {"top", "[options]",
                     "the same, once a second: a full screen on a terminal (q or Ctrl-C ends it), otherwise one line each"},
    [OPTIONS_SAMPLE_CONFIG] = {"sample-config", "[--model FILE]", "print a configuration with every key explained"},
};

const char *options_command_name(enum options_command c)
{
    return (unsigned)c < OPTIONS_COMMANDS ? commands[c].name : "?";
}

static void print_option(const struct option_def *d, FILE *f)
{
    char left[40];
    snprintf(left, sizeof(left), "--%s%s%s", d->name, d->argument ? " " : "", d->argument ? d->argument : "");
    fprintf(f, "  %-22s %s\n", left, d->help);
}

static void print_options(uint32_t mask, bool everywhere, FILE *f)
{
    for (size_t i = 0; i < N_DEFS; i++) {
        if ((defs[i].commands & mask) && ((defs[i].commands & CONFIGURED) == CONFIGURED) == everywhere)
            print_option(&defs[i], f);
    }
}

void options_help(enum options_command c, FILE *f)
{
    if (c != OPTIONS_CHAT) {
        fprintf(f, "Usage: coordinator %s%s %s\n%s.\n", c == OPTIONS_SAMPLE_CONFIG || c == OPTIONS_CLIENT ? "" : "--config FILE ",
                commands[c].name, commands[c].synopsis, commands[c].help);
        if (c == OPTIONS_CLIENT)
            fprintf(f, "\nIt is a program of its own, `client`, which lies with the stages: coordinator finds it there and becomes it.\n");
        fprintf(f, "\nOptions:\n");
        print_options(BIT(c), false, f);
        fprintf(f, "\nOptions of every command:\n");
        print_options(BIT(c), true, f);
        if (BIT(c) & PIPELINE)
            fprintf(f, "\n%s", fault_help);
        return;
    }
    fprintf(f, "Usage: coordinator --config FILE [--set KEY=VALUE]... [COMMAND] [options]\n"
               "Runs a Gemma 3 model as a pipeline of processes: loader, npu_worker, gpu_worker and this one.\n\nCommands:\n");
    for (size_t i = 0; i < OPTIONS_COMMANDS; i++)
        fprintf(f, "  %-22s %s\n", i == OPTIONS_CHAT ? "(none)" : commands[i].name, commands[i].help);
    fprintf(f, "\n`coordinator COMMAND --help` lists a command's options.\n\nOptions of every command:\n");
    print_options(BIT(c), true, f);
    fprintf(f, "\nOptions without a command:\n");
    print_options(BIT(c), false, f);
    fprintf(f, "\n%s", fault_help);
    fprintf(f, "\nEnvironment:\n");
    util_env_help(f);
    fprintf(f, "\nExit status: 0 done, 1 failed, 2 wrong command line, 128 + n ended by signal n.\n");
}

static int parse_ids(struct options *o, const char *text, struct err *err)
{
    uint32_t n = 0;
    size_t room = 1;
    for (const char *p = text; *p; p++)
        room += *p == ',';
    if (room > MAX_IDS)
        return err_set(err, -EINVAL, "option '--ids': found %zu ids; expected at most %u", room, MAX_IDS);
    uint32_t *ids = malloc(room * sizeof(*ids));
    if (!ids)
        return err_set(err, -ENOMEM, "option '--ids': out of memory");
    for (const char *p = text;;) {
        char *end;
        errno = 0;
        while (*p == ' ')
            p++;
        unsigned long long v = *p >= '0' && *p <= '9' ? strtoull(p, &end, 10) : UINT64_MAX;
        if (v > UINT32_MAX || errno) {
            free(ids);
            return err_set(
                err, -EINVAL,
                "option '--ids': found '%.20s' as element %u; expected token ids with commas between them, such as 2,17,5", p, n);
        }
        ids[n++] = (uint32_t)v;
        p = end + strspn(end, " ");
        if (*p == '\0')
            break;
        if (*p++ != ',') {
            free(ids);
            return err_set(err, -EINVAL, "option '--ids': found '%.20s' after element %u; expected a comma", p - 1, n - 1);
        }
    }
    free(o->ids);
    o->ids = ids;
    o->n_ids = n;
    o->has_ids = true;
    return 0;
}

static int store_number(const struct option_def *d, const char *value, void *to, struct err *err)
{
    char *end = NULL;
    errno = 0;
    bool digit = (*value >= '0' && *value <= '9') || (d->kind == KIND_F32 && *value == '.');
    if (d->kind == KIND_U64) {
        uintmax_t v = strtoumax(value, &end, 10);
        if (!digit || errno || *end)
            return err_set(err, -EINVAL, "option '--%s': found '%.40s'; expected a whole number from 0 to 18446744073709551615",
                           d->name, value);
        *(uint64_t *)to = (uint64_t)v;
        return 0;
    }
    double v = strtod(value, &end);
    bool whole = d->kind == KIND_F32 || strspn(value, "0123456789") == strlen(value);
    if (!digit || errno || *end || !whole || !(v >= d->min && v <= d->max))
        return err_set(err, -EINVAL, "option '--%s': found '%.40s'; expected a %snumber from %.10g to %.10g", d->name, value,
                       d->kind == KIND_F32 ? "" : "whole ", d->min, d->max);
    if (d->kind == KIND_F32)
        *(float *)to = (float)v;
    else
        *(uint32_t *)to = (uint32_t)v;
    return 0;
}

static int store(struct options *o, const struct option_def *d, const char *value, struct err *err)
{
    void *to = (char *)o + d->offset;
    switch (d->kind) {
    case KIND_FLAG:
        *(bool *)to = true;
        return 0;
    case KIND_STRING:
        *(const char **)to = value;
        return 0;
    case KIND_IDS:
        return parse_ids(o, value, err);
    case KIND_SET:
        if (o->n_sets == OPTIONS_MAX_SETS)
            return err_set(err, -EINVAL, "option '--set': given more than %d times", OPTIONS_MAX_SETS);
        o->sets[o->n_sets++] = value;
        return 0;
    case KIND_FAULT:
        if (o->n_faults == OPTIONS_MAX_FAULTS)
            return err_set(err, -EINVAL, "option '--fault': given more than %d times", OPTIONS_MAX_FAULTS);
        o->faults[o->n_faults++] = value;
        return fault_check(value, err);
    case KIND_METHOD:
        if (strcmp(value, "window") != 0 && strcmp(value, "llama.cpp") != 0)
            return err_set(err, -EINVAL, "option '--method': found '%.40s'; expected window or llama.cpp", value);
        o->method = strcmp(value, "window") == 0 ? OPTIONS_METHOD_WINDOW : OPTIONS_METHOD_LLAMA_CPP;
        return 0;
    case KIND_HELP:
        o->action = OPTIONS_HELP;
        return 0;
    case KIND_VERSION:
        o->action = OPTIONS_VERSION;
        return 0;
    case KIND_U32:
    case KIND_U64:
    case KIND_F32:
    default:
        return store_number(d, value, to, err);
    }
}

static int unknown_option(enum options_command c, const char *word, struct err *err)
{
    const char *best = NULL;
    char name[48];
    unsigned best_distance = 3;
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word + strspn(word, "-"), "="), word + strspn(word, "-"));
    for (size_t i = 0; i < N_DEFS; i++) {
        unsigned d = util_distance(name, defs[i].name);
        if ((defs[i].commands & BIT(c)) && d < best_distance) {
            best_distance = d;
            best = defs[i].name;
        }
        if (d == 0 && !(defs[i].commands & BIT(c)) && c != OPTIONS_CHAT)
            return err_set(err, -EINVAL, "option '--%s' does not belong to '%s'; `coordinator %s --help` lists those that do", name,
                           commands[c].name, commands[c].name);
        if (d == 0 && !(defs[i].commands & BIT(c)))
            return err_set(err, -EINVAL, "option '--%s' needs its command before it, such as `coordinator --config FILE %s --%s`",
                           name, commands[__builtin_ctz(defs[i].commands)].name, name);
    }
    const char *command = c == OPTIONS_CHAT ? "" : commands[c].name;
    return err_set(err, -EINVAL, "unknown option '%.60s'%s%s%s; `coordinator %s%s--help` lists the options", word,
                   best ? ", did you mean '--" : "", best ? best : "", best ? "'?" : "", command, *command ? " " : "");
}

/* Parse from optind on with the options of command c. seen: indices of the options met. */
static int parse_pass(struct options *o, int argc, char **argv, enum options_command c, bool stop_at_word, uint64_t *seen,
                      struct err *err)
{
    struct option list[N_DEFS + 1] = {{0}};
    int n = 0, k;
    for (size_t i = 0; i < N_DEFS; i++) {
        if (defs[i].commands & BIT(c))
            list[n++] = (struct option){defs[i].name, defs[i].argument ? required_argument : no_argument, NULL, 256 + (int)i};
    }
    opterr = 0;
    for (;;) {
        k = getopt_long(argc, argv, stop_at_word ? "+:h" : ":h", list, NULL);
        if (k == -1)
            return 0;
        const char *word = argv[MIN(MAX(optind - 1, 1), argc - 1)];
        if (k == 'h') {
            o->action = OPTIONS_HELP;
            continue;
        }
        if (k == ':')
            return err_set(err, -EINVAL, "option '%.60s' needs a value", word);
        if (k == '?' && optopt >= 256)
            return err_set(err, -EINVAL, "option '%.60s' takes no value", word);
        if (k == '?' && optopt)
            return err_set(err, -EINVAL, "unknown option '-%c'; options have long names, `coordinator --help` lists them", optopt);
        if (k == '?')
            return unknown_option(c, word, err);
        *seen |= UINT64_C(1) << (k - 256);
        int r = store(o, &defs[k - 256], optarg, err);
        if (r < 0)
            return r;
    }
}

static int parse_command(const char *word, enum options_command *ret, struct err *err)
{
    const char *best = NULL;
    unsigned best_distance = (unsigned)MIN(strlen(word) / 2 + 1, 4u); /* more than half of a word is another one */
    for (unsigned i = OPTIONS_CHAT + 1; i < OPTIONS_COMMANDS; i++) {
        unsigned d = util_distance(word, commands[i].name);
        if (d == 0) {
            *ret = (enum options_command)i;
            return 0;
        }
        if (d < best_distance) {
            best_distance = d;
            best = commands[i].name;
        }
    }
    if (strcmp(word, "chat") == 0)
        return err_set(err, -EINVAL, "command 'chat': leave the word out, a chat is what there is without a command");
    char known[192] = "";
    for (unsigned i = OPTIONS_CHAT + 1; i < OPTIONS_COMMANDS; i++)
        snprintf(known + strlen(known), sizeof(known) - strlen(known), "%s%s", i > OPTIONS_CHAT + 1 ? ", " : "", commands[i].name);
    return err_set(err, -EINVAL, "unknown command '%.40s'%s%s%s; expected one of %s", word, best ? ", did you mean '" : "",
                   best ? best : "", best ? "'?" : "", known);
}

static int check_resume(uint64_t seen, struct err *err)
{
    for (size_t i = 0; i < N_DEFS; i++) {
        if ((seen >> i & 1) && defs[i].commands == ANSWERS)
            return err_set(err, -EINVAL,
                           "option '--%s' does not go with '--resume': each answer is finished as it was begun; leave it out",
                           defs[i].name);
    }
    return 0;
}

static int check(const struct options *o, uint64_t seen, struct err *err)
{
    const char *name = commands[o->command].name;
    if (o->resume && check_resume(seen, err) < 0)
        return -EINVAL;
    if (!o->config && o->command != OPTIONS_SAMPLE_CONFIG && o->command != OPTIONS_CLIENT)
        return err_set(
            err, -EINVAL,
            "option '--config' is missing; expected --config FILE (`coordinator sample-config` prints one to begin with)");
    if (o->command == OPTIONS_GENERATE && !o->prompt == !o->has_ids)
        return err_set(err, -EINVAL, "command 'generate' needs exactly one of --prompt TEXT and --ids LIST");
    if (o->command == OPTIONS_GENERATE && o->chat && !o->prompt)
        return err_set(err, -EINVAL, "option '--chat' needs --prompt; ids are used as they are");
    if (o->command == OPTIONS_GENERATE && o->system && !o->chat)
        return err_set(err, -EINVAL, "option '--system' needs --chat");
    if (o->command == OPTIONS_TOKENIZE && !o->text == !o->file)
        return err_set(err, -EINVAL, "command 'tokenize' needs exactly one of --text TEXT and --file FILE");
    if ((o->command == OPTIONS_EVAL || o->command == OPTIONS_DETOKENIZE) && !o->has_ids)
        return err_set(err, -EINVAL, "command '%s' needs --ids LIST", name);
    if (o->command == OPTIONS_EVAL && !o->logits)
        return err_set(err, -EINVAL, "command 'eval' needs --logits OUT.npy");
    if (o->command == OPTIONS_IMATRIX && (!o->file || !o->out))
        return err_set(err, -EINVAL, "command 'imatrix' needs --file TEXT and --out FILE.gguf");
    if (o->command == OPTIONS_PERPLEXITY && !o->file)
        return err_set(err, -EINVAL, "command 'perplexity' needs --file TEXT");
    if (o->command == OPTIONS_BENCH && !o->prompt_tokens && !o->gen_tokens)
        return err_set(err, -EINVAL, "command 'bench' needs --prompt-tokens or --gen-tokens above 0");
    if (BIT(o->command) & ANSWERS)
        return sample_params_check(&o->sample, err);
    return 0;
}

int options_parse(struct options *o, int argc, char **argv, struct err *err)
{
    uint64_t seen = 0, ignored = 0;
    *o = (struct options){
        .max_tokens = 256, .parallel = 1, .window = 512, .prompt_tokens = 512, .gen_tokens = 128, .repetitions = 5};
    sample_params_default(&o->sample);
    optind = 0; /* glibc: begin anew */
    int r = parse_pass(o, argc, argv, OPTIONS_CHAT, true, &seen, err);
    if (r < 0)
        return r;
    if (optind < argc) {
        r = parse_command(argv[optind], &o->command, err);
        if (r < 0)
            return r;
        for (size_t i = 0; i < N_DEFS; i++) {
            if ((seen >> i & 1) && !(defs[i].commands & BIT(o->command)))
                return err_set(err, -EINVAL, "option '--%s' does not belong to '%s'; `coordinator %s --help` lists those that do",
                               defs[i].name, commands[o->command].name, commands[o->command].name);
        }
        int first = optind;
        optind = 0;
        r = parse_pass(o, argc - first, argv + first, o->command, false, &ignored, err);
        if (r < 0)
            return r;
        if (optind < argc - first)
            return err_set(err, -EINVAL, "found '%.40s' after command '%s'; expected options only", argv[first + optind],
                           argv[first]);
    }
    return o->action == OPTIONS_RUN ? check(o, seen, err) : 0;
}

void options_free(struct options *o)
{
    free(o->ids);
    o->ids = NULL;
}
