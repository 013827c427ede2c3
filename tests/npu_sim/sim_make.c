/* SPDX-License-Identifier: MIT
 * sim_make FOLDER OPERATOR...: writes npu.xclbin, instruction files and manifest.yaml for the simulated NPU. Operators as in
 * sim_files.h, for example gemm:256x640x1024 rms_norm:64x640:1e-6 rope:64x256. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#include "proto/err.h"
#include "tests/npu_sim/sim_files.h"

int main(int argc, char **argv)
{
    struct err err = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: sim_make FOLDER OPERATOR...\n");
        return 2;
    }
    if (mkdir(argv[1], 0777) < 0 && errno != EEXIST) {
        perror(argv[1]);
        return 1;
    }
    if (sim_files_write(argv[1], (const char *const *)argv + 2, (size_t)argc - 2, &err) < 0) {
        fprintf(stderr, "sim_make: error: %s\n", err.text);
        return 1;
    }
    return 0;
}
