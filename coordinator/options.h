/* SPDX-License-Identifier: MIT
 * The command line of `coordinator`. One table describes every option; parsing, checks and --help come from it.
 * Threads: plain data; strings are borrowed from argv. */
#ifndef TANDEM_COORDINATOR_OPTIONS_H
#define TANDEM_COORDINATOR_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "coordinator/sample.h"

struct err;

enum options_command {
    OPTIONS_CHAT, /* no command given */
    OPTIONS_GENERATE,
    OPTIONS_EVAL,
    OPTIONS_PERPLEXITY,
    OPTIONS_IMATRIX,
    OPTIONS_BENCH,
    OPTIONS_SERVE,
    OPTIONS_CLIENT,
    OPTIONS_PLAN,
    OPTIONS_TOKENIZE,
    OPTIONS_DETOKENIZE,
    OPTIONS_SAMPLE_CONFIG,
    OPTIONS_STATS,
    OPTIONS_TOP,
    OPTIONS_COMMANDS,
};

enum options_action { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_VERSION };
enum options_method { OPTIONS_METHOD_WINDOW, OPTIONS_METHOD_LLAMA_CPP };

#define OPTIONS_MAX_SETS 64
#define OPTIONS_MAX_FAULTS 16

struct options {
    enum options_command command;
    enum options_action action;
    const char *config;
    const char *sets[OPTIONS_MAX_SETS];
    int n_sets;
    const char *faults[OPTIONS_MAX_FAULTS]; /* checked */
    int n_faults;
    bool json, report, chat, no_markers, resume;
    const char *prompt, *system, *text, *file, *logits, *model, *out, *url, *api_key_file, *ca_file, *trace;
    uint32_t *ids; /* owned */
    uint32_t n_ids;
    bool has_ids; /* --ids was given */
    uint32_t max_tokens, parallel;
    struct sample_params sample;
    enum options_method method;
    uint32_t window;
    uint32_t prompt_tokens, gen_tokens, repetitions;
    uint32_t pid, count; /* 0: not given */
};

/* 0, or -EINVAL with a message that names the option and what was expected. Call options_free in either case. */
int options_parse(struct options *o, int argc, char **argv, struct err *err);
void options_free(struct options *o);
const char *options_command_name(enum options_command c); /* "chat" when none was given */
/* Help of one command, or of the program for OPTIONS_CHAT. */
void options_help(enum options_command c, FILE *f);

#endif
