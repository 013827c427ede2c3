/* SPDX-License-Identifier: MIT
 * Arguments and reports of verify, info and compare. Called by main; one thread. They write nothing but text. */
#include "quantizer/cmd_inspect.h"

#include <errno.h>
#include <string.h>

#include "proto/err.h"
#include "proto/util.h"
#include "quantizer/compare.h"
#include "quantizer/info.h"
#include "quantizer/verify.h"

void cmd_inspect_usage(FILE *f)
{
    fprintf(f,
            "Commands:\n"
            "  verify FILE.gguf       compares sizes, and tensors with their checksums\n"
            "  info FILE.gguf         prints metadata and tensors\n"
            "  compare A B            prints RMSE, largest error and cosine of every tensor; A and B are GGUF files or checkpoint\n"
            "                         folders of the same model\n"
            "\n"
            "Of a model in parts any part will do.\n");
}

static int verify(char **args, struct err *err)
{
    struct verify_result res;
    char bytes[16];
    int r = verify_run(args[0], stdout, &res, err);
    if (r < 0)
        return r;
    util_format_bytes(bytes, sizeof(bytes), res.bytes);
    if (res.n_bad)
        return err_set(err, -EBADMSG, "'%s': %u of %u tensors have changed since they were written; convert again", args[0],
                       res.n_bad, res.n_tensors);
    printf("'%s': %u tensors, %s, all checksums agree\n", args[0], res.n_tensors, bytes);
    return 0;
}

static int info(char **args, struct err *err)
{
    return info_run(args[0], stdout, err);
}

static int compare(char **args, struct err *err)
{
    struct compare_sum sum;
    return compare_run(args[0], args[1], stdout, &sum, err);
}

static const struct command {
    const char *name;
    int n_args;
    int (*run)(char **args, struct err *err);
} commands[] = {{"verify", 1, verify}, {"info", 1, info}, {"compare", 2, compare}};

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

bool cmd_inspect_is(const char *name)
{
    return find(name) != NULL;
}

int cmd_inspect_main(int argc, char **argv)
{
    const struct command *c = find(argv[0]);
    struct err err = {0};
    if (argc - 1 != c->n_args) {
        fprintf(stderr, "quantizer: %s has %d arguments; expected %d\n", c->name, argc - 1, c->n_args);
        cmd_inspect_usage(stderr);
        return 2;
    }
    int r = c->run(argv + 1, &err);
    if (fflush(stdout) != 0 && r == 0)
        r = err_set_errno(&err, -errno, "cannot write to standard output");
    if (r < 0)
        fprintf(stderr, "quantizer: %s\n", err.text);
    return r < 0;
}
