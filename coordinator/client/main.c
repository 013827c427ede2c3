/* SPDX-License-Identifier: MIT
 * The program that `coordinator client` becomes, with the same command line and under the same name. It talks to a server and
 * starts nothing; its exit status is as the coordinator's. */
#include <stdio.h>

#include "coordinator/client/talk.h"
#include "coordinator/options.h"
#include "proto/err.h"
#include "proto/process.h"

int main(int argc, char **argv)
{
    struct options o;
    struct err err = {0};
    int ended_by = 0;
    int r = process_begin("coordinator", &err);
    if (r == 0) {
        r = options_parse(&o, argc, argv, &err);
        if (r == 0 && (o.command != OPTIONS_CLIENT || o.action != OPTIONS_RUN)) {
            fprintf(stderr, "coordinator: error: this program is the `client` of coordinator; run `coordinator client`\n");
            options_free(&o);
            return 2;
        }
        if (r == 0)
            r = talk_run(&o, &ended_by, &err);
        options_free(&o);
    }
    if (ended_by)
        return 128 + ended_by;
    if (r < 0)
        fprintf(stderr, "coordinator: error: %s\n", err.text);
    return r < 0 || fflush(stdout) == EOF ? 1 : 0;
}
