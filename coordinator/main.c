/* SPDX-License-Identifier: MIT
 * The coordinator program: command line, configuration, model metadata, command. Everything it prints about failures goes to
 * standard error as one line; exit status 0 done, 1 failed, 2 wrong command line, 128 + n ended by signal n. */
#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "coordinator/commands.h"
#include "coordinator/options.h"
#include "model/gguf.h"
#include "proto/config.h"
#include "proto/err.h"
#include "proto/place.h"
#include "proto/process.h"
#include "proto/util.h"

static int print_sample(const struct options *o, struct err *err)
{
    char text[8192];
    config_sample(o->model ? o->model : "model.gguf", text, sizeof(text));
    if (fputs(text, stdout) == EOF || fflush(stdout) == EOF)
        return err_set_errno(err, -errno, "standard output: cannot be written");
    return 0;
}

/* `client` is a program of its own, so that no pipeline carries what libcurl brings along. Returns only when it cannot be run. */
static int become_client(char **argv, struct err *err)
{
    char path[PATH_MAX];
    int r = place_file(PLACE_STAGES, "client", path, sizeof(path), err);
    if (r < 0)
        return r;
    execv(path, argv);
    return err_set_errno(err, -errno, "cannot start '%s'", path);
}

static int run(const struct options *o, int *ret_signal, struct err *err)
{
    struct config *c;
    struct gguf *g;
    if (o->command == OPTIONS_SAMPLE_CONFIG)
        return print_sample(o, err);
    if (o->command == OPTIONS_STATS)
        return cmd_stats_run(o, err);
    if (o->command == OPTIONS_TOP)
        return cmd_top_run(o, ret_signal, err);
    int r = config_load(o->config, o->sets, o->n_sets, &c, err);
    if (r < 0)
        return r;
    c->faults = o->faults;
    c->n_faults = o->n_faults;
    r = gguf_open(c->model, false, &g, err);
    if (r < 0)
        err_wrap(err, r, "config '%s', key 'model'", c->path);
    if (r == 0) {
        r = commands_run(o, c, g, ret_signal, err);
        gguf_close(g);
    }
    config_free(c);
    return r;
}

int main(int argc, char **argv)
{
    struct options o;
    struct err err = {0};
    int ended_by = 0;
    int r = process_begin("coordinator", &err); /* a closed pipe is a failed write, so that the stages are ended in order */
    if (r < 0) {
        fprintf(stderr, "coordinator: error: %s\n", err.text);
        return 1;
    }
    r = options_parse(&o, argc, argv, &err);
    if (r < 0) {
        fprintf(stderr, "coordinator: error: %s\n", err.text);
        options_free(&o);
        return 2;
    }
    if (o.action == OPTIONS_HELP)
        options_help(o.command, stdout);
    else if (o.action == OPTIONS_VERSION)
        printf("coordinator (Tandem) %s\n", TANDEM_VERSION);
    else if (o.command == OPTIONS_CLIENT)
        r = become_client(argv, &err);
    else
        r = run(&o, &ended_by, &err);
    options_free(&o);
    if (ended_by)
        return 128 + ended_by;
    if (r < 0)
        fprintf(stderr, "coordinator: error: %s\n", err.text);
    return r < 0 || fflush(stdout) == EOF ? 1 : 0;
}
