/* SPDX-License-Identifier: MIT
 * The program that `coordinator client` becomes, with the same command line and under the same name. It talks to a server and
 * starts nothing; its exit status is as the coordinator's. */
#include <stdio.h>

#include "coordinator/client/talk.h"
#include "coordinator/options.h"
#include "proto/err.h"
#include "proto/process.h"

/* Who finds the program where it lies asks for these alone; `coordinator client --help` never gets here. */
static int print_help(const struct options *o)
{
    if (o->action == OPTIONS_HELP)
        options_help(OPTIONS_CLIENT, stdout);
    else
        printf("client (Tandem) %s\n", TANDEM_VERSION);
    return fflush(stdout) == EOF ? 1 : 0;
}

static int wrong(struct options *o, const char *why)
{
    fprintf(stderr, "coordinator: error: %s\n", why);
    options_free(o);
    return 2;
}

int main(int argc, char **argv)
{
    struct options o;
    struct err err = {0};
    int ended_by = 0;
    int r = process_begin("coordinator", &err);
    if (r < 0) {
        fprintf(stderr, "coordinator: error: %s\n", err.text);
        return 1;
    }
    if (options_parse(&o, argc, argv, &err) < 0)
        return wrong(&o, err.text);
    if (o.action == OPTIONS_RUN && o.command != OPTIONS_CLIENT)
        return wrong(&o, "this program is the `client` of coordinator; run `coordinator client`");
    r = o.action == OPTIONS_RUN ? talk_run(&o, &ended_by, &err) : print_help(&o);
    options_free(&o);
    if (ended_by)
        return 128 + ended_by;
    if (r < 0)
        fprintf(stderr, "coordinator: error: %s\n", err.text);
    return r || fflush(stdout) == EOF ? 1 : 0;
}
