/* SPDX-License-Identifier: MIT
 * The quantizer's program: chooses the command by its first argument. Everything else is in the commands. */
#include <stdio.h>
#include <string.h>

#include "proto/err.h"
#include "proto/process.h"
#include "quantizer/cmd_convert.h"
#include "quantizer/cmd_inspect.h"

static void usage(FILE *f)
{
    cmd_convert_usage(f);
    fprintf(f, "\n");
    cmd_inspect_usage(f);
    fprintf(f, "\n"
               "Exit status: 0 done, 1 failed, 2 wrong usage, 129, 130 or 143 interrupted.\n");
}

int main(int argc, char **argv)
{
    struct err err = {0};
    if (process_begin("quantizer", &err) < 0) {
        fprintf(stderr, "quantizer: %s\n", err.text);
        return 1;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            usage(stdout);
            return 0;
        }
        if (strcmp(argv[i], "--version") == 0) {
            printf("quantizer (Tandem) %s\n", TANDEM_VERSION);
            return 0;
        }
    }
    if (argc > 1 && cmd_inspect_is(argv[1]))
        return cmd_inspect_main(argc - 1, argv + 1);
    return cmd_convert_main(argc, argv);
}
