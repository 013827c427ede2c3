/* SPDX-License-Identifier: MIT
 * What the machine offers: its memory, and how fast its processors read it. Thread: main. */
#ifndef TANDEM_COORDINATOR_MACHINE_H
#define TANDEM_COORDINATOR_MACHINE_H

#include <stdint.h>
#include <stdio.h>

struct json_t;

struct machine {
    uint64_t total, available; /* bytes, of /proc/meminfo, or of the cgroups around us where it is less; 0: not known */
};

void machine_memory(struct machine *ret);
/* What else is in force here, tried out and said: whether the kernel gives huge pages to shared memory (weights) and to private
 * memory (KV cache, scratch), and the limit of locked memory, which counts for an NPU's buffers. */
void machine_print(FILE *f);
struct json_t *machine_json(void); /* the same; returns owned, NULL = out of memory */
/* Bytes a second that so many threads read together, from memory that is taken for it and given back: a quarter of what is
 * available, at most 256 MiB; the best of a few rounds, about a tenth of a second in all. 0 where that is less than 64 MiB, which
 * caches may hold, or where threads or memory cannot be had. */
double machine_read_rate(uint32_t n_threads, uint64_t available);
/* Bytes a second that the disk of this file gives, read past the page cache as the loader reads: a quarter of a second at most. 0
 * where the file is too small to tell, or the file system has no O_DIRECT. */
double machine_disk_rate(const char *path);

#endif
