/* SPDX-License-Identifier: MIT
 * The commands of `coordinator`, on top of engine.h: one file each (cmd_*.c), the small ones in commands.c.
 * Thread: main. */
#ifndef TANDEM_COORDINATOR_COMMANDS_H
#define TANDEM_COORDINATOR_COMMANDS_H

#include <stddef.h>

#include "coordinator/options.h"

struct api;
struct config;
struct engine;
struct engine_options;
struct err;
struct gguf;
struct request_params;
struct tokenizer;

struct command { /* all borrowed */
    const struct options *options;
    const struct config *config;
    const struct gguf *gguf;
    const char *file; /* what --file names, read whole, with a NUL behind it; NULL without the option */
    size_t file_bytes;
    const uint32_t *ids; /* the same as ids; perplexity and imatrix, which have no `file` */
    size_t n_ids;
    struct tokenizer *tokenizer; /* NULL for eval, bench, plan */
    struct engine *engine;       /* NULL for plan, tokenize, detokenize */
    struct api *api;             /* serve, as long as the engine's loop lives */
    struct resume *resume;       /* --resume, likewise */
    bool done;                   /* before the stages were started: nothing was left to do */
};

/* Opens what the command needs, runs it, closes everything. 0 or a negative errno; *ret_signal: what ended it, 0 = none. */
int commands_run(const struct options *o, const struct config *c, const struct gguf *g, int *ret_signal, struct err *err);

int cmd_generate_run(struct command *c, struct err *err);
int cmd_chat_run(struct command *c, struct err *err);
int cmd_resume_run(struct command *c, struct err *err);
int cmd_eval_run(struct command *c, struct err *err);
int cmd_perplexity_run(struct command *c, struct err *err);
uint64_t cmd_perplexity_bytes(const struct options *o, size_t n_ids); /* memory beside the pipeline */
int cmd_imatrix_run(struct command *c, struct err *err);
int cmd_bench_run(struct command *c, struct err *err);
uint64_t cmd_serve_bytes(const struct config *c, uint32_t vocab); /* memory beside the pipeline */
int cmd_serve_run(struct command *c, struct err *err);
int cmd_serve_prepare(struct command *c, struct engine_options *o, struct err *err); /* before engine_open; likewise */
int cmd_resume_prepare(struct command *c, struct engine_options *o, struct err *err);
/* These ask a coordinator that runs; they need neither model nor engine. */
int cmd_stats_run(const struct options *o, struct err *err);
int cmd_top_run(const struct options *o, int *ret_signal, struct err *err);

/* Sampling and length as the options say; ids and choice are the caller's. */
void commands_request(const struct command *c, struct request_params *ret);

#endif
