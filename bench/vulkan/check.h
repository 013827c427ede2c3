/* SPDX-License-Identifier: MIT
 * Every shader against the CPU kernels on random data. One thread. */
#ifndef TANDEM_BENCH_VULKAN_CHECK_H
#define TANDEM_BENCH_VULKAN_CHECK_H

struct device;

/* Prints a line per shader; returns how many exceeded their bound. type: one name, or NULL for all. */
int check_run(struct device *d, const char *type);

#endif
