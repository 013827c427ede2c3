/* SPDX-License-Identifier: MIT
 * Where the other parts of Tandem lie, seen from the program that runs: in an installation, which may be moved as a whole, and in a
 * build folder. The names of folders come from the build (CMakeLists.txt); nothing here is absolute. Any thread. */
#ifndef TANDEM_PROTO_PLACE_H
#define TANDEM_PROTO_PLACE_H

#include <stddef.h>

struct err;

enum place {
    PLACE_STAGES,  /* loader, npu_worker, gpu_worker; seen from the coordinator */
    PLACE_MODULES, /* what a stage loads when it is wanted; seen from that stage */
};

/* The folder of an installation if it is there, else that of a build folder; whether it holds anything is not asked. buf: at
 * most `size` bytes with the NUL. 0, -ENAMETOOLONG, or what reading /proc/self/exe gave. */
int place_folder(enum place what, char *buf, size_t size, struct err *err);
/* A file there. -ENOENT names every folder that was looked in. buf is then the path where it should be. */
int place_file(enum place what, const char *name, char *buf, size_t size, struct err *err);

#endif
